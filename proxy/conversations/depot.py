"""Parked runs in the store, so that they outlive the process and other proxies can go on with them.

What is written when a run parks (`Record`) is enough to go on: the transcript, the open calls, what waits to be told.
The process that has the run alive goes on running its calls, and writes each result behind the record as it comes; as
long as it does, it says so (`alive`, a lease that it renews).

A record has a holder: the process that parked the run, until another one takes it. Taking is one step in the store, so
of several proxies, or requests, that want a run one gets it. Who does not get it works on a copy. The record stays for
as long as it would have been waited for, so a request that is sent again finds all that the run knew.

| key | holds |
|---|---|
| `parked:{HASH}` | `record`, `holder`, `taken` (a request came), `over` (its calls are not wanted any more) |
| `parked:{HASH}:news` | what has happened since: results, and words from outside |
| `parked:{HASH}:alive` | there while its calls are under way |

The name is a hash, keyed with a secret, of the client's key and the ids that its calls have for the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from asynclm.adapters.stores import Store
from asynclm.cml.machine import events as ev
from asynclm.cml.machine.parked import ParkedState
from asynclm.proxy.conversations.waiting import Waiting
from asynclm.proxy.handed import Happened
from asynclm.proxy.shared_secret import SharedSecret

_log: Final = logging.getLogger(__name__)

VERSION: Final = 1
_SHARE: Final = 4  # one record may take no more than this part of all the room
_TRIES: Final = 10  # to write a result that the store doesn't take
_RENEWALS: Final = 3  # in the time of a lease

# KEYS of all: record, news, alive
_WRITE: Final = """
redis.call('HSET', KEYS[1], 'record', ARGV[1], 'holder', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if ARGV[4] ~= '0' then redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[4]) end
return 1
"""
_TELL: Final = """
local left = redis.call('PTTL', KEYS[1])
if left <= 0 then return 0 end
for i = 1, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
redis.call('PEXPIRE', KEYS[2], string.format('%d', left))
return 1
"""
_RENEW: Final = """
local holder = redis.call('HGET', KEYS[1], 'holder')
if not holder then return 'gone' end
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
if redis.call('HGET', KEYS[1], 'over') then return 'over' end
return holder == ARGV[1] and 'ours' or 'taken'
"""
_FIND: Final = """
local record = redis.call('HGET', KEYS[1], 'record')
if not record then return {} end
return {record, redis.call('HGET', KEYS[1], 'holder'), redis.call('EXISTS', KEYS[3]),
        redis.call('LRANGE', KEYS[2], 0, -1)}
"""
_TAKE: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if redis.call('HGET', KEYS[1], 'taken') then return 0 end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'taken', '1')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
"""
# ARGV: from which news on, life (ms)
_LOOK: Final = """
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return {redis.call('EXISTS', KEYS[3]), redis.call('LRANGE', KEYS[2], ARGV[1], -1)}
"""
_REST: Final = "return redis.call('DEL', KEYS[3])"
# ARGV: the process that gives the run up, whether the record is to go with it
_LEAVE: Final = """
local holder = redis.call('HGET', KEYS[1], 'holder')
if holder and holder ~= '' and holder ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[3])
if redis.call('HGET', KEYS[1], 'taken') then return 1 end
if ARGV[2] == '1' then
    redis.call('DEL', KEYS[1])
    redis.call('DEL', KEYS[2])
elseif holder then
    redis.call('HSET', KEYS[1], 'holder', '')
end
return 1
"""
# ARGV: who says so; the holder always may, others while nobody has taken the run
_OVER: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local taken = redis.call('HGET', KEYS[1], 'taken')
if taken and redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'over', '1', 'taken', '1')
return 1
"""


class Record(msgspec.Struct, frozen=True):
    """A parked run as it lies in the store. Of the messages only a hash is kept: the client brings them along."""

    version: int
    run: str
    answers: int
    start: int
    waiting: Waiting
    state: ParkedState


class _News(msgspec.Struct, frozen=True, omit_defaults=True):
    """A result (of `call`), or somebody's words."""

    call: int | None = None
    ok: bool = True
    value: str = ""
    ms: float = 0.0
    cache: str | None = None
    source: str = ""
    text: str = ""
    scheduling: ev.Scheduling = ev.Scheduling.INTERRUPT


class Found(msgspec.Struct, frozen=True):
    """A record: `mine` if this process has the run, or lately had; `alive` if its calls are under way somewhere."""

    id: str
    record: Record
    mine: bool
    alive: bool
    happened: list[Happened]
    seen: int  # how many news that were


