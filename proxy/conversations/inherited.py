"""Calls of a run that goes on here, while the process that began them still runs them, or has died."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

from asynclm.cml.machine import events as ev
from asynclm.cml.tools import CallError, Owner, error_value
from asynclm.proxy.conversations.depot import Depot, Found
from asynclm.proxy.result import Result

_LOOK_S: Final = 0.01  # how soon it looks again, at first
_LOOK_MAX_S: Final = 0.25
_SLOWER: Final = 1.5
_LEASES: Final = 2.0  # how long a store may not answer, before the calls count as lost

_UNKNOWN: Final = CallError(
    "outcome_unknown",
    "the proxy that ran this call was lost: it may have been carried out or not, so it was not run again; find out "
    "before you repeat it",
)


class Inherited:
    """The open calls of a run that was `found`; those in `unsafe` must not run twice.

    `ours`: this is the run that goes on, not a copy of it. Then its end is the end of its calls.
    """

    def __init__(self, depot: Depot, found: Found, unsafe: Collection[int], *, ours: bool) -> None:
        self._depot = depot
        self._id = found.id
        self._seen = found.seen
        self._alive = found.alive
        self._unsafe = unsafe
        self._ours = ours
        returned = {event.call for event in found.happened if isinstance(event, ev.ResultArrived)}
        self._open = {call.number for call in found.record.state.calls if call.owner is Owner.SERVER} - returned
        self._awaited: dict[int, asyncio.Future[Result | None]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def result(self, call: int) -> Result | None:
        """What came of a call, when it is known; None if nobody runs it and it may be run here."""
        if not self._alive:
            return self._lost(call)
        future: asyncio.Future[Result | None] = asyncio.get_running_loop().create_future()
        self._awaited[call] = future
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="wait for calls of another proxy")
        return await future

    async def aclose(self) -> None:
        """The run has ended: what it still waits for is not wanted any more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))
        if self._alive and self._ours and self._open:
            await self._depot.over(self._id)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        answered = loop.time()
        pause = _LOOK_S
        while any(not future.done() for future in self._awaited.values()):
            reply = await self._depot.look(self._id, self._seen)
            if reply is not None:
                answered = loop.time()
                alive, happened = reply
                self._seen += len(happened)
                for event in happened:
                    if isinstance(event, ev.ResultArrived):
                        self._resolve(event)
                if not alive:
                    break
            elif loop.time() - answered > _LEASES * self._depot.lease_s:
                break
            await asyncio.sleep(pause)
            pause = min(pause * _SLOWER, _LOOK_MAX_S)
        else:
            self._looking = None  # until another one is waited for
            return
        self._alive = False
        for call, future in self._awaited.items():
            if not future.done():
                future.set_result(self._lost(call))

    def _resolve(self, event: ev.ResultArrived) -> None:
        self._open.discard(event.call)
        future = self._awaited.get(event.call)
        if future is not None and not future.done():
            future.set_result(Result(event.ok, event.value, event.ms))

    def _lost(self, call: int) -> Result | None:
        if call not in self._unsafe:
            return None
        return Result(False, error_value(_UNKNOWN), 0.0, error=_UNKNOWN.type)
