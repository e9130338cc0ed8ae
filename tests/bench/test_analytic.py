"""The formulas against each other and against every order; token counts against the simulated model's own writing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.adapters.models.simulated.plan import Progress
from asynclm.adapters.models.simulated.task import Node, Task
from asynclm.adapters.models.simulated.writer import Writer
from asynclm.bench.analytic import (
    Cost,
    bounds,
    costs,
    in_sequence,
    l_async,
    l_in_order,
    l_parallel,
    l_sync,
    stop_and_resume,
    tokens,
)
from asynclm.bench.results import Setting
from asynclm.cml.render import STOP, render_call, render_interrupt, render_trap

# Whole numbers as floats: their sums are exact, so that equal means equal.
SECONDS = st.integers(1, 500).map(float)
CALLS = st.lists(st.builds(Cost, SECONDS, SECONDS), min_size=1, max_size=12)
FAST = Setting(ttft_ms=310, tpot_ms=5, tool_ms=110)
BODIES = st.text("abc ,'", max_size=40).map(lambda text: f"f(x={text!r})")


def lpt(calls: list[Cost]) -> list[Cost]:
    return sorted(calls, key=lambda call: -call.run_s)


@given(CALLS)
def test_async_is_no_slower_than_parallel(calls: list[Cost]) -> None:
    assert l_async(calls) <= l_parallel(calls)


@given(CALLS)
def test_parallel_is_faster_than_sync_from_two_calls_on(calls: list[Cost]) -> None:
    if len(calls) == 1:
        assert l_parallel(calls) == l_sync(calls) == l_async(calls)
    else:
        assert l_parallel(calls) < l_sync(calls)


@given(st.lists(st.builds(Cost, SECONDS, SECONDS), min_size=1, max_size=6))
def test_no_order_beats_longest_first(calls: list[Cost]) -> None:
    assert min(map(l_in_order, itertools.permutations(calls))) == l_in_order(lpt(calls)) == l_async(calls)


@given(CALLS)
def test_async_is_what_longest_first_takes(calls: list[Cost]) -> None:
    assert l_async(calls) == l_in_order(lpt(calls))


def test_the_gain_over_sync_grows_towards_its_limit() -> None:
    """L_sync / L_async approaches 1 + mean(E) / mean(G) for many calls."""
    few, many = ([Cost(0.075, 0.11)] * count for count in (2, 200))
    limit = 1 + 0.11 / 0.075
    assert l_sync(few) / l_async(few) < l_sync(many) / l_async(many) < limit
    assert l_sync(many) / l_async(many) == pytest.approx(limit, rel=0.01)


def test_nothing_takes_no_time() -> None:
    assert l_sync([]) == l_parallel([]) == l_async([]) == l_in_order([]) == 0


def written(task: Task, told: list[str]) -> list[int]:
    """How many tokens a live stream of the simulated model has written at each trap and at its end.

    At each of its traps it is told of one more of the calls.
    """
    writer = Writer(Progress([task]), live=True)
    counts = []
    while writer.finish_reason is None:
        writer.next()
        if writer.waiting:
            counts.append(writer.completion_tokens)
            writer.inject(render_interrupt(told.pop(0), "1"))
    return [*counts, writer.completion_tokens]


@given(st.lists(BODIES, min_size=1, max_size=4), st.sampled_from(["", "I begin."]), st.sampled_from(["Done.", ""]))
def test_tokens_are_counted_as_the_model_writes_them(bodies: list[str], say: str, answer: str) -> None:
    nodes = tuple(Node(f"c{number}", body, estimate_ms=-number) for number, body in enumerate(bodies))
    task = Task(nodes, say, answer, quote=False)
    blocks = [*([say] if say else []), *(render_call(node.id, node.call) for node in nodes)]
    counts = tokens([*blocks, *[render_trap()] * len(nodes), *([answer] if answer else [])])
    ends = list(itertools.accumulate(counts))
    first_trap = len(blocks)
    assert written(task, [node.id for node in nodes]) == [*ends[first_trap : first_trap + len(nodes)], ends[-1]]


@given(BODIES)
def test_a_trap_cut_by_its_stop_sequence_is_written_in_full(body: str) -> None:
    """The stop sequence is complete with the trap's last token: it takes text away, no time."""
    writer = Writer(Progress([Task((Node("a", body),))]), stop=[STOP])
    while writer.finish_reason is None:
        writer.next()
    assert writer.completion_tokens == sum(tokens([render_call("a", body), render_trap()]))