class Depot:
    """The parked runs in a store, each for `keep_s` seconds; `max_bytes` bounds one to a quarter of it.

    `lease_s` is how soon others notice that the process with its calls has died. The store may fail at any moment.
    """

    def __init__(self, store: Store, secret: SharedSecret, *, keep_s: float, max_bytes: int, lease_s: float) -> None:
        self.lease_s = lease_s
        self._store = store
        self._secret = secret
        self._life_ms = str(round(keep_s * 1000))
        self._lease_ms = str(round(lease_s * 1000))
        self._most = max_bytes // _SHARE
        self._me = os.urandom(8).hex()
        self._deposits: set[asyncio.Task[None]] = set()

    async def find(self, key: str | None, stem: str) -> Found | None:
        """The run that sent this client calls with ids of that stem; None, too, where the store doesn't help."""
        id = await self.id_of(key, stem)
        reply = None if id is None else await self._eval(_FIND, id)
        match reply:
            case [bytes() as data, bytes() as holder, int() as alive, list() as rows] if id is not None:
                try:
                    record = _record.decode(data)
                    news = _happened(rows)
                except (msgspec.DecodeError, TypeError):
                    return None  # damaged, or of another version
                mine = holder == self._me.encode()
                return Found(id, record, mine, bool(alive), news, len(rows)) if record.version == VERSION else None
        return None

    async def take(self, id: str) -> bool | None:
        """Become the one that goes on with the run. False if another has; None where the store doesn't know of it."""
        taken = await self._eval(_TAKE, id, self._me, self._life_ms)
        return taken == 1 if taken in (0, 1) else None

    async def look(self, id: str, seen: int) -> tuple[bool, list[Happened]] | None:
        """Whether calls are still under way, and what is new since so many news. None where the store doesn't help."""
        reply = await self._eval(_LOOK, id, str(seen), self._life_ms)
        match reply:
            case [int() as alive, list() as rows]:
                try:
                    return bool(alive), _happened(rows)
                except (msgspec.DecodeError, TypeError):
                    return False, []
        return None

    async def over(self, id: str) -> None:
        """Nobody wants what the calls of this run return."""
        await self._eval(_OVER, id, self._me)

    async def aclose(self) -> None:
        """Wait until everything is written. All deposits have been left, or closed."""
        if self._deposits:
            await asyncio.wait(self._deposits)

    # ------------------------------------------------------------------ for deposits

    async def id_of(self, key: str | None, stem: str) -> str | None:
        """The name of a record; None where the store doesn't help."""
        secret = await self._secret.get()
        if secret is None:
            return None
        return hmac.new(secret, msgspec.json.encode([key, stem]), "sha256").hexdigest()[:32]

    def own(self, task: asyncio.Task[None]) -> None:
        """Wait for this task in the end."""
        self._deposits.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._deposits.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("keeping a parked run failed", exc_info=error)

    async def write(self, id: str, record: Record, *, alive: bool) -> bool:
        """Write a record. False if it is not there."""
        try:
            data = _encode(record)
        except (ValueError, TypeError, ArithmeticError, RecursionError):  # such as text without a UTF-8 form
            return False
        if len(data) > self._most:
            return False
        lease = self._lease_ms if alive else "0"
        return bool(await self._eval(_WRITE, id, data, self._me, self._life_ms, lease))

    async def tell(self, id: str, news: Sequence[bytes]) -> bool | None:
        """Write what has happened. False if the record has gone, None where the store doesn't help."""
        told = await self._eval(_TELL, id, *news)
        return None if told is None else bool(told)

    async def renew(self, id: str) -> str | None:
        """Go on saying that the calls are under way. Whose the run is: `ours`, or another's (`taken`), or nobody wants
        it (`over`), or it is `gone` from the store. None where the store doesn't help.
        """
        reply = await self._eval(_RENEW, id, self._me, self._lease_ms)
        return reply.decode() if isinstance(reply, bytes) else None

    async def rest(self, id: str) -> None:
        """No call is under way here any more."""
        await self._eval(_REST, id)

    async def leave(self, id: str, *, forget: bool) -> bool:
        """No call is under way here any more: let anybody have the run, or nobody. False if another has taken it."""
        left = await self._eval(_LEAVE, id, self._me, "1" if forget else "0")
        return left is None or bool(left)

    async def _eval(self, script: str, id: str, *values: Any) -> Any:
        base = self._store.key("parked", f"{{{id}}}")
        keys = (base, f"{base}:news", f"{base}:alive")
        return await self._store.do(lambda redis: redis.eval(script, 3, *keys, *values), None)


