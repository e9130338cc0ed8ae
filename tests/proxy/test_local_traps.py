"""A config's local model at a trap: its costs are measured once, and its rule is the config's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from tiny_model import tiny_folder

from asynclm.adapters.models.local.settings import EngineSettings
from asynclm.adapters.models.protocol import Noted, Request
from asynclm.proxy.config import Config, Model, Upstream
from asynclm.proxy.upstreams import Upstreams


async def at_a_trap(trap: Literal["auto", "paper", "swap"]) -> list[Noted]:
    """What is noted when the model waits for a result, and gets it."""
    engine = EngineSettings(device="cpu", threads=1, kv_tokens=4096, trap=trap)
    upstream = Upstream(kind="transformers", model=str(tiny_folder()), engine=engine)
    upstreams = Upstreams(Config(upstreams={"main": upstream}, models={"*": Model(upstream="main")}), {})
    model: Any = upstreams.model(upstreams.route("any"))
    noted: list[Noted] = []
    try:
        request = Request(
            model="", messages=[{"role": "user", "content": "Hello"}], max_tokens=40, parameters={"seed": 1}
        )
        stream = await model.open(request)
        batches = aiter(stream)
        for _ in range(3):
            await anext(batches)
        stream.pause(20.0)
        while not noted:
            noted += [event for event in await anext(batches) if isinstance(event, Noted)]
        stream.inject("[INTR] a [HEAD] 1 [END]")
        for _ in range(3):
            noted += [event for event in await anext(batches) if isinstance(event, Noted)]
        await stream.aclose()
    finally:
        await upstreams.aclose()
    return noted


async def test_the_rule_is_the_config_s_and_costs_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (kept,) = await at_a_trap("auto")
    assert (kept.kind, kept.data["choice"], kept.data["why"]) == ("cache", "keep", "nobody needs its memory")
    assert min(kept.data["costs_ms"].values()) > 0
    assert "measuring" in capsys.readouterr().err
    away, back = await at_a_trap("swap")
    assert (away.data["choice"], away.data["why"]) == ("swap", "as configured")
    assert (back.kind, back.data["by"]) == ("restored", "swap")
    assert set(away.data) == {"tokens", "ms", "choice", "why", "wait_ms", "costs_ms"}
    away, back = await at_a_trap("paper")
    assert away.data["choice"] == back.data["by"] == min(away.data["costs_ms"], key=away.data["costs_ms"].get)
    assert "measuring" not in capsys.readouterr().err
