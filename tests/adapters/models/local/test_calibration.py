"""Measuring an engine, and keeping what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from asynclm.adapters.models.local.calibration import Measurement, Point, keep, measure, measured
from asynclm.adapters.models.local.costs import Costs, Curve
from asynclm.adapters.models.local.engine import Feed, OutOfMemoryError
from tests.support.toy_engine import ToyEngine

RECOMPUTE = Curve(2.0, 0.5, 0.0005)
SWAP = Curve(1.0, 0.02)


class TimedEngine(ToyEngine):
    """Takes the time that the curves say, on a clock of its own (s)."""

    def __init__(self, *, context: int = 4096, limit: int = 8192, slower: float = 1.0) -> None:
        super().__init__(context=context, limit=limit)
        self.now = 0.0
        self.slower = slower
        self.hiccup = 0.0

    def clock(self) -> float:
        return self.now

    def forward(self, feeds: Sequence[Feed]) -> None:
        before = {feed.sequence: len(self.sequences[feed.sequence]) for feed in feeds}
        super().forward(feeds)
        for number, past in before.items():
            # What the curve says of a whole prompt is the sum of what its passes take.
            took = RECOMPUTE(len(self.sequences[number])) - (RECOMPUTE(past) if past else 0.0)
            self.now += (took + self.hiccup) * self.slower / 1000
            self.hiccup = 0.0

    def swap_out(self, sequence: int) -> None:
        self.now += SWAP(len(self.sequences[sequence])) / 4000
        super().swap_out(sequence)

    def swap_in(self, sequence: int) -> None:
        self.now += SWAP(len(self.host[sequence])) * 3 / 4000
        super().swap_in(sequence)


def close(costs: Costs) -> bool:
    return all(
        curve(n) == pytest.approx(real(n), rel=1e-3)
        for curve, real in ((costs.recompute, RECOMPUTE), (costs.swap, SWAP))
        for n in (16, 300, 4096, 100_000)
    )


@pytest.mark.parametrize("chunk", [64, 512, 10_000])
def test_the_curves_are_those_of_the_engine(chunk: int) -> None:
    engine = TimedEngine()
    found = measure(engine, chunk=chunk, seconds=100.0, clock=engine.clock)
    assert [point.tokens for point in found.points] == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert close(found.costs())
    assert engine.memory()[:2] == (0, 0)
    assert max(len(feed) for step in engine.steps for feed in step.values()) <= chunk


@pytest.mark.parametrize("slower", [0.1, 1.0, 5.0])
def test_it_takes_about_the_time_that_it_may_and_the_curves_reach_beyond(slower: float) -> None:
    engine = TimedEngine(slower=slower)
    found = measure(engine, chunk=512, seconds=2.0, clock=engine.clock)
    assert engine.now < 2.0
    longest = found.points[-1].tokens
    assert longest >= 64
    recompute = found.costs().recompute
    if longest >= 512:
        assert recompute(8000) == pytest.approx(RECOMPUTE(8000) * slower, rel=1e-2)
    else:
        assert recompute.square == 0, "it can't be known yet"
        assert recompute(longest) == pytest.approx(RECOMPUTE(longest) * slower, rel=0.1)


def test_however_slow_it_is_something_is_measured() -> None:
    engine = TimedEngine(slower=1000.0)
    found = measure(engine, chunk=512, seconds=2.0, clock=engine.clock)
    assert [point.tokens for point in found.points] == [16]
    assert found.costs().recompute(16) == pytest.approx(RECOMPUTE(16) * 1000)


def test_what_came_between_does_not_count() -> None:
    engine = TimedEngine()
    engine.hiccup = 500.0  # the first pass ever
    again = engine.before
    hiccups = iter([0.0, 40.0, 0.0, 0.0, 0.0, 30.0])

    def before() -> None:
        engine.hiccup += next(hiccups, 0.0)
        again()

    engine.before = before
    assert close(measure(engine, chunk=4096, seconds=100.0, clock=engine.clock).costs())


def test_no_more_is_measured_than_there_is_room_for() -> None:
    small = TimedEngine(limit=100)
    assert [point.tokens for point in measure(small, chunk=64, seconds=9.0, clock=small.clock).points] == [
        16,
        32,
        64,
        100,
    ]
    short = TimedEngine(context=48)
    assert [point.tokens for point in measure(short, chunk=64, seconds=9.0, clock=short.clock).points] == [16, 32, 48]
    tiny = TimedEngine(limit=5)
    assert [point.tokens for point in measure(tiny, chunk=64, seconds=9.0, clock=tiny.clock).points] == [5]


def test_a_pass_that_does_not_fit_ends_it(tmp_path: Path) -> None:
    class Narrow(TimedEngine):
        most = 100

        def forward(self, feeds: Sequence[Feed]) -> None:
            if sum(len(feed.tokens) for feed in feeds) > self.most:
                raise OutOfMemoryError
            super().forward(feeds)

    engine = Narrow()
    found = measure(engine, chunk=4096, seconds=100.0, clock=engine.clock)
    assert [point.tokens for point in found.points] == [16, 32, 64]
    assert engine.sequences == {}
    engine.most = 0
    said: list[str] = []
    assert measured(engine, chunk=64, folder=tmp_path, progress=said.append) is None
    assert "no room" in said[-1]
    assert engine.sequences == {}
    assert list(tmp_path.iterdir()) == []


def test_it_is_measured_once_for_each_engine_and_size_of_a_pass(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "traps"
    engine, said = ToyEngine(), list[str]()

    def again(chunk: int = 64) -> bool:
        """Whether it was measured."""
        before = len(engine.steps)
        assert measured(engine, chunk=chunk, folder=folder, seconds=0.05, progress=said.append) is not None
        return len(engine.steps) > before

    assert again()
    assert not again()
    assert again(chunk=128)
    engine.description = "another"
    assert again()
    assert not again()
    assert len(said) == 3
    assert len(list(folder.iterdir())) == 3, "and no other file is left"


def test_a_broken_file_is_measured_anew(tmp_path: Path) -> None:
    engine = ToyEngine()
    first = measured(engine, chunk=64, folder=tmp_path, seconds=0.05)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    good = msgspec.json.decode(whole, type=Measurement)
    for content in (
        b"",
        whole[:-20],
        b"[]",
        b"\xff\xfe",
        whole.replace(b'"asynclm_costs": 1', b'"asynclm_costs": 2'),
        whole.replace(b'"toy"', b'"other"'),
        msgspec.json.encode(msgspec.structs.replace(good, points=[])),
        msgspec.json.encode(msgspec.structs.replace(good, points=[Point(16, -1.0, 1.0, 1.0)])),
    ):
        assert content != whole
        file.write_bytes(content)
        steps = len(engine.steps)
        assert measured(engine, chunk=64, folder=tmp_path, seconds=0.05) is not None
        assert len(engine.steps) > steps, content
        assert msgspec.json.decode(file.read_bytes(), type=Measurement).points
    assert first is not None


def test_where_it_can_not_be_kept_that_is_said(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    said: list[str] = []
    assert measured(ToyEngine(), chunk=64, folder=blocked / "traps", seconds=0.05, progress=said.append) is not None
    assert "can't be kept" in said[-1]


def test_what_is_kept_is_used(tmp_path: Path) -> None:
    engine = ToyEngine()
    points = [Point(n, RECOMPUTE(n), SWAP(n) / 2, SWAP(n) / 2) for n in (16, 64, 512, 4096)]
    keep(Measurement(engine=engine.description, chunk=64, points=points), tmp_path)
    found = measured(engine, chunk=64, folder=tmp_path)
    assert found is not None
    assert close(found)
    assert engine.steps == []
