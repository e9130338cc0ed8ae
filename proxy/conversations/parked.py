"""Runs that wait for their client to come back with what its tools returned, in the process that runs their calls.

Each is found by the ids of the calls that the client was sent, which nobody can guess, and only with the key that began
it. It is kept for a while, and of all the newest; what is given up here is not lost: it can go on from the store
(`depot.py`), or be rebuilt from the client's messages.
"""

from __future__ import annotations

import asyncio
import enum
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from asynclm.proxy.client_tools import Function, Kit
from asynclm.proxy.conversations.depot import Deposit
from asynclm.proxy.conversations.inherited import Inherited
from asynclm.proxy.conversations.waiting import Waiting
from asynclm.proxy.driver import Driver
from asynclm.proxy.upstreams import Route


class ParkedRun(msgspec.Struct, eq=False):
    """A run, and the request whose answer it gives: `messages` as the client sent them, `sent` as they are sent on, but
    for the instructions of the `kit`.

    From the message with index `start` on it stands in the transcript. `answers` is how many answers the run has given.
    While it is parked, `waiting` says what for; `deposits` are what the store has of it, the last one being that of
    now, and `inherited` the calls that it waits for elsewhere.
    """

    id: str
    driver: Driver
    route: Route
    policy: str
    functions: tuple[Function, ...]
    messages: list[dict[str, Any]]
    sent: list[dict[str, Any]]
    start: int
    kit: Kit | None
    answers: int = 1
    waiting: Waiting | None = None
    deposits: list[Deposit] = []
    inherited: Inherited | None = None


class Why(enum.Enum):
    """Why a run is not kept any longer."""

    LATE = enum.auto()  # its client did not come in time
    MANY = enum.auto()  # a newer one needs the room


class Parked:
    """The parked runs of a process: at most `most`, each for `keep_s` seconds. `give_up` ends one."""

    def __init__(self, keep_s: float, most: int, give_up: Callable[[ParkedRun, Why], None]) -> None:
        self._keep_s = keep_s
        self._most = most
        self._give_up = give_up
        self._runs: OrderedDict[str, tuple[ParkedRun, asyncio.TimerHandle]] = OrderedDict()  # by run id
        self._of: dict[str, str] = {}  # the run of each call

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, run: ParkedRun) -> None:
        """Keep a run, until its client comes back for any of its calls. The oldest makes room if there are too many."""
        timer = asyncio.get_running_loop().call_later(self._keep_s, self._drop, run.id, Why.LATE)
        self._runs[run.id] = (run, timer)
        self._of.update(dict.fromkeys(run.driver.handed, run.id))
        while len(self._runs) > self._most:
            self._drop(next(iter(self._runs)), Why.MANY)

    def take(self, calls: Iterable[str], key: str | None) -> ParkedRun | None:
        """The run that sent one of these calls to the client with that key; it is the caller's from now on."""
        for call in calls:
            id = self._of.get(call)
            if id is not None and self._runs[id][0].driver.caller.key == key:
                return self.remove(id)
        return None

    def remove(self, id: str) -> ParkedRun | None:
        """Keep that run no longer."""
        found = self._runs.pop(id, None)
        if found is None:
            return None
        run, timer = found
        timer.cancel()
        for call in run.driver.handed:
            self._of.pop(call, None)
        return run

    def close(self) -> list[ParkedRun]:
        """Hand over all that are there."""
        return [run for id in list(self._runs) if (run := self.remove(id)) is not None]

    def _drop(self, id: str, why: Why) -> None:
        run = self.remove(id)
        if run is not None:
            self._give_up(run, why)