def test_costs_are_those_of_the_models_order() -> None:
    nodes = tuple(Node(name, f"f(x={name!r})", estimate_ms=ms) for name, ms in (("a", 30.0), ("b", 90.0), ("c", 60.0)))
    found = costs(Task(nodes), {"a": 30, "b": 90, "c": 60}, FAST)
    counts = tokens([render_call(node.id, node.call) for node in (nodes[1], nodes[2], nodes[0])])
    assert [call.run_s for call in found] == [0.09, 0.06, 0.03]
    assert [call.write_s for call in found] == pytest.approx(
        [(counts[0] - 1) * 0.005, counts[1] * 0.005, counts[2] * 0.005]
    )
    said = costs(Task(nodes, say="Well then."), {"a": 30, "b": 90, "c": 60}, FAST)
    assert sum(call.write_s for call in said) > sum(call.write_s for call in found)


def test_costs_are_of_independent_calls_only() -> None:
    with pytest.raises(ValueError, match="independent"):
        costs(Task((Node("a", "f()"), Node("b", "f()", after=("a",)))), {"a": 1, "b": 1}, FAST)


# `b` and `c` need `a`, `d` needs both.
DIAMOND = Task(
    (
        Node("a", "f()"),
        Node("b", "f()", after=("a",)),
        Node("c", "f()", after=("a",)),
        Node("d", "f()", after=("b", "c")),
    ),
    quote=False,
)
RUNNING = {"a": 100.0, "b": 300.0, "c": 50.0, "d": 200.0}
CALL = 0.035  # `[CALL] a [HEAD] f() [END]` is cut into 7 tokens: 3 5 4 2 6 3 2
LINE_AND_CALL = 0.035  # with the line break 26 characters, which the rhythm of 27 a round still takes
ANSWER = 0.015  # `Done.` is 2, and one ends the sequence
FIRST = 0.005  # the first token, from which time is counted


def test_stop_and_resume_is_the_longest_chain_with_a_ttft_a_step() -> None:
    steps = [CALL + 0.1, 0.31 + CALL - FIRST + 0.3, 0.31 + CALL - FIRST + 0.2, 0.31 + ANSWER - FIRST]
    assert stop_and_resume(DIAMOND, RUNNING, FAST) == pytest.approx(sum(steps) - FIRST)


@pytest.mark.parametrize(
    ("beside_ms", "expected"),
    [
        (1.0, 3 * LINE_AND_CALL + 0.6 + ANSWER),  # the chain
        (690.0, 4 * LINE_AND_CALL + 0.6 + ANSWER),  # the chain, begun behind the call that has a longer tail
        (5000.0, LINE_AND_CALL + 5 + ANSWER),  # that call alone
    ],
)
def test_in_sequence_is_what_the_longest_tails_take(beside_ms: float, expected: float) -> None:
    beside = Task((*DIAMOND.calls, Node("e", "f()")), quote=False)
    assert in_sequence(beside, {**RUNNING, "e": beside_ms}, FAST) == pytest.approx(expected - FIRST)


@given(st.lists(st.integers(30, 500).map(float), min_size=1, max_size=8))
def test_in_sequence_is_l_async_for_independent_calls(running: list[float]) -> None:
    """Up to a token for each block, whose borders depend on where it stands."""
    nodes = tuple(Node(f"c{number}", "f(x='something')", estimate_ms=ms) for number, ms in enumerate(running))
    task = Task(nodes, quote=False)
    found = bounds(task, {node.id: node.estimate_ms for node in nodes}, FAST)
    assert found["in_sequence"] == pytest.approx(found["l_async"] + ANSWER, abs=(len(nodes) + 1) * 0.005)


def test_the_formulas_are_given_for_independent_calls_only() -> None:
    assert set(bounds(DIAMOND, RUNNING, FAST)) == {"stop_and_resume", "in_sequence"}
    assert set(bounds(Task((DIAMOND.calls[0],), quote=False), RUNNING, FAST)) == {
        "stop_and_resume",
        "in_sequence",
        "l_sync",
        "l_parallel",
        "l_async",
    }


def test_an_answer_that_quotes_results_must_be_told() -> None:
    quoting = Task(DIAMOND.calls)
    with pytest.raises(ValueError, match="quotes"):
        stop_and_resume(quoting, RUNNING, FAST)
    longer = stop_and_resume(quoting, RUNNING, FAST, answer="Done.\na = 1\nb = 1\nc = 1\nd = 1")
    assert longer > stop_and_resume(DIAMOND, RUNNING, FAST)


def test_a_task_without_calls_is_its_text() -> None:
    task = Task((), say="I have nothing to do.", answer="Done.")
    counts = tokens([task.say, task.answer])
    assert stop_and_resume(task, {}, FAST) == pytest.approx(sum(counts) * 0.005)
    assert in_sequence(task, {}, FAST) == pytest.approx(sum(counts) * 0.005, abs=0.005)
