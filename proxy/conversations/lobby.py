"""Where parked runs wait: alive in this process, and kept in the store for when another one is asked, or this one ends.

Which of the two goes on when the client comes back:

- the process that has the run alive, if the request reaches it and no other has taken the run;
- else whoever finds it in the store, takes it, and goes on from what was kept. The process that has it alive notices
  (its deposit is lost), gives its machine up and lets the calls end by themselves: they were ordered once, and their
  results go to the run through the store. When that run ends before them, they are cancelled.
- A request that comes second, because it was sent again or to two proxies at once, goes on with a copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from asynclm.cml.machine import RunError
from asynclm.cml.tools import Owner
from asynclm.proxy.chat import ChatRequest
from asynclm.proxy.conversations.depot import VERSION, Deposit, Depot, Found, Record
from asynclm.proxy.conversations.parked import Parked, ParkedRun, Why
from asynclm.proxy.conversations.said import digest
from asynclm.proxy.conversations.waiting import Waiting, words_behind
from asynclm.proxy.errors import INVALID_REQUEST
from asynclm.proxy.registry import Registry
from asynclm.proxy.upstreams import Route
from asynclm.proxy.wire_id import stem_of

_CHANGED: Final = RunError(
    "The client came back with another request than the one this run waited for.",
    409,
    INVALID_REQUEST,
    "request_changed",
)
_LEFT: Final = RunError("The client closed the connection.", 499, "cancelled", "client_disconnected")


class Lobby:
    """The parked runs of a process, at most `most` and each for `keep_s` seconds, and what `depot`, if any, has."""

    def __init__(self, registry: Registry, keep_s: float, most: int, depot: Depot | None) -> None:
        self.depot = depot
        self._registry = registry
        self._keep_s = keep_s
        self._parked = Parked(keep_s, most, self._drop)
        self._lent: set[ParkedRun] = set()  # whose calls go on for another process
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed: RunError | None = None

    # ------------------------------------------------------------------ coming in

    async def park(self, run: ParkedRun, key: str | None, *, store: bool) -> None:
        """Keep a run that has just parked; it is in the store, unless that is not wanted, when this returns."""
        driver, route = run.driver, run.route
        said = digest(key, run.messages)
        run.waiting = Waiting(said, driver.said, driver.handed, route.upstream, route.upstream_model, run.policy)
        self._registry.park(run.id)
        deposit = None
        if store and self.depot is not None:
            state = driver.state
            record = Record(VERSION, run.id, run.answers, run.start, run.waiting, state)
            calls = [call.number for call in state.calls if call.owner is Owner.SERVER and call.begun]
            deposit = Deposit(self.depot, key, driver.stem, record, calls)
            deposit.lost = lambda: self._lose(run)
            deposit.unwanted = lambda: self._unwanted(run)
            driver.watch(deposit.happened)
            run.deposits.append(deposit)
        if self._closed is not None:
            self._spawn(self._leave(run, self._closed, forget=False))
        else:
            self._parked.add(run)
        if deposit is not None:
            await deposit.written()

    # ------------------------------------------------------------------ coming back

    async def come_back(self, chat: ChatRequest, route: Route, policy: str, key: str | None) -> ParkedRun | None:
        """The run that is parked here and that this request goes on with.

        One that waited for something else is over: then the request says more than the run knows.
        """
        run = self._parked.take([call.id for call in chat.rounds[-1].calls], key) if chat.rounds else None
        if run is None:
            return None
        fits = run.waiting is not None and run.waiting.fits(key, chat, route, policy)
        if not fits or words_behind(chat) is None or not run.driver.parked:
            self._spawn(self._leave(run, _CHANGED, forget=True))
            return None
        try:
            taken = not run.deposits or await run.deposits[-1].take()
        except BaseException:
            self._spawn(self._leave(run, _LEFT, forget=False))
            raise
        if not taken:
            self._lend(run)
            return None
        self._registry.resume(run.id)
        return run

    async def find(self, chat: ChatRequest, route: Route, policy: str, key: str | None) -> tuple[Found, bool] | None:
        """The run in the store that this request goes on with, and whether it was taken: else it is good for a copy."""
        if self.depot is None or not chat.rounds or words_behind(chat) is None:
            return None
        stem = stem_of(call.id for call in chat.rounds[-1].calls)
        found = None if stem is None else await self.depot.find(key, stem)
        if found is None:
            return None
        if not found.record.waiting.fits(key, chat, route, policy):
            await self.depot.over(found.id)
            return None
        if found.mine or await self.depot.take(found.id) is not True:
            return found, False
        before = self._parked.remove(found.record.run)  # it was here, and nobody has noticed yet that it left
        if before is not None:
            self._lend(before)
        return found, self._registry.driver(found.record.run) is None

    # ------------------------------------------------------------------ the end

    def over(self, run: ParkedRun) -> None:
        """A run has ended: nothing more will come of it."""
        for deposit in run.deposits:
            run.driver.unwatch(deposit.happened)
            deposit.close()
        if run.inherited is not None:
            self._spawn(run.inherited.aclose())

    async def aclose(self, error: RunError, grace_s: float = 0.0) -> None:
        """Wait so long for the calls of parked runs, then end the runs with this error; so will those that park yet.

        They can go on from the store.
        """
        self._closed = error
        parked = self._parked.close()
        waiting = [asyncio.create_task(run.driver.settle()) for run in (*parked, *self._lent) if run.deposits]
        try:
            if waiting:
                await asyncio.wait(waiting, timeout=grace_s)
        finally:
            for task in waiting:
                task.cancel()
        for run in parked:
            self._spawn(self._leave(run, error, forget=False))
        for run in list(self._lent):
            self._unwanted(run)
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self.depot is not None:
            await self.depot.aclose()

    def _drop(self, run: ParkedRun, why: Why) -> None:
        late = why is Why.LATE
        message = (
            f"The client did not come back with its tools' results within {self._keep_s:g} s."
            if late
            else "Too many runs wait for their clients' tools."
        )
        self._spawn(self._leave(run, RunError(message, 504, "timeout_error", "parked_timeout"), forget=late))

    async def _leave(self, run: ParkedRun, error: RunError, *, forget: bool) -> None:
        """Give a run up that is parked here, unless another process goes on with it."""
        if run.deposits and not await run.deposits[-1].leave(forget=forget):
            self._lend(run)
            return
        run.driver.abandon(error)
        self.over(run)
        self._registry.end(run.id, failed=True)
        await run.driver.aclose()

    def _lose(self, run: ParkedRun) -> None:
        """Another process has taken a run that is parked here."""
        if self._parked.remove(run.id) is not None:
            self._lend(run)

    def _lend(self, run: ParkedRun) -> None:
        """Another process goes on with the run: here only its calls do."""
        if run.driver.parked:
            run.driver.hand_over()
            self._registry.end(run.id, failed=False)
            self._lent.add(run)
            self._spawn(self._return(run))

    async def _return(self, run: ParkedRun) -> None:
        await run.driver.settle()
        self._lent.discard(run)
        self.over(run)

    def _unwanted(self, run: ParkedRun) -> None:
        """Nobody waits for what the calls of a run return."""
        if run in self._lent:
            run.driver.cancel_calls()
        elif self._parked.remove(run.id) is not None:
            self._spawn(self._leave(run, _CHANGED, forget=True))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="end of a parked run")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
