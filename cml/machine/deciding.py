"""What the policy is asked, and what is kept of its answers."""

from __future__ import annotations

from collections.abc import Iterable

from ..tools import Owner
from .actions import Note, SetTimer
from .branching import Branching
from .costs import Forecast
from .events import Scheduling
from .policies import Move, View


class Deciding(Branching):
    """The part of a run that asks the policy for its move."""

    def _stuck(self) -> bool:
        """Whether a run that waits has nothing to wait for: then what is queued goes in whatever the policy says."""
        return self._waiting and not self._pending_calls() and self._news()

    def _urgent(self) -> bool:
        """Whether something is queued that waits for no policy."""
        kinds = {interrupt.scheduling for interrupt in self._queue}
        if Scheduling.INTERRUPT in kinds:
            return sum(not branch.settled for branch in self._branches) < self._limits.max_branches
        return Scheduling.WHEN_IDLE in kinds and self._waiting and not self._branches

    def _move(self) -> Move:
        calls = self._calls
        queued = sum(interrupt.scheduling is None for interrupt in self._deliverable())
        waiting = self._waiting
        decisive = waiting and not self._inject and (queued or self._branches)
        return self._policy(
            View(
                waiting=waiting,
                unstarted=len(calls.unstarted),
                running=calls.running,
                queued=queued,
                named=bool(self._named),
                satisfied=not any(map(calls.outstanding, self._named)),
                injectable=self._inject,
                branches=sum(not branch.settled for branch in self._branches),
                max_branches=self._limits.max_branches,
                unbegun=len(self._unbegun()) if self._branches else 0,
                affordable=bool(decisive) and self._affordable(),
                waited=self._alarmed,
                forecast=self._forecast() if decisive else None,
            )
        )

    def _forecast(self) -> Forecast:
        """What is expected now, by what was measured."""
        remaining = [
            self._costs.tools.of(call.spec).remaining(self._now - call.since)
            for call in self._calls.awaited()
            if call.spec.owner is Owner.SERVER
        ]
        known = [time for time in remaining if time is not None]
        return Forecast(
            ttft=self._costs.speed.ttft,
            next=min(known, default=None),
            leads=self._leads(interrupt.id for interrupt in self._deliverable()),
            age=max((self._now - branch.stream.since for branch in self._unbegun()), default=0.0),
            age_leads=self._leads(id for branch in self._unbegun() for id in branch.stream.told),
        )

    def _leads(self, told: Iterable[str]) -> float:
        """How likely it is that one of these is answered with a call."""
        calls = [self._calls.named(id) for id in told]
        return max(
            (
                1.0 if call is None or call.spec.owner is Owner.CLIENT else self._costs.tools.of(call.spec).leads
                for call in calls
            ),
            default=0.0,
        )

    def _decide(self, move: Move) -> None:
        """Note what was chosen and why, once for each result; wake up in time where the choice is to wait."""
        if move.wait is not None and self._alarm is None:
            self._alarm = self._now + move.wait
            self._do(SetTimer(move.wait))
        if move.choice != self._decided:
            self._decided = move.choice
            self._do(Note("decided", data={"choice": move.choice, "why": move.why}))
