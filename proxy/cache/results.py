"""Serves calls from the cache, and sees to it that the same call in flight runs once.

Within the process that is one task for a call, a *flight*, that everyone who wants it waits for; over all proxies it is
the lease of `lease.py`. Where the store doesn't help, calls run as if there were no cache (but still once at a time
within the process). The result goes to those who wait before it goes to the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

import msgspec

from asynclm.adapters.stores import Store
from asynclm.cml.tools import CallError, Effect, ToolSpec, error_value
from asynclm.proxy.cache import entry as entries
from asynclm.proxy.cache.entry import Entry
from asynclm.proxy.cache.key import Caller, UnscopedError, canonical, digest, scope_of, tool_version
from asynclm.proxy.cache.lease import CallKeys, Done, Held, Leases
from asynclm.proxy.result import Result, Served
from asynclm.proxy.shared_secret import SharedSecret

_log: Final = logging.getLogger(__name__)

_LOOK_S: Final = 0.005  # how soon a waiter looks again, at first
_LOOK_MAX_S: Final = 0.1
_LOOK_SHARE: Final = 0.1  # of the time that it has waited already
_COUNT_EVERY_S: Final = 2.0

Dispatched = Callable[[], None]
Run = Callable[[Dispatched | None], Awaitable[Result]]


def cacheable(spec: ToolSpec) -> bool:
    """Whether the tool's results may be kept: it must say so, and be one that may run once too often or too rarely."""
    return spec.effect is not Effect.EFFECTFUL and bool(spec.cache_s)


class _Call(msgspec.Struct, frozen=True):
    """One call, as all that want it would make it."""

    key: str
    spec: ToolSpec
    arguments: bytes
    keys: CallKeys
    run: Run
    patience_s: float


class _Flight:
    """A call that is under way, and those who wait for it."""

    def __init__(self, task: Callable[[_Flight], Coroutine[Any, Any, None]], name: str) -> None:
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.waiting: list[Dispatched | None] = []
        self.running = False
        self.task = asyncio.create_task(self._fly(task), name=name)

    async def _fly(self, task: Callable[[_Flight], Coroutine[Any, Any, None]]) -> None:
        try:
            await task(self)
        except Exception as error:
            if self.result.done():
                _log.exception("keeping a result failed")
            else:
                self.result.set_exception(error)
        finally:
            if not self.result.done():
                self.result.cancel()

    def dispatched(self) -> None:
        """The tool has begun to run."""
        self.running = True
        for tell in self.waiting:
            if tell is not None:
                tell()

    def deliver(self, result: Result) -> None:
        """This is what everyone gets."""
        self.result.set_result(result)


