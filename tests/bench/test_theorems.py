"""The paper's theorems (section 6.3) on the proxy's own code, on a virtual clock, where every time is exact.

The formulas know only how long calls are written (G) and run (E). Two things are compared with them:

- `returned_s`, from the first token to the last result: for Async, what L_async is about. Sync-Parallel writes a trap
  before its calls begin, which comes on top of L_parallel.
- `latency_s`, the whole answer: what the formulas leave out is then added, exactly: traps, the answer, the token that
  ends it, and with stop and resume a TTFT for each resume. Interrupts themselves take no time here: nobody writes them.

The times of a call's tokens are no guesses: `tokens` counts them as the simulated model cuts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import looptime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.adapters.models.stops import Stops
from asynclm.adapters.tools.python import PythonTool
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.bench.analytic import costs, in_sequence, l_async, l_in_order, l_parallel, l_sync, stop_and_resume, tokens
from asynclm.bench.inprocess import Proxy
from asynclm.bench.methods import METHODS, Method
from asynclm.bench.results import Setting
from asynclm.bench.virtual import simulated
from asynclm.cml.body import parse_body
from asynclm.cml.render import STOP, render_call, render_trap

SYNC, PARALLEL, ASYNC = (Method(name, name, name, inject=True) for name in ("sync", "parallel", "auto"))
CLOUD = Setting(ttft_ms=310, tpot_ms=5, tool_ms=110)
TPOT = CLOUD.tpot_ms / 1000
EXACT = 1e-5  # s; the timeline's times are rounded to 1e-6

quickly = settings(max_examples=50, deadline=None, derandomize=True)


class Measured(NamedTuple):
    returned_s: float
    latency_s: float


def run(task: Task, method: Method, setting: Setting = CLOUD) -> Measured:
    """Have a task done; each of its calls sleeps for as long as it is asked to."""
    done: list[float] = []

    async def work(ms: float, note: str = "") -> str:
        """Take a while.

        Args:
            ms: How long.
            note: Makes the call longer to write.
        """
        await asyncio.sleep(ms / 1000)
        done.append(ms)
        return "done"

    async def ask() -> Any:
        workshop: Any = SimpleNamespace(toolbox=Toolbox([PythonTool(work)]))
        async with contextlib.aclosing(Proxy(method.policy, simulated(method, setting), workshop)) as proxy:
            return await proxy.ask(encode_task(task))

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0.0, noop_cycles=0)) as runner:
        ran = runner.run(ask())
    assert ran.answer == task.answer
    assert sorted(done) == sorted(running(task).values()), "each call ran once"
    times: dict[str, list[float]] = {}
    for entry in ran.timeline.entries:
        times.setdefault(entry.kind, []).append(entry.t)
    first = times["first_token"][0]
    return Measured(times["result"][-1] - first, ran.total_s - first)


def call(number: int, ms: int, size: int, after: Sequence[str] = ()) -> Node:
    """A call that runs for so many ms, with an argument of so many characters.

    Each runs a little longer, by a different time: no result comes in the very moment of another one or of a token,
    and no two calls are the same (which in two branches would be one execution).
    """
    runs = round(ms + 0.11 * (number + 1), 2)
    return Node(f"c{number}", f"work(ms={runs}, note={'x' * size!r})", tuple(after), estimate_ms=runs)


def independent(sizes: Sequence[tuple[int, int]]) -> Task:
    return Task(tuple(call(at, *size) for at, size in enumerate(sizes)), quote=False)


def running(task: Task) -> dict[str, float]:
    """What each call was asked to sleep, whatever the model believes."""
    return {node.id: parse_body(node.call).named["ms"] for node in task.calls}


def block(node: Node) -> str:
    return render_call(node.id, node.call)


def longest_first(task: Task) -> list[str]:
    return [block(node) for node in sorted(task.calls, key=lambda node: -node.estimate_ms)]


RUNNING = st.integers(30, 500)  # ms, the paper's range
SIZES = st.integers(0, 120)  # characters; a call is 13 to 44 tokens
SETS = st.lists(st.tuples(RUNNING, SIZES), min_size=2, max_size=7).map(independent)
EQUAL = independent([(100, 20)] * 5)


# ---------------------------------------------------------------------- one sequence


@quickly
@given(SETS)
@example(EQUAL)
def test_async_is_within_2_percent_of_its_formula(task: Task) -> None:
    calls = costs(task, running(task), CLOUD)
    measured = run(task, ASYNC)
    assert measured.returned_s == pytest.approx(l_async(calls), rel=0.02)
    expected = l_async(calls) + left_out_of_async(task)
    assert measured.latency_s == pytest.approx(expected, rel=0.02)
    # It is even exact, since nothing in between takes time on this clock.
    assert measured.returned_s == pytest.approx(l_async(calls), abs=EXACT)
    assert measured.latency_s == pytest.approx(expected, abs=EXACT)


def left_out_of_async(task: Task) -> float:
    """From the last result to the end: the rest of the trap that is being written, the answer and its end.

    The model writes a trap when nothing is left to call, and another one for as long as there is more to come. It goes
    on a TPOT after the trap, or after the result that comes later than that, and knows what has returned until then.
    """
    calls = costs(task, running(task), CLOUD)
    written = list(itertools.accumulate(each.write_s for each in calls))
    returns = sorted(begun + each.run_s for begun, each in zip(written, calls, strict=True))
    *traps, _ = counts = tokens([*longest_first(task), *[render_trap()] * len(calls), task.answer])
    now = written[-1]
    for number, count in enumerate(traps[len(calls) :], 1):
        trapped = now + count * TPOT
        unknown = next(each for each in returns if each > now + TPOT)
        now = unknown if unknown > trapped + TPOT else trapped
        if returns[-1] <= now + TPOT:
            (answer,) = tokens([task.answer], begun=sum(counts[: len(calls) + number]))
            return now - returns[-1] + (answer + 1) * TPOT
    raise AssertionError("a trap for each result is enough")


@quickly
@given(SETS)
@example(EQUAL)
def test_sync_and_parallel_are_within_2_percent_of_their_formulas(task: Task) -> None:
    """On a live sequence, as in the paper's local runs: no TTFT after the first."""
    calls = costs(task, running(task), CLOUD)
    *_, answer = tokens([*longest_first(task), task.answer])
    expected = l_sync(calls) + (answer + 1) * TPOT
    sync = run(task, SYNC)
    assert sync.returned_s == pytest.approx(l_sync(calls), abs=EXACT)
    assert sync.latency_s == pytest.approx(expected, rel=0.02)
    assert sync.latency_s == pytest.approx(expected, abs=EXACT)

    *_, trap, answer = tokens([*longest_first(task), render_trap(), task.answer])
    expected = l_parallel(calls) + (trap + answer + 1) * TPOT
    parallel = run(task, PARALLEL)
    assert parallel.returned_s == pytest.approx(l_parallel(calls) + trap * TPOT, abs=EXACT)
    assert parallel.latency_s == pytest.approx(expected, rel=0.02)
    assert parallel.latency_s == pytest.approx(expected, abs=EXACT)


