"""When calls start, and when their results are delivered: the policies, as small functions over what the machine sees.

A policy is asked whenever something it could act on has changed, and never inside a critical section's block. What it
answers is a `Move`. It holds no state; the machine carries it out and keeps the run alive by itself (a run that waits
for nothing is never left waiting).

`sync` and `parallel` are the baselines that everything is compared with; `immediate` is the paper's own (sections 3,
5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from .costs import Forecast


class View(msgspec.Struct, frozen=True, gc=False):
    """What a policy may look at.

    `waiting`: the model has trapped, ended, or was stopped; otherwise it writes. `unstarted`, `running`: calls with
    an id that have not begun, or not returned. `queued`: results not yet delivered. `named`: the model waits for
    certain calls, and `satisfied`: all of those have returned (true where it named none). `injectable`: delivery
    costs no resume. `branches`: how many are open, and may be at most (`max_branches`); `unbegun` of them have not
    written yet; `affordable`: one more is within the run's bounds. `waited`: since the last result, the time for which
    the policy chose to wait has passed. `forecast` is there when the model waits for something that could be delivered.
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
    unbegun: int = 0
    affordable: bool = True
    waited: bool = False
    forecast: Forecast | None = None


class Move(msgspec.Struct, frozen=True, gc=False):
    """Start the calls that have not begun; stop the stream here; deliver all that is queued, or open a branch with it.

    `ahead`: with that branch, open the stream that is needed if no branch brings a further call. `merge`: first give up
    the branches whose model has not begun, so that what they were told goes in with the rest. `wait`: ask again after
    so many seconds. `choice` and `why` go into the timeline.
    """

    start: bool = False
    stop: bool = False
    deliver: bool = False
    fork: bool = False
    ahead: bool = False
    merge: bool = False
    wait: float | None = None
    choice: str = ""
    why: str = ""


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
    last = view.unstarted + view.running == 0
    if last and not view.branches:
        return Move(start=True, deliver=True)  # nothing runs beside it
    return Move(start=True, fork=view.affordable and view.branches < view.max_branches, ahead=last)


# The part of a time to first token that `auto` gives away to save a whole request. Measured: at 0.1 the speed-up over
# `parallel` falls by a hundredth, at 0.03 by nothing that shows.
_TRIFLE: Final = 0.03


def auto(view: View) -> Move:
    """The fastest that is known, and of what is about as fast the cheapest.

    Where delivery costs no resume that is `immediate`. Elsewhere a branch for each result, as in `fork`, unless what
    it would gain is a trifle beside a time to first token: then the results go in together. So they do once the run's
    bounds leave no room for branches.
    """
    if view.injectable:
        return immediate(view)
    forecast = view.forecast
    if not view.waiting or not view.queued or not view.satisfied or forecast is None:
        return Move(start=True)
    last = view.unstarted + view.running == 0
    if last and not view.branches:
        return Move(start=True, deliver=True, choice="deliver", why="nothing else is pending")
    resume = "how long a resume takes is unknown" if forecast.ttft is None else f"a resume takes {_ms(forecast.ttft)}"
    trifle = 0.0 if forecast.ttft is None else _TRIFLE * forecast.ttft
    # What a chain of calls loses by waiting is lost only if the results lead on to a further call.
    alone = last and view.unbegun == view.branches  # then what is merged needs no branch
    if view.unbegun and forecast.age * forecast.age_leads <= trifle and (alone or view.affordable):
        why = f"a branch was opened {_ms(forecast.age)} ago and has not begun; {resume}"
        return Move(start=True, merge=True, deliver=alone, fork=not alone, ahead=last, choice="merge", why=why)
    if not view.affordable:
        return Move(start=True, choice="coalesce", why="the run's bounds leave no room for a further branch")
    if view.branches >= view.max_branches:
        return Move(start=True, choice="coalesce", why=f"{view.branches} branches are open, as many as may be")
    patience = trifle / max(forecast.leads, _TRIFLE)
    awaited = "at an unknown time" if forecast.next is None else f"in {_ms(forecast.next)}"
    why = f"the next result is expected {awaited}; {resume}; {forecast.leads:.0%} of such results led to a call"
    if not last and not view.waited and forecast.next is not None and forecast.next <= patience:
        return Move(start=True, wait=patience, choice="wait", why=why)
    if last:
        why = f"nothing else is pending, but what {view.branches} open branches bring is not known yet; {resume}"
    return Move(start=True, fork=True, ahead=last, choice="fork", why=why)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


POLICIES: Mapping[str, Policy] = {
    "sync": sync,
    "parallel": parallel,
    "immediate": immediate,
    "coalesce": coalesce,
    "fork": fork,
    "auto": auto,
}
