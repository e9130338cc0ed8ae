"""The runs of this process: those that are under way, and the timelines of the last ones."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Final, Literal

import msgspec

from asynclm.cml.timeline import Timeline, from_jsonl, to_jsonl
from asynclm.proxy.driver import Driver

_MAX_BYTES: Final = 64 * 2**20


Status = Literal["running", "parked", "finished", "failed", "unfinished"]


class Summary(msgspec.Struct, omit_defaults=True):
    """One run in a list. `created` is Unix time (s), `duration_s` the time from the request to the end.

    `unfinished` is a recorded run of another process that goes on there, or broke off with it.
    """

    id: str
    model: str
    policy: str
    created: int
    status: Status
    duration_s: float | None = None


class Registry:
    """Runs by id. Of the finished ones the last `keep` are remembered, written down compactly, in 64 MiB at most."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._live: dict[str, tuple[Timeline, Driver]] = {}
        self._parked: set[str] = set()  # of those
        self._past: OrderedDict[str, tuple[Summary, bytes]] = OrderedDict()
        self._bytes = 0  # of the finished ones
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self, timeline: Timeline, driver: Driver) -> None:
        """A run starts."""
        self._live[timeline.run] = (timeline, driver)
        self._idle.clear()

    def park(self, id: str) -> None:
        """A run has given its answer, and waits for its client to come back."""
        self._parked.add(id)
        self._look()

    def resume(self, id: str) -> None:
        """The client of a parked run has come back."""
        self._parked.discard(id)
        self._idle.clear()

    def end(self, id: str, *, failed: bool) -> None:
        """A run is over."""
        timeline, _ = self._live.pop(id)
        self._parked.discard(id)
        self._look()
        duration = timeline.entries[-1].t if timeline.entries else 0.0
        written = to_jsonl(timeline)
        if id in self._past:  # it was here before another process had it
            self._bytes -= len(self._past.pop(id)[1])
        self._past[id] = (_summary(timeline, "failed" if failed else "finished", duration), written)
        self._bytes += len(written)
        while len(self._past) > self._keep or self._bytes > _MAX_BYTES:
            _, (_, oldest) = self._past.popitem(last=False)
            self._bytes -= len(oldest)

    def _look(self) -> None:
        if len(self._live) == len(self._parked):
            self._idle.set()

    def driver(self, id: str) -> Driver | None:
        """The driver of a run that is under way, or parked."""
        found = self._live.get(id)
        return found[1] if found else None

    def timeline(self, id: str) -> Timeline | None:
        """A run's timeline, so far if it is under way."""
        if id in self._live:
            return self._live[id][0]
        if id in self._past:
            return from_jsonl(self._past[id][1].splitlines())
        return None

    def known(self, id: str) -> bool:
        """Whether there is, or lately was, such a run."""
        return id in self._live or id in self._past

    def summaries(self) -> list[Summary]:
        """All known runs, the newest first."""
        now = [
            _summary(timeline, "parked" if id in self._parked else "running", None)
            for id, (timeline, _) in self._live.items()
        ]
        past = [summary for summary, _ in self._past.values()]
        return [*reversed(now), *reversed(past)]

    def live(self) -> list[Driver]:
        """The drivers of all runs that are under way, those that are parked left out."""
        return [driver for id, (_, driver) in self._live.items() if id not in self._parked]

    async def idle(self) -> None:
        """Wait until no run is under way."""
        await self._idle.wait()


def new_timeline(id: str, model: str, policy: str) -> Timeline:
    """The timeline of a run that starts now."""
    return Timeline(id, model, policy, int(time.time()), [])


def _summary(timeline: Timeline, status: Status, duration: float | None) -> Summary:
    return Summary(timeline.run, timeline.model, timeline.policy, timeline.created, status, duration)
