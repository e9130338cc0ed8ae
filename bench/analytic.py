"""What theory says a task takes: the paper's formulas for independent calls, and lower bounds for any graph of calls.

All times are seconds from the model's first token to its last (paper, section 6), so the first token itself costs
nothing. Nothing here is measured. A call is written in G seconds and runs for E; both are known exactly, because the
simulated model cuts its text into tokens by rule (`adapters/models/simulated/tokens.py`) and writes one each TPOT.

*Formulas* (section 6.3), for independent calls in one sequence. They end with the last result; the trap in which the
model waits, the answer, and a TTFT for every resume come on top where there are any.

*Bounds*, for the whole task with its answer:

- `stop_and_resume`: no call can be written before its stream's first token, and no stream that knows a result can be
  opened before the result is there. So nothing is faster than the longest chain of the graph alone, with a TTFT for
  each further step.
- `in_sequence`: no TTFT after the first, but there is one writer. After a call is written its *tail* is still to come:
  its own run, and whatever chain follows it, to the answer's end. If the calls needed each other no more than
  through those tails, longest tail first would be the best order, as LPT is for independent calls (where the tail is
  E, and the bound is the paper's L_async); so nothing is faster than that. With one chain it is the chain.

Where a token border falls depends on what was written before, so a real run may take a token more or less for each
block than a bound counts for it. Not counted: an API that watches for a stop sequence holds back what could be the
beginning of one, so that a block whose end looks like it is known a token late.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from asynclm.adapters.models.simulated.task import Task
from asynclm.adapters.models.simulated.tokens import PERIOD, Splitter
from asynclm.bench.results import Setting
from asynclm.cml.render import render_call

_STOP_TOKEN: Final = 1  # which ends the answer, and takes its time like any other


class Cost(msgspec.Struct, frozen=True):
    """One call, in seconds: `write_s` is G(f) in the paper, `run_s` is E(f)."""

    write_s: float
    run_s: float


class Timed(msgspec.Struct, frozen=True):
    """One call of a graph: its times, and the calls whose results it needs."""

    id: str
    cost: Cost
    after: tuple[str, ...] = ()


def l_sync(calls: Iterable[Cost]) -> float:
    """L_sync = sum G + sum E: written and run one after the other."""
    return sum(call.write_s + call.run_s for call in calls)


def l_parallel(calls: Sequence[Cost]) -> float:
    """L_parallel = sum G + max E: written, then run together."""
    return sum(call.write_s for call in calls) + max((call.run_s for call in calls), default=0.0)


def l_async(calls: Sequence[Cost]) -> float:
    """L_async = max over f of E(f) + sum of G(g) for all g with E(g) >= E(f): each runs once written, under LPT."""
    return max(
        (call.run_s + sum(each.write_s for each in calls if each.run_s >= call.run_s) for call in calls), default=0.0
    )


def l_in_order(calls: Iterable[Cost]) -> float:
    """Each runs once it is written, written in the order given. The least over all orders is `l_async`."""
    written = last = 0.0
    for call in calls:
        written += call.write_s
        last = max(last, written + call.run_s)
    return last


def tokens(blocks: Iterable[str], *, begun: int = 0) -> list[int]:
    """How many tokens the simulated model writes each of these blocks in, one after the other in one stream.

    A line break goes before each but a stream's first. `begun` is how many tokens the stream has already.
    """
    splitter = Splitter(begun)
    counts = []
    for block in blocks:
        count = sum(1 for _ in splitter.split(f"\n{block}" if begun else block))
        begun += count
        counts.append(count)
    return counts


def costs(task: Task, running_ms: Mapping[str, float], setting: Setting) -> list[Cost]:
    """G and E of a task's calls in the order in which the model writes them in one stream: longest estimate first.

    `running_ms` has each call's running time by id, in ms. Raises ValueError if a call needs another one's result.
    """
    if any(node.after for node in task.calls):
        raise ValueError("the paper's formulas are for independent calls; this task has some that wait for others")
    tpot_s = setting.tpot_ms / 1000
    ordered = sorted(task.calls, key=lambda node: -node.estimate_ms)
    texts = [task.say] if task.say else []
    written = tokens([*texts, *(render_call(node.id, node.call) for node in ordered)])
    blocks = [count * tpot_s for count in written]
    if blocks:
        blocks[0] -= tpot_s  # the first token, from which time is counted
    lead = sum(blocks[: len(texts)])
    found = []
    for node, write_s in zip(ordered, blocks[len(texts) :], strict=True):
        found.append(Cost(lead + write_s, running_ms[node.id] / 1000))
        lead = 0.0
    return found


def stop_and_resume(
    task: Task, running_ms: Mapping[str, float], setting: Setting, *, answer: str | None = None
) -> float:
    """The critical path where every result costs a resume: the longest chain alone, and the answer.

    Each step is written at the beginning of a stream of its own, the first behind what the task has to `say`.
    `running_ms` has each call's running time by id, in ms; `answer` is the whole answer, where it quotes results.
    """
    ttft_s, tpot_s = setting.ttft_ms / 1000, setting.tpot_ms / 1000
    lead = [task.say] if task.say else []
    returned: dict[str, float] = {}
    for node in task.calls:  # each comes after those that it needs
        text = render_call(node.id, node.call)
        if node.after:
            begun = max(returned[name] for name in node.after) + ttft_s
            count = sum(tokens([text]))
        else:
            begun = 0.0
            count = sum(tokens([*lead, text]))
        returned[node.id] = begun + (count - 1) * tpot_s + running_ms[node.id] / 1000
    last = _answer(task, answer)
    if not returned:
        return (sum(tokens([*lead, last])) - 1 + _STOP_TOKEN) * tpot_s
    return max(returned.values()) + ttft_s + (sum(tokens([last])) - 1 + _STOP_TOKEN) * tpot_s


def in_sequence(task: Task, running_ms: Mapping[str, float], setting: Setting, *, answer: str | None = None) -> float:
    """The least time where results are put into the live sequence: one writer, longest tail first, and the answer.

    Parameters as for `stop_and_resume`.
    """
    tpot_s = setting.tpot_ms / 1000
    end_s = (_further(_answer(task, answer)) + _STOP_TOKEN) * tpot_s
    writing = {node.id: _further(render_call(node.id, node.call)) * tpot_s for node in task.calls}
    timed = [Timed(node.id, Cost(writing[node.id], running_ms[node.id] / 1000), node.after) for node in task.calls]
    said_s = sum(tokens([task.say])) * tpot_s if task.say else 0.0
    return said_s + longest_tail_first(timed, end_s) - tpot_s


def longest_tail_first(calls: Sequence[Timed], end_s: float) -> float:
    """The same bound from times: each call stands behind those that it needs, and the answer takes `end_s` to write."""
    tails = []
    following: dict[str, float] = {}  # by id: the longest chain behind that call's result
    for call in reversed(calls):
        tail_s = call.cost.run_s + following.get(call.id, end_s)
        for name in call.after:
            following[name] = max(following.get(name, 0.0), call.cost.write_s + tail_s)
        tails.append(Cost(call.cost.write_s, tail_s))
    return l_async(tails) if tails else end_s


def bounds(
    task: Task, running_ms: Mapping[str, float], setting: Setting, *, answer: str | None = None
) -> dict[str, float]:
    """Every value here that goes for the task, by name.

    `stop_and_resume` and `in_sequence`; where no call needs another one's result also the paper's `l_sync`,
    `l_parallel` and `l_async`. Parameters as for `stop_and_resume`.
    """
    found = {
        "stop_and_resume": stop_and_resume(task, running_ms, setting, answer=answer),
        "in_sequence": in_sequence(task, running_ms, setting, answer=answer),
    }
    if not any(node.after for node in task.calls):
        calls = costs(task, running_ms, setting)
        found |= {"l_sync": l_sync(calls), "l_parallel": l_parallel(calls), "l_async": l_async(calls)}
    return found


def _answer(task: Task, answer: str | None) -> str:
    if answer is not None:
        return answer
    if task.quote and task.calls:
        raise ValueError("the task's answer quotes its results: say what it is")
    return task.answer


def _further(text: str) -> int:
    """The tokens of a block that doesn't open its stream."""
    return sum(tokens([text], begun=PERIOD))
