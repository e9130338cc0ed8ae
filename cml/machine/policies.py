"""When calls start, and when their results are delivered: the policies, as small functions over what the machine sees.

A policy is asked whenever something it could act on has changed, and never inside a critical section's block. What it
answers is a `Move`. It holds no state; the machine carries it out and keeps the run alive by itself (a run that waits
for nothing is never left waiting).

`sync` and `parallel` are the baselines that everything is compared with; `immediate` is the paper's own (sections 3,
5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec


class View(msgspec.Struct, frozen=True, gc=False):
    """What a policy may look at.

    `waiting`: the model has trapped, ended, or was stopped; otherwise it writes. `unstarted`, `running`: calls with
    an id that have not begun, or not returned. `queued`: results not yet delivered. `named`: the model waits for
    certain calls, and `satisfied`: all of those have returned (true where it named none). `injectable`: delivery
    costs no resume. `branches`: how many are open, and may be at most (`max_branches`).
    """

    waiting: bool
    unstarted: int
    running: int
    queued: int
    named: bool
    satisfied: bool
    injectable: bool
    branches: int = 0
    max_branches: int = 1


class Move(msgspec.Struct, frozen=True, gc=False):
    """Start the calls that have not begun; stop the stream here; deliver all that is queued, or open a branch with
    it.
    """

    start: bool = False
    stop: bool = False
    deliver: bool = False
    fork: bool = False


Policy = Callable[[View], Move]


def sync(view: View) -> Move:
    """One call at a time: the stream stops where a block ends, and goes on with the result."""
    if not view.waiting:
        return Move(stop=view.unstarted + view.queued > 0)
    return Move(start=True, deliver=view.queued > 0 and view.unstarted + view.running == 0)


def parallel(view: View) -> Move:
    """Sync-Parallel: calls start when the stream ends or traps; the results go in together when the last is there."""
    if not view.waiting:
        return Move()
    return Move(start=True, deliver=view.queued > 0 and view.unstarted + view.running == 0)


def immediate(view: View) -> Move:
    """The paper's: calls start when their block ends; each result goes in at the first moment outside a block."""
    return Move(start=True, deliver=view.queued > 0 and (not view.waiting or view.satisfied))


def coalesce(view: View) -> Move:
    """Calls start when their block ends; at a trap or the end, the results of all that are pending go in at once."""
    done = view.unstarted + view.running == 0 or (view.named and view.satisfied)
    return Move(start=True, deliver=view.waiting and view.queued > 0 and done)


def fork(view: View) -> Move:
    """Make before break: at a trap each result, as it returns, opens a branch beside those that are open already.

    A live sequence has no use for that: there it is `immediate`.
    """
    if view.injectable:
        return immediate(view)
    if not view.waiting or not view.queued or not view.satisfied:
        return Move(start=True)
    if view.branches == 0 and view.unstarted + view.running == 0:
        return Move(start=True, deliver=True)  # the last result: nothing runs beside it
    return Move(start=True, fork=view.branches < view.max_branches)


def auto(view: View) -> Move:
    """The cheapest that is known: `immediate` where delivery costs no resume, `coalesce` where it does."""
    return immediate(view) if view.injectable else coalesce(view)


POLICIES: Mapping[str, Policy] = {
    "sync": sync,
    "parallel": parallel,
    "immediate": immediate,
    "coalesce": coalesce,
    "fork": fork,
    "auto": auto,
}