class ToolCache:
    """The cache in front of the tools of one process.

    Results whose JSON had more than `max_bytes` are not kept; `lease_s` is how soon another proxy takes over from one
    that died; `shape` is what the form of a result depends on beside the tool; `secret` keys the hash that hides
    whom a result is for: without one, one is drawn and shared through the store.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_bytes: int = 2**20,
        lease_s: float = 5.0,
        secret: bytes | None = None,
        shape: int = 0,
    ) -> None:
        self._store = store
        self._leases = Leases(store, lease_s)
        self._max_bytes = max_bytes
        self._secret = SharedSecret(store, secret)
        self._shape = shape
        self._flights: dict[str, _Flight] = {}
        self._versions: dict[str, tuple[ToolSpec, str]] = {}
        self._counts: Counter[tuple[str, Served]] = Counter()  # not yet in the store
        self._counting: asyncio.Task[None] | None = None

    async def fetch(
        self,
        spec: ToolSpec,
        arguments: dict[str, Any],
        caller: Caller,
        run: Run,
        *,
        patience_s: float,
        dispatched: Dispatched | None = None,
    ) -> Result:
        """What comes of a call: from the store, from the same call of somebody else, or by `run`.

        `patience_s` is how long the tool may run, and so how long another proxy is waited for. `dispatched` is called
        when the tool begins to run for it.
        """
        try:
            scope = scope_of(spec, caller)
            secret = b"" if scope is None else await self._secret.get()
            if secret is None:
                return await run(dispatched)
            key = digest(self._version(spec), arguments, scope, secret, self._shape)
        except (UnscopedError, ValueError, TypeError, RecursionError):
            return await run(dispatched)
        flight = self._flights.get(key)
        joined: Served | None = None
        if flight is None:
            call = _Call(key, spec, canonical(arguments), CallKeys.of(self._store, spec.name, key), run, patience_s)
            flight = self._begin(key, call)
        else:
            joined = "hit" if flight.result.done() else "coalesced"
            if flight.running and joined == "coalesced" and dispatched is not None:
                dispatched()
        flight.waiting.append(dispatched)
        try:
            result = await asyncio.shield(flight.result)
        except asyncio.CancelledError:
            if not flight.result.cancelled() or _being_cancelled():
                raise
            # Its flight was ended from elsewhere, which it needs not know of.
            result = _cancelled(spec)
        finally:
            flight.waiting.remove(dispatched)
            if not flight.waiting and not flight.result.done():
                self._drop(key, flight)
                flight.task.cancel()
        if joined is not None and result.cache == "miss":
            result = msgspec.structs.replace(result, ms=0.0, cache=joined)
        if result.cache is not None:
            self._count(spec.name, result.cache)
        return result

    def close(self) -> None:
        """Fetch nothing more that nobody waits for: the server is about to stop."""
        for flight in self._flights.values():
            if not flight.waiting:
                flight.task.cancel()

    async def aclose(self) -> None:
        """End every flight, and write down how calls were served."""
        tasks = [flight.task for flight in self._flights.values()]
        if self._counting is not None:
            tasks.append(self._counting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._write_counts()

    # ------------------------------------------------------------------ a flight

    def _begin(self, key: str, call: _Call) -> _Flight:
        flight = self._flights[key] = _Flight(lambda flight: self._fly(flight, call), f"call of {call.spec.name}")
        flight.task.add_done_callback(lambda _: self._drop(key, flight))
        return flight

    def _drop(self, key: str, flight: _Flight) -> None:
        """Nobody shall join it any more."""
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _fly(self, flight: _Flight, call: _Call) -> None:
        found = await self._store.do(lambda redis: redis.get(call.keys.entry), None)
        entry = entries.read(found)
        served = None if entry is None else _served(call.spec, entry)
        if entry is None or served is None:
            await self._get(flight, call)
            return
        flight.deliver(entry.result(served))
        if served == "stale":
            await self._refresh(flight, call)

    async def _get(self, flight: _Flight, call: _Call) -> None:
        """Nothing is there: run the call, or wait for whoever runs it."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        known = ""
        while True:
            claim = await self._leases.claim(call.keys, known=known, life_s=call.patience_s)
            if isinstance(claim, Held):
                entry = entries.read(claim.entry)
                if entry is not None and _served(call.spec, entry) == "hit":  # kept since we looked
                    flight.deliver(entry.result("coalesced" if known else "hit"))
                    await self._leases.release(call.keys, claim.token)
                else:
                    await self._run_held(flight, call, claim.token)
                return
            if isinstance(claim, Done):
                data = claim.outcome or await self._store.do(lambda redis: redis.get(call.keys.entry), None)
                entry = entries.read(data)
                if entry is not None:
                    flight.deliver(entry.result("coalesced"))
                    return
                claim = None
            waited = loop.time() - began
            if claim is None or waited >= call.patience_s:
                flight.deliver(await self._run(flight, call))
                return
            known = claim.holder
            pause = min(max(_LOOK_S, waited * _LOOK_SHARE), _LOOK_MAX_S)
            await asyncio.sleep(min(pause, call.patience_s - waited))

    async def _refresh(self, flight: _Flight, call: _Call) -> None:
        """An old result was served: get a new one, unless somebody else does."""
        claim = await self._leases.claim(call.keys, life_s=call.patience_s)
        if not isinstance(claim, Held):
            return
        entry = entries.read(claim.entry)
        if entry is not None and _served(call.spec, entry) == "hit":
            await self._leases.release(call.keys, claim.token)
            return
        async with self._renewing(call.keys, claim.token):
            result = await call.run(None)
        life_ms = self._life_ms(call.spec, result, ran=True)
        if result.ok and life_ms:
            await self._finish(call, claim.token, result, life_ms)
        # Else the old one goes on serving; the lock is left to end by itself, so that a tool that fails has a rest.

    async def _run_held(self, flight: _Flight, call: _Call, token: str) -> None:
        try:
            async with self._renewing(call.keys, token):
                result = await self._run(flight, call)
        except BaseException:
            await self._leases.release(call.keys, token)
            raise
        life_ms = self._life_ms(call.spec, result, ran=flight.running)
        if not life_ms:
            self._drop(call.key, flight)  # it serves those who wait, and nobody after them
        flight.deliver(result)
        await self._finish(call, token, result, life_ms)

    async def _run(self, flight: _Flight, call: _Call) -> Result:
        result = await call.run(flight.dispatched)
        return msgspec.structs.replace(result, cache="miss")

    async def _finish(self, call: _Call, token: str, result: Result, life_ms: int) -> None:
        data = entries.write(call.spec.name, call.arguments, result, time.time())
        if not life_ms and result.error == "cancelled":
            await self._leases.release(call.keys, token)  # the others shall run it
        else:
            await self._leases.finish(call.keys, token, data if life_ms else None, life_ms, data)

    def _life_ms(self, spec: ToolSpec, result: Result, *, ran: bool) -> int:
        """How long a result is kept; 0 for one that isn't. `ran`: the tool has begun to run."""
        if result.ok:
            if (result.size or len(result.value.encode())) > self._max_bytes:
                return 0
            return round(((spec.cache_s or 0) + (spec.stale_s or 0)) * 1000)
        if not ran or result.error == "cancelled":
            return 0  # it did not run, or not to its end
        return round((spec.negative_s or 0) * 1000)

    @contextlib.asynccontextmanager
    async def _renewing(self, keys: CallKeys, token: str) -> AsyncIterator[None]:
        async def renew() -> None:
            while True:
                await asyncio.sleep(self._leases.lease_s / 3)
                if not await self._leases.renew(keys, token):
                    return  # somebody else runs it now; what comes of ours is still good for those who wait here

        task = asyncio.create_task(renew(), name="renew a lease")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    # ------------------------------------------------------------------ beside

    def _version(self, spec: ToolSpec) -> str:
        known = self._versions.get(spec.name)
        if known is None or known[0] is not spec:
            known = self._versions[spec.name] = (spec, tool_version(spec))
        return known[1]

    def _count(self, tool: str, served: Served) -> None:
        self._counts[tool, served] += 1
        if self._counting is None:
            self._counting = asyncio.create_task(self._count_later(), name="count cache hits")

    async def _count_later(self) -> None:
        try:
            await asyncio.sleep(_COUNT_EVERY_S)
        finally:
            self._counting = None
        await self._write_counts()

    async def _write_counts(self) -> None:
        counts, self._counts = self._counts, Counter()
        for (tool, served), number in counts.items():
            add = partial(_add, self._store.key("cache", "served", tool), served, number)
            await self._store.do(add, None)


def _served(spec: ToolSpec, entry: Entry) -> Served | None:
    """How an entry can serve now, by what the tool says today; None if it can't any more."""
    age = entry.age(time.time())
    if not entry.ok:
        return "hit" if age < (spec.negative_s or 0) else None
    if age < (spec.cache_s or 0):
        return "hit"
    return "stale" if age < (spec.cache_s or 0) + (spec.stale_s or 0) else None


async def _add(where: str, served: Served, number: int, redis: Any) -> None:
    await redis.hincrby(where, served, number)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _cancelled(spec: ToolSpec) -> Result:
    error = CallError("cancelled", f"{spec.name}() was cancelled")
    return Result(False, error_value(error), 0.0, error=error.type)