class Deposit:
    """One parked run in the store, for the process that runs its calls: written at once, told of what happens.

    Until the calls have returned, or it is left, a task of its own keeps the lease. `lost` is called when another proxy
    has taken the run, `unwanted` when nobody wants what the calls return.
    """

    def __init__(self, depot: Depot, key: str | None, stem: str, record: Record, calls: Iterable[int]) -> None:
        self.lost: Callable[[], None] = _nothing
        self.unwanted: Callable[[], None] = _nothing
        self._depot = depot
        self._open = set(calls)
        self._news: list[bytes] = []
        self._stir = asyncio.Event()
        self._left = False
        self._id: str | None = None
        self._told = False  # that the run is lost
        self._taken = False  # the run has gone on here
        self._writing = asyncio.create_task(self._write(key, stem, record), name="write a parked run")
        self._keeping: asyncio.Task[None] | None = None
        depot.own(self._writing)
        if self._open:
            self._keep()

    async def written(self) -> None:
        """Wait until the run is in the store, or it is known that it won't be."""
        await asyncio.shield(self._writing)

    def happened(self, event: Happened) -> None:
        """Write this behind the record."""
        match event:
            case ev.ResultArrived(call=call):
                if call not in self._open:
                    return
                self._open.discard(call)
                news = _News(call, event.ok, event.value, event.ms, event.cache)
            case ev.OutsideInterrupt():
                news = _News(source=event.source, text=event.text, scheduling=event.scheduling)
        if self._left or (self._taken and isinstance(event, ev.OutsideInterrupt)):
            return
        with contextlib.suppress(ValueError, TypeError):  # text without a UTF-8 form
            self._news.append(_encode(news))
        self._stir.set()
        self._keep()

    async def take(self) -> bool:
        """The client has come back to this process: go on with the run. False if another proxy does."""
        await self.written()
        self._taken = self._id is None or await self._depot.take(self._id) is not False
        return self._taken

    async def leave(self, *, forget: bool) -> bool:
        """The run is given up here, and its calls are about to be cancelled. False if another proxy has taken it: then
        they are not to be.
        """
        await self.written()
        if self._id is None:
            self.close()
            return True
        if not await self._depot.leave(self._id, forget=forget):
            self._lose()
            return False
        self.close()
        return True

    def close(self) -> None:
        """What is under way has ended, or is being cancelled: write what has happened, and no more."""
        self._left = True
        self._stir.set()

    # ------------------------------------------------------------------ tasks

    async def _write(self, key: str | None, stem: str, record: Record) -> None:
        id = await self._depot.id_of(key, stem)
        if id is not None and await self._depot.write(id, record, alive=bool(self._open)):
            self._id = id

    def _keep(self) -> None:
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._work(), name="keep a parked run")
            self._depot.own(self._keeping)

    async def _work(self) -> None:
        await self.written()
        failed = 0
        while self._id is not None:
            self._stir.clear()
            if self._news:
                news = list(self._news)
                told = await self._depot.tell(self._id, news)
                failed = failed + 1 if told is None else 0
                if told is not None:
                    del self._news[: len(news)]
            if failed >= _TRIES:
                return
            if self._left or not (self._open or self._news):
                await self._depot.rest(self._id)
                if self._left or not self._news:
                    return
            try:
                async with asyncio.timeout(self._depot.lease_s / _RENEWALS):
                    await self._stir.wait()
            except TimeoutError:
                await self._renew(self._id)

    async def _renew(self, id: str) -> None:
        match await self._depot.renew(id):
            case "taken":
                self._lose()
            case "over":
                self.unwanted()
            case "gone":
                self._id = None
                if self._told:
                    self.unwanted()

    def _lose(self) -> None:
        if not self._told:
            self._told = True
            self.lost()


def _nothing() -> None:
    return None


_encode: Final = msgspec.json.Encoder().encode
_record: Final = msgspec.json.Decoder(Record)
_news: Final = msgspec.json.Decoder(_News)


def _happened(rows: Iterable[bytes]) -> list[Happened]:
    """Raises `msgspec.DecodeError`."""
    happened: list[Happened] = []
    for row in rows:
        news = _news.decode(row)
        if news.call is not None:
            happened.append(ev.ResultArrived(news.call, news.ok, news.value, news.ms, news.cache))
        else:
            happened.append(ev.OutsideInterrupt(news.source, news.text, news.scheduling))
    return happened
