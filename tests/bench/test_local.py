"""`asynclm bench local`: its arithmetic, and all of it on a tiny model."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from tiny_model import tiny_folder
from toy_engine import ToyEngine

from asynclm.adapters.models.local.engine import Feed, Pick
from asynclm.adapters.models.simulated.task import Node, Task
from asynclm.adapters.models.transformers.load import LoadOptions, load
from asynclm.bench.analytic import Cost, Timed
from asynclm.bench.command import add_arguments, run
from asynclm.bench.local import clock as clocks
from asynclm.bench.local.bandwidth import weight_bytes
from asynclm.bench.local.batching import EngineFailedError, stall, throughput
from asynclm.bench.local.clock import ClockedLoop, OwnClock, WallClock
from asynclm.bench.local.injection import injections
from asynclm.bench.local.meter import Meter
from asynclm.bench.local.report import factor, ratios, reached, tables
from asynclm.bench.local.results import WAYS, Bandwidth, Measured, Ran, from_json
from asynclm.bench.local.shapes import UnknownShapeError, make
from asynclm.bench.local.steps import GREEDY
from asynclm.bench.local.theory import formulas, measured, schedule
from asynclm.bench.local.watch import Written
from asynclm.cml.timeline import Entry, Timeline

bfcl = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")

BEGAN = 100.0  # on the engine's clock


def written(*tokens: tuple[float, str, str | None, bool]) -> list[Written]:
    return [Written(BEGAN + at, kind, id, plain) for at, kind, id, plain in tokens]  # type: ignore[arg-type]


def timeline(*entries: tuple[float, str, int | None, dict[str, Any]]) -> Timeline:
    return Timeline("run", "m", "auto", 0, [Entry(t, kind, 0, call, data) for t, kind, call, data in entries])


# Two calls of 3 and 2 tokens and the answer of 2, a token in 1 s; the first result goes in between b's two tokens.
LOG = written(
    (1.0, "call", "a", False),
    (2.0, "call", "a", True),
    (3.0, "call", "a", True),
    (4.0, "call", "b", True),
    (6.5, "call", "b", False),
    (7.5, "trap", None, True),
    (20.0, "text", None, False),
    (21.0, "text", None, True),
)
RAN = timeline(
    (1.1, "first_token", None, {}),
    (3.1, "call", 0, {"id": "a"}),
    (3.2, "dispatched", 0, {}),
    (4.9, "result", 0, {}),
    (5.0, "interrupt", None, {}),
    (6.6, "call", 1, {"id": "b"}),
    (6.6, "dispatched", 1, {}),
    (18.6, "result", 1, {}),
    (18.7, "interrupt", None, {}),
)
TASK = Task((Node("a", "f(x=1)", (), 10.0), Node("b", "f(x=2)", (), 5.0)), answer="Done.")


def test_times_of_a_run() -> None:
    found = measured(TASK, LOG, RAN, BEGAN)
    assert [call.id for call in found.calls] == ["a", "b"]
    assert [call.cost.write_s for call in found.calls] == pytest.approx([2.0, 2.0])  # the first token is free
    assert [call.cost.run_s for call in found.calls] == pytest.approx([1.7, 12.0])
    assert found.answer_s == pytest.approx(3.0)  # with the token that ends it
    assert found.step_s == pytest.approx(1.0)
    assert (found.tokens, found.trap_tokens, found.interrupts) == (9, 1, 2)
    # The first was there at 5.0, where the next token was due: it took 1.5 s more. The other came in the trap.
    assert found.interrupts_s == pytest.approx(1.5 + 1.3)
    assert found.returned_s == pytest.approx(17.5)


def test_a_run_that_misses_a_call_has_no_times() -> None:
    with pytest.raises(ValueError, match="did not finish b"):
        measured(TASK, [token for token in LOG if token.id != "b"], RAN, BEGAN)


def times(*calls: tuple[str, float, float, tuple[str, ...]]) -> Measured:
    return Measured(
        calls=tuple(Timed(id, Cost(write, runs), after) for id, write, runs, after in calls),
        answer_s=3.0,
        step_s=0.5,
        tokens=9,
        trap_tokens=0,
        interrupts=2,
        interrupts_s=1.0,
        returned_s=12.5,
    )


def test_formulas_for_independent_calls_are_the_papers() -> None:
    found = formulas(times(("a", 2.0, 4.0, ()), ("b", 1.0, 9.0, ())), {"a": 4.0, "b": 9.0})
    assert found["l_sync"] == 16.0
    assert found["l_parallel"] == 12.0
    assert found["l_async"] == 10.0
    assert found["sync"] == 19.0
    assert found["in_sequence"] == found["schedule"] == 13.0
    wrong = formulas(times(("a", 2.0, 4.0, ()), ("b", 1.0, 9.0, ())), {"a": 9.0, "b": 4.0})
    assert wrong["schedule"] == 15.0  # the shorter one first


def test_formulas_for_chains() -> None:
    calls = times(("a1", 2.0, 4.0, ()), ("a2", 1.0, 1.0, ("a1",)), ("b1", 1.0, 5.0, ()))
    found = formulas(calls, {"a1": 4.0, "a2": 1.0, "b1": 5.0})
    assert set(found) == {"in_sequence", "schedule", "sync"}
    assert found["in_sequence"] == 11.0  # a1, its run, a2, its run, the answer: b1 has room beside it
    assert schedule(calls.calls, {"a1": 4.0, "a2": 1.0, "b1": 5.0}) == 9.0  # b1 goes first: its estimate is longer


def ran(way: str, latency_s: float, theory: dict[str, float], case: str = "c") -> Ran:
    return Ran(
        dataset="parallel",
        case=case,
        way=way,
        round=0,
        prompt_tokens=1,
        resumes=0,
        latency_s=latency_s,
        measured=times(("a", 2.0, 4.0, ()), ("b", 1.0, 9.0, ())),
        theory=theory,
        host_share=0.0,
        problems=(),
    )


def test_what_is_reached() -> None:
    theory = {"in_sequence": 13.0, "schedule": 13.0, "sync": 19.5, "l_async": 10.0}
    one = ran("in-sequence", 16.0, theory)
    found = reached(one)
    assert found["bound"] == pytest.approx(10.0 / 12.5)
    assert found["schedule"] == pytest.approx(13.0 / 16.0)
    assert found["with_interrupts"] == pytest.approx(14.0 / 16.0)
    assert factor(one) == pytest.approx(1.5)
    chains = ran("in-sequence", 16.0, {"in_sequence": 12.0, "schedule": 13.0, "sync": 19.5})
    assert reached(chains)["bound"] == pytest.approx(12.0 / 16.0)
    runs = [one, ran("sync", 24.0, {}), ran("sync", 99.0, {}, "other")]
    assert ratios(runs, "sync", "in-sequence") == [1.5]


def test_the_bandwidth_allows_a_step_for_each_time_that_the_weights_are_read() -> None:
    found = Bandwidth(weight_bytes=900, cache_bytes=100, copy_gb_s=1e-6, engine_tokens_per_s=0.5)
    assert found.limit_tokens_per_s == pytest.approx(1.0)


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_that_is_only_looked_up_in_is_not_read(tied: bool) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(100, 8)
            self.head = torch.nn.Linear(8, 100, bias=False)
            if tied:
                self.head.weight = self.embedding.weight

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embedding

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

    assert weight_bytes(Model()) == 100 * 8 * 4


def test_a_lent_engine_stays_and_is_left_empty() -> None:
    engine = ToyEngine()
    ticks = iter(range(100))

    class Ticking(WallClock):
        def now(self) -> float:
            return float(next(ticks))

    meter = Meter(engine, Ticking())
    number = meter.open(GREEDY)
    meter.forward([Feed(number, [1, 2, 3])])
    other = meter.fork(number, 2, GREEDY)
    meter.sample([Pick(number)])
    assert [(each.began, each.ended, each.sequences, each.tokens) for each in meter.passes] == [(0, 1, 1, 3)]
    assert [(each.began, each.ended, each.sequences) for each in meter.draws] == [(2, 3, 1)]
    assert meter.length(other) == 2
    meter.close()
    assert engine.memory().used_tokens == 0
    assert not engine.closed


def test_the_engines_own_time_stands_still_while_it_has_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, cpu = [100.0], [7.0]
    times = SimpleNamespace(
        monotonic=lambda: wall[0], clock_gettime=lambda clock: cpu[0], pthread_getcpuclockid=lambda thread: 1
    )
    monkeypatch.setattr(clocks, "time", times)
    clock = OwnClock()
    with clock.working():
        assert clock.now() == 100.0
        wall[0], cpu[0] = 103.0, 8.0
        assert clock.now() == 101.0
        wall[0], cpu[0] = 104.0, 9.0
    assert clock.now() == 102.0
    wall[0] = 105.0  # what isn't the engine's takes its time
    assert clock.now() == 103.0
    with clock.working():
        wall[0], cpu[0] = 106.0, 11.0  # the two clocks don't tick alike
        assert clock.now() == 104.0


def test_an_event_loop_goes_by_it() -> None:
    clock = OwnClock()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=work)
        began, really = loop.time(), time.monotonic()
        thread.start()
        await asyncio.sleep(0.1)
        assert loop.time() - began >= 0.1
        assert time.monotonic() - really >= 0.2  # most of the first 0.2 s was nobody's
        thread.join()

    def work() -> None:
        with clock.working():
            time.sleep(0.2)

    with asyncio.Runner(loop_factory=lambda: ClockedLoop(clock)) as runner:
        runner.run(main())


def test_injection_is_measured_where_there_is_room() -> None:
    engine = ToyEngine()
    found = injections(engine, (30, 60, 10**9), chunk=16, rounds=2, late=lambda: False)
    assert [(each.context, each.tokens, each.rounds) for each in found] == [(30, 20, 2), (60, 20, 2)]
    assert engine.memory().used_tokens == 0
    assert injections(engine, (30,), chunk=16, rounds=2, late=lambda: True) == []


async def test_batches() -> None:
    engine = ToyEngine()
    found = await throughput(engine, 3, prompt=8, tokens=5, rounds=2, late=lambda: False)
    assert [(each.runs, len(each.tokens_per_s)) for each in found] == [(1, 2), (3, 2)]
    beside = await stall(engine, busy_chunk=4, prompt=40, alone=3)
    assert beside.steps_ms
    assert any(4 in map(len, step.values()) for step in engine.steps)  # a share of the prompt, beside a token
    assert engine.memory().used_tokens == 0


async def test_an_engine_that_fails_ends_the_measurement() -> None:
    with pytest.raises(EngineFailedError):
        await stall(ToyEngine(limit=50), busy_chunk=4, prompt=400, context=8)


def test_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asynclm.bench.local import shapes

    small = shapes.SHAPES["llama-3.2-1b"] | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 9000}
    monkeypatch.setitem(shapes.SHAPES, "small", small)
    make("small", tmp_path, device="cpu")
    loaded = load(LoadOptions(model=str(tmp_path), device="cpu", threads=1, kv_tokens=256))
    tokens = loaded.vocabulary.encode("\n[CALL] a1 [HEAD] get_stock_info(symbol='NVDA') [END]")
    assert len(tokens) < 30
    assert loaded.engine.vocabulary == 9000
    loaded.engine.close()
    with pytest.raises(UnknownShapeError, match=r"llama-3\.2-1b"):
        make("llama-9", tmp_path)


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["local", "--model", str(tiny_folder()), "--device", "cpu", "--threads", "1", *flags])


@bfcl
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--contexts", "40,80", "--busy-chunks", "64", "--tool-ms", "5", "--datasets", "parallel", "--clock", "own")
    file = tmp_path / "out.json"
    assert run(parsed(*flags, "--json", str(file), "--plot", str(tmp_path / "out.svg"))) == 0
    found = from_json(file.read_bytes())
    assert [each.way for each in found.runs] == list(WAYS)
    by_way = {each.way: each for each in found.runs}
    assert by_way["in-sequence"].resumes == 0
    assert by_way["sync"].resumes > 0
    for each in found.runs:
        assert each.problems == ()
        assert each.measured is not None
        assert {"l_sync", "l_parallel", "l_async", "in_sequence"} <= set(each.theory)
    assert [each.context for each in found.injection] == [40, 80]
    assert [each.runs for each in found.throughput] == [1, 8]
    assert [each.busy_chunk for each in found.stalls] == [64]
    assert found.monitoring is not None
    assert found.bandwidth is not None
    assert found.skipped == []
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for title in ("parallel: 1 case", "An interrupt of 20 tokens", "Runs at once", "Token monitor", "bandwidth"):
        assert title in said
    assert "<svg" in (tmp_path / "out.svg").read_text()
    assert len(tables(found)) == 7


@pytest.mark.parametrize(
    "flags", [("--plot", "out.txt"), ("--clock", "own", "--threads", "2"), ("--json", "no/such/folder/out.json")]
)
def test_what_can_be_known_to_fail_fails_at_once(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parsed(*flags)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("asynclm: ")


def test_reports_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="not a report"):
        from_json(b"{}")
