"""Runs that wait for their client to come back with what its tools returned.

Each is found by the ids of the calls that the client was sent, which nobody can guess. It is kept for a while, and of
all the newest; what is given up here is not lost: a client that comes late has its run rebuilt from its messages.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from asynclm.cml.machine import RunError
from asynclm.proxy.client_tools import Function, Kit
from asynclm.proxy.driver import Driver
from asynclm.proxy.upstreams import Route


class ParkedRun(msgspec.Struct, eq=False):
    """A run, and the request whose answer it gives: `messages` as the client sent them, `prompt` as they are sent on.

    From the message with index `start` on it stands in the transcript. `answers` is how many answers the run has given.
    """

    id: str
    driver: Driver
    route: Route
    policy: str
    functions: tuple[Function, ...]
    messages: list[dict[str, Any]]
    prompt: list[dict[str, Any]]
    start: int
    kit: Kit | None
    answers: int = 1


class Parked:
    """The parked runs of a process: at most `most`, each for `keep_s` seconds. `give_up` ends one."""

    def __init__(self, keep_s: float, most: int, give_up: Callable[[ParkedRun, RunError], None]) -> None:
        self._keep_s = keep_s
        self._most = most
        self._give_up = give_up
        self._runs: OrderedDict[str, tuple[ParkedRun, asyncio.TimerHandle]] = OrderedDict()  # by run id
        self._of: dict[str, str] = {}  # the run of each call
        self._closed: RunError | None = None

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, run: ParkedRun) -> None:
        """Keep a run, until its client comes back for any of its calls. The oldest makes room if there are too many."""
        if self._closed is not None:
            self._give_up(run, self._closed)
            return
        timer = asyncio.get_running_loop().call_later(self._keep_s, self._expire, run.id)
        self._runs[run.id] = (run, timer)
        self._of.update(dict.fromkeys(run.driver.handed, run.id))
        while len(self._runs) > self._most:
            self._drop(next(iter(self._runs)), "Too many runs wait for their clients' tools")

    def take(self, calls: Iterable[str]) -> ParkedRun | None:
        """The run that sent one of these calls; it is the caller's from now on."""
        for call in calls:
            id = self._of.get(call)
            if id is not None:
                return self._remove(id)
        return None

    def close(self, error: RunError) -> list[ParkedRun]:
        """Keep none any more: hand over what is there. Those that are still to come are given up."""
        self._closed = error
        return [self._remove(id) for id in list(self._runs)]

    def _expire(self, id: str) -> None:
        self._drop(id, f"The client did not come back with its tools' results within {self._keep_s:g} s")

    def _drop(self, id: str, why: str) -> None:
        self._give_up(self._remove(id), RunError(f"{why}.", 504, "timeout_error", "parked_timeout"))

    def _remove(self, id: str) -> ParkedRun:
        run, timer = self._runs.pop(id)
        timer.cancel()
        for call in run.driver.handed:
            self._of.pop(call, None)
        return run