@quickly
@given(SETS)
@example(EQUAL)
def test_async_is_no_slower_than_parallel_and_parallel_faster_than_sync(task: Task) -> None:
    sync, parallel, asynchronous = (run(task, method) for method in (SYNC, PARALLEL, ASYNC))
    assert asynchronous.returned_s <= parallel.returned_s < sync.returned_s
    assert parallel.latency_s < sync.latency_s
    # To the answer's end there is one more trap and the answer, whose borders may cost a token more each.
    assert asynchronous.latency_s <= parallel.latency_s + 2 * TPOT + EXACT


# ---------------------------------------------------------------------- the order of calls

SLOW_WRITING = Setting(ttft_ms=310, tpot_ms=1, tool_ms=110)


@quickly
@given(
    st.lists(st.tuples(RUNNING, st.integers(100, 600)), min_size=2, max_size=6),
    st.randoms(use_true_random=False),
)
def test_no_order_is_better_than_longest_first(sizes: list[tuple[int, int]], chance: random.Random) -> None:
    """Up to a token for each call: where one is cut depends on what was written before."""
    task = independent(sizes)
    # The model believes what it is told of the times, so that it writes the calls in any order that is wanted.
    places = chance.sample(range(len(sizes)), len(sizes))
    misled = Task(
        tuple(Node(node.id, node.call, estimate_ms=place) for node, place in zip(task.calls, places, strict=True)),
        quote=False,
    )
    other = run(misled, ASYNC, SLOW_WRITING).returned_s
    assert other == pytest.approx(l_in_order(costs(misled, running(task), SLOW_WRITING)), abs=EXACT)
    best = run(task, ASYNC, SLOW_WRITING).returned_s
    assert best <= other + len(sizes) * SLOW_WRITING.tpot_ms / 1000 + EXACT


