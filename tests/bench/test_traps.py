"""`asynclm bench traps`: the picture shows what the trap handler does, and the command measures a real, tiny model."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from asynclm.adapters.models.local.calibration import Measurement, Point
from asynclm.adapters.models.local.costs import Curve
from asynclm.adapters.models.local.traps import CostHandler
from asynclm.bench.command import add_arguments, run
from asynclm.bench.plots.regions import regions


def measurement(swap: Curve, recompute: Curve) -> Measurement:
    lengths = [16 * 2**n for n in range(8)]
    points = [Point(n, recompute(n), swap(n) * 0.4, swap(n) * 0.6) for n in lengths]
    return Measurement(engine="some model on some device", chunk=512, points=points)


# Both regions; swap alone; recompute alone.
BOTH = measurement(Curve(5.0, 0.01), Curve(1.0, 0.02, 1e-5))
SWAP = measurement(Curve(1.0, 0.01), Curve(10.0, 1.0, 1e-3))
RECOMPUTE = measurement(Curve(10.0, 1.0), Curve(1.0, 0.01))


def bench(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(["traps", *flags]))


def shown(figure: Figure, tokens: float, wait_ms: float) -> str | None:
    """The label of the region that lies at a point."""
    (axes,) = figure.axes
    fills = [fill for fill in axes.collections if isinstance(fill, PolyCollection)]
    found = [
        str(fill.get_label()).split()[0]
        for fill in fills
        if any(path.contains_point((tokens, wait_ms)) for path in fill.get_paths())
    ]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("measured", [BOTH, SWAP, RECOMPUTE])
def test_each_region_is_what_the_paper_s_rule_says(measured: Measurement) -> None:
    figure = regions(measured)
    costs = measured.costs()
    handler = CostHandler(costs, "paper")
    seen = set()
    for tokens in (20, 37, 100, 300, 700, 1500, 4000, 8000):
        for factor in (0.5, 0.9, 1.1, 3.0, 30.0):
            wait_ms = factor * min(costs.swap(tokens), costs.recompute(tokens))
            choice = handler.decide(tokens, wait_ms / 1000, crowded=True, must=False).choice
            assert shown(figure, tokens, wait_ms) == choice
            seen.add(choice.value)
    assert len(seen) == (3 if measured is BOTH else 2)


def test_the_points_are_what_was_measured() -> None:
    (axes,) = regions(BOTH).axes
    dots = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]  # type: ignore[union-attr]
    assert dots == [
        [[point.tokens, pytest.approx(point.swap_out + point.swap_in)] for point in BOTH.points],
        [[point.tokens, point.recompute] for point in BOTH.points],
    ]


def test_what_was_measured_is_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "measured.json"
    file.write_bytes(msgspec.json.encode(BOTH))
    assert (
        bench("--measured", str(file), "--json", str(tmp_path / "again.json"), "--plot", str(tmp_path / "a.svg")) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    costs, waits = BOTH.costs(), (0.01, 0.1, 1.0, 10.0)
    handler = CostHandler(costs, "paper")
    assert [row[0] for row in rows[:5]] == ["64", "256", "1,024", "4,096*", "8,192*"]
    for row, tokens in zip(rows, (64, 256, 1024, 4096, 8192), strict=False):
        assert row[3:] == [handler.decide(tokens, wait, crowded=True, must=False).choice for wait in waits]
    assert msgspec.json.decode((tmp_path / "again.json").read_bytes(), type=Measurement) == BOTH
    assert b"some model on some device" in (tmp_path / "a.svg").read_bytes()


def test_a_real_model_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_model import tiny_folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ("--model", str(tiny_folder()), "--device", "cpu", "--threads", "1", "--seconds", "0.5")
    assert bench(*flags, "--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")) == 0
    found = msgspec.json.decode((tmp_path / "out.json").read_bytes(), type=Measurement)
    assert [point.tokens for point in found.points][:2] == [16, 32]
    assert found.engine in capsys.readouterr().out
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    (kept,) = (tmp_path / "asynclm" / "traps").iterdir()
    assert msgspec.json.decode(kept.read_bytes(), type=Measurement) == found, "for the next start"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--plot", "a.jpeg"], "pictures are written as"),
        (["--plot", "nowhere/a.png"], "there is no folder nowhere"),
        (["--measured", "nothing.json"], "can't read nothing.json: No such file"),
        (["--measured", "broken.json"], "broken.json isn't what --json wrote"),
        (["--measured", "empty.json"], "empty.json isn't what --json wrote"),
        (["--model", "./nowhere"], "there is no folder"),
        (["--device", "abacus"], "there is no device 'abacus'"),
    ],
)
def test_what_can_not_be_done_is_said(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{")
    Path("empty.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(BOTH, points=[])))
    assert bench(*flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("asynclm: ")
    assert said in error
