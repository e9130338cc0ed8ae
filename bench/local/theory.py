"""The paper's formulas (section 6.3) from what was measured in a run: G of each block, and E of each call.

G is the sum of the steps in which a block's tokens were written, as they were drawn. Where an interrupt went in between
two tokens the step is counted as long as a plain one is (the median): what interrupts cost stands apart, because the
formulas don't know of it. The first token, from which time is counted, costs nothing. E is from a call's start to its
result, by the run's timeline.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from asynclm.adapters.models.simulated.task import Task
from asynclm.bench.analytic import Cost, Timed, l_async, l_parallel, l_sync, longest_tail_first
from asynclm.cml.timeline import Timeline

from .results import Measured
from .watch import Written


def measured(task: Task, log: Sequence[Written], timeline: Timeline, began_s: float) -> Measured:
    """From the log and the timeline of a run that began at that time (s, by the log's clock).

    Raises ValueError for a run that did not do the whole task.
    """
    written = sorted(log)
    plain = [later.at - earlier.at for earlier, later in pairwise(written) if later.plain]
    step_s = statistics.median(plain) if plain else 0.0
    blocks: dict[tuple[str, str | None], float] = {}
    for number, token in enumerate(written):
        took = (token.at - written[number - 1].at if token.plain else step_s) if number else 0.0
        place = (token.kind, token.id)
        blocks[place] = blocks.get(place, 0.0) + took
    running = _running(timeline)
    missing = [node.id for node in task.calls if node.id not in running or ("call", node.id) not in blocks]
    if missing:
        raise ValueError(f"the run did not finish {', '.join(missing)}")
    calls = [Timed(node.id, Cost(blocks["call", node.id], running[node.id]), node.after) for node in task.calls]
    gaps = _interrupted(written, timeline, began_s, step_s)
    first_s = min((entry.t for entry in timeline.entries if entry.kind == "first_token"), default=0.0)
    return Measured(
        calls=tuple(calls),
        answer_s=blocks.get(("text", None), 0.0) + step_s,  # and the token that ends it
        step_s=step_s,
        tokens=len(written) + 1,
        trap_tokens=sum(token.kind == "trap" for token in written),
        interrupts=len(gaps),
        interrupts_s=sum(gaps),
        returned_s=max((entry.t for entry in timeline.entries if entry.kind == "result"), default=first_s) - first_s,
    )


def formulas(found: Measured, estimates: Mapping[str, float]) -> dict[str, float]:
    """What theory says of these times (s), by name; all but the paper's own three with the answer.

    `in_sequence` is the lower bound of `bench.analytic`. `schedule` is what an engine takes that writes the longest
    call first among those that are ready, as the model does, where results cost nothing. `sync`: one after the other.
    For independent calls also `l_sync`, `l_parallel` and `l_async`, which end with the last result.
    """
    costs = [call.cost for call in found.calls]
    named = {
        "in_sequence": longest_tail_first(found.calls, found.answer_s),
        "schedule": schedule(found.calls, estimates) + found.answer_s,
        "sync": l_sync(costs) + found.answer_s,
    }
    if not any(call.after for call in found.calls):
        named |= {"l_sync": l_sync(costs), "l_parallel": l_parallel(costs), "l_async": l_async(costs)}
    return named


def schedule(calls: Sequence[Timed], estimates: Mapping[str, float]) -> float:
    """When the last result is there (s) if each call is written as soon as the writer is free and its turn has come:
    of those whose needs are met the one with the longest estimate.
    """
    now = 0.0
    returned: dict[str, float] = {}
    left = list(calls)
    while left:
        ready = [call for call in left if all(returned.get(name, now + 1) <= now for name in call.after)]
        if not ready:
            now = min(time for time in returned.values() if time > now)
            continue
        call = max(ready, key=lambda call: estimates[call.id])
        left.remove(call)
        now += call.cost.write_s
        returned[call.id] = now + call.cost.run_s
    return max(returned.values(), default=0.0)


def _running(timeline: Timeline) -> dict[str, float]:
    """E by the call's id."""
    ids: dict[int, str] = {}
    began: dict[int, float] = {}
    found: dict[str, float] = {}
    for entry in timeline.entries:
        if entry.call is None:
            continue
        if entry.kind == "call" and entry.data["id"] is not None:
            ids[entry.call] = entry.data["id"]
        elif entry.kind == "dispatched":
            began[entry.call] = entry.t
        elif entry.kind == "result" and entry.call in ids and entry.call in began:
            found[ids[entry.call]] = entry.t - began[entry.call]
    return found


def _interrupted(written: Sequence[Written], timeline: Timeline, began_s: float, step_s: float) -> list[float]:
    """What each time that interrupts went in took: from when both they and the place for them were there."""
    told = [began_s + entry.t for entry in timeline.entries if entry.kind == "interrupt"]
    gaps = []
    for earlier, later in pairwise(written):
        if later.plain:
            continue
        here = [at for at in told if earlier.at <= at <= later.at]
        due = max(earlier.at + step_s, max(here, default=earlier.at))
        gaps.append(max(later.at - due, 0.0))
    return gaps