# ---------------------------------------------------------------------- stop and resume


def held(block: str) -> bool:
    """Whether a block's end comes with the token behind it: it could be the beginning of our stop sequence."""
    return Stops([STOP]).feed(block) != block


@quickly
@given(SETS, st.sampled_from([0, 59, 310, 600]))
def test_stop_and_resume_costs_a_ttft_for_each_resume(task: Task, ttft_ms: int) -> None:
    """The formulas again, with what a stateless API adds. Each stream's first token comes with its TTFT."""
    setting = Setting(ttft_ms=ttft_ms, tpot_ms=CLOUD.tpot_ms, tool_ms=110)
    runs = sum(running(task).values()) / 1000
    answer_s = ttft_ms / 1000 + sum(tokens([task.answer])) * TPOT
    writes = sum((sum(tokens([text])) - 1 + held(text)) * TPOT for text in longest_first(task))
    expected = writes + runs + (len(task.calls) - 1) * ttft_ms / 1000 + answer_s
    sync = run(task, METHODS["sync"], setting).latency_s
    assert sync == pytest.approx(expected, rel=0.02)
    assert sync == pytest.approx(expected, abs=EXACT)

    *_, trap = tokens([*longest_first(task), render_trap()])
    expected = l_parallel(costs(task, running(task), setting)) + trap * TPOT + answer_s
    parallel = run(task, METHODS["parallel"], setting).latency_s
    assert parallel == pytest.approx(expected, rel=0.02)
    assert parallel == pytest.approx(expected, abs=EXACT)


# ---------------------------------------------------------------------- bounds

STOP_AND_RESUME = [method for method in METHODS.values() if not method.inject]
CHAINS = st.lists(st.tuples(RUNNING, SIZES), min_size=1, max_size=4)


def chain(sizes: Sequence[tuple[int, int]]) -> Task:
    nodes: list[Node] = []
    for number, size in enumerate(sizes):
        nodes.append(call(number, *size, after=[node.id for node in nodes[-1:]]))
    return Task(tuple(nodes), quote=False)


@pytest.mark.parametrize("method", STOP_AND_RESUME, ids=lambda method: method.name)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(CHAINS)
def test_a_chain_alone_takes_the_critical_path(method: Method, sizes: list[tuple[int, int]]) -> None:
    """Nothing can be done at the same time, so every method needs what the bound says.

    A stop sequence costs a token for each call, which the bound leaves out; Sync-Parallel waits for the trap's end.
    """
    task = chain(sizes)
    blocks = [block(node) for node in task.calls]
    late = [tokens([text, render_trap()])[1] if method.policy == "parallel" else held(text) for text in blocks]
    expected = stop_and_resume(task, running(task), CLOUD) + sum(late) * TPOT
    assert run(task, method).latency_s == pytest.approx(expected, abs=EXACT)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(CHAINS)
def test_a_chain_alone_takes_the_bound_in_sequence(sizes: list[tuple[int, int]]) -> None:
    """Up to a token for each block."""
    task = chain(sizes)
    measured = run(task, METHODS["in-sequence"]).latency_s
    assert measured == pytest.approx(in_sequence(task, running(task), CLOUD), abs=(len(sizes) + 1) * TPOT + EXACT)


@st.composite
def graphs(draw: st.DrawFn) -> Task:
    """Any graph: each call may need some of those before it."""
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 7))):
        after = draw(st.lists(st.sampled_from(nodes), max_size=2, unique=True)) if nodes else []
        ms, size = draw(RUNNING), draw(SIZES)
        nodes.append(call(number, ms, size, [node.id for node in after]))
    return Task(tuple(nodes), quote=False)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(graphs(), st.sampled_from([0, 60, 310]))
def test_nothing_is_faster_than_its_bound(method: Method, task: Task, ttft_ms: int) -> None:
    """Up to a token for each block on the way: where one is cut depends on what was written before."""
    setting = Setting(ttft_ms=ttft_ms, tpot_ms=CLOUD.tpot_ms, tool_ms=110)
    bound = (in_sequence if method.inject else stop_and_resume)(task, running(task), setting)
    assert run(task, method, setting).latency_s >= bound - (len(task.calls) + 1) * TPOT
