import argparse
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from asynclm.proxy.demo import running
from asynclm.proxy.demo.bfcl import draw_cases, load_samples
from asynclm.proxy.demo.loopback import LoopbackError
from asynclm.proxy.demo.run import add_arguments, run
from asynclm.proxy.demo.tools import Workshop

QUICK = ("--cases", "1", "--ttft-ms", "1", "--tpot-ms", "0")


def demo(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(flags))


def test_the_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert demo(*QUICK, "--svg", str(tmp_path / "demo.svg")) == 0
    out, errors = capsys.readouterr()
    assert errors == ""
    assert [line.split()[2] for line in out.splitlines() if line.startswith("case 1")] == [
        "sync:",
        "parallel:",
        "auto:",
    ]
    rows = [line.split() for line in out.splitlines() if line.rstrip().endswith("1/1")]
    assert [row[0] for row in rows] == ["sync", "parallel", "auto"]
    assert "case" in (tmp_path / "demo.svg").read_text()


class Forger(Workshop):
    """Tools that tell the model something else than what they did."""

    async def run(self, tool: str, sample: str, arguments: dict[str, Any]) -> object:
        return {"forged": await super().run(tool, sample, arguments)}


def test_a_wrong_answer_is_exit_status_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "Workshop", Forger)
    assert demo(*QUICK, "--policies", "auto") == 1
    out = capsys.readouterr().out
    assert "0/1" in out
    assert "the answer does not say that a1" in out


async def test_a_run_that_the_proxy_refuses_is_one_line() -> None:
    settings = running.Settings(seed=0, policies=["sideways"], ttft_ms=1, tpot_ms=0, concurrency=1)
    with pytest.raises(LoopbackError, match=r"^a run failed: BadRequestError: .*sideways") as caught:
        await running.run_cases(draw_cases(load_samples(), 1, seed=0), settings, lambda outcome: None)
    assert "\n" not in str(caught.value)


def test_without_bfcl_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert demo(*QUICK) == 2
    assert capsys.readouterr().err.startswith("asynclm: bfcl-eval is not installed: pip install --no-deps")


@pytest.mark.parametrize(
    "flags",
    [
        ("--cases", "0"),
        ("--cases", "many"),
        ("--policies", " , "),
        ("--policies", "sideways"),
        ("--ttft-ms", "-1"),
        ("--tpot-ms", "nan"),
        ("--concurrency", "0"),
    ],
)
def test_flags_that_make_no_sense(flags: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as exit:
        demo(*flags)
    assert exit.value.code == 2
