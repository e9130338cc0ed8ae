"""Recordings in a store: appended to while they are made, found by what was asked, listed, removed.

| key | holds |
|---|---|
| `rec:run:ID` | the recording's lines, a list of batches |
| `rec:asked:HASH` | the id of the recording that serves a request |
| `rec:{index}:...` | `times` (when each was stored), `facts`, `sizes` and their `total`: what there is |

All expire. What is in the index may have gone all the same (expired, or evicted by a store that is full): whoever reads
finds that out.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol

import msgspec

Operation = Callable[[Any], Awaitable[Any]]
Status = Literal["unfinished", "finished", "failed"]

_INDEX_SPARE_S: Final = 86_400  # how long the index outlives what it lists
_BATCH: Final = 16
_MANY: Final = 1000  # of those that have expired, so many are removed at a time

_APPEND: Final = """
local length = redis.call('LLEN', KEYS[1])
if length == tonumber(ARGV[1]) then
    redis.call('RPUSH', KEYS[1], ARGV[2])
elseif length ~= tonumber(ARGV[1]) + 1 then
    return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""
_ENTER: Final = """
local old = redis.call('HGET', KEYS[3], ARGV[1]) or 0
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[4])
local total = redis.call('INCRBY', KEYS[4], string.format('%d', tonumber(ARGV[4]) - tonumber(old)))
for i = 1, 4 do redis.call('PEXPIRE', KEYS[i], ARGV[5]) end
return total
"""
_LEAVE: Final = """
local total = -1
for i = 1, #ARGV do
    local size = redis.call('HGET', KEYS[3], ARGV[i])
    if size then
        redis.call('ZREM', KEYS[1], ARGV[i])
        redis.call('HDEL', KEYS[2], ARGV[i])
        redis.call('HDEL', KEYS[3], ARGV[i])
        total = redis.call('INCRBY', KEYS[4], '-' .. size)
    end
end
return total
"""


class Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a recording without reading it. `created` is Unix time (s); `asked` the hash of the request."""

    id: str
    model: str
    policy: str
    created: int
    asked: str
    status: Status = "unfinished"
    duration_s: float | None = None
    size: int = 0


class Keeper(Protocol):
    """What operations go through: a guarded store, or one that raises."""

    def key(self, *parts: str) -> str:
        """A key of ours."""
        ...

    async def do(self, operation: Operation, otherwise: Any) -> Any:
        """What the operation returns; `otherwise` if the store doesn't help."""
        ...


class Unguarded:
    """Operations on a store for people: what fails raises redis-py's errors."""

    def __init__(self, redis: Any, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix

    def key(self, *parts: str) -> str:
        """A key of ours."""
        return self._prefix + ":".join(parts)

    async def do(self, operation: Operation, otherwise: Any) -> Any:
        """What the operation returns."""
        return await operation(self._redis)


class Archive:
    """The recordings in a store, each kept for `keep_s` seconds, all of them in `max_bytes`.

    Of every answer None means that the store doesn't help.
    """

    def __init__(self, keeper: Keeper, *, keep_s: float, max_bytes: int) -> None:
        self._keeper = keeper
        self._keep_s = keep_s
        self._keep_ms = str(round(keep_s * 1000))
        self._index_ms = str(round((keep_s + _INDEX_SPARE_S) * 1000))
        self._max_bytes = max_bytes
        self._times, self._facts, self._sizes, self._total = (
            keeper.key("rec", "{index}", name) for name in ("times", "facts", "sizes", "total")
        )
        self._index = (self._times, self._facts, self._sizes, self._total)

    # ------------------------------------------------------------------ writing

    async def append(self, id: str, number: int, lines: bytes) -> bool | None:
        """Write the batch with that number (from 0). False if those before it are not there any more.

        The same batch may be written again where it isn't known whether it got there.
        """
        key = self._run(id)
        done = await self._do(lambda redis: redis.eval(_APPEND, 1, key, str(number), lines, self._keep_ms))
        return None if done is None else bool(done)

    async def enter(self, facts: Facts) -> bool | None:
        """Put a recording into the index, or its facts in place of those there; makes room for it."""
        now = f"{time.time():.3f}"
        values = (facts.id, now, msgspec.json.encode(facts), str(facts.size), self._index_ms)

        async def enter(redis: Any) -> int:
            return int(await redis.eval(_ENTER, 4, *self._index, *values))

        total: int | None = await self._do(enter)
        if total is None:
            return None
        await self._make_room(total, facts.id)
        return True

    async def serve(self, asked: str, id: str, *, replace: bool) -> bool | None:
        """From now on that recording serves the request. `replace`: the one that did so before is removed."""
        key = self._asked(asked)
        old = await self.find(asked) if replace else None
        if await self._do(lambda redis: redis.set(key, id, px=int(self._keep_ms))) is None:
            return None
        if old and old != id:
            await self.remove([old])
        return True

    async def remove(self, ids: list[str]) -> None:
        """Remove recordings, as far as they are there."""
        if ids:
            await self._do(lambda redis: redis.eval(_LEAVE, 4, *self._index, *ids))
        for id in ids:
            await self._delete(self._run(id))

    async def _make_room(self, total: int, newest: str) -> None:
        """Remove what has expired, and the oldest while there is too much."""
        until = f"{time.time() - self._keep_s:.3f}"

        async def expire(redis: Any) -> int:
            gone = (await redis.zrangebyscore(self._times, "-inf", until))[:_MANY]
            left = int(await redis.eval(_LEAVE, 4, *self._index, *gone)) if gone else -1
            return left if left >= 0 else total

        async def oldest(redis: Any) -> list[tuple[str, int]]:
            ids = [id.decode() for id in await redis.zrange(self._times, 0, _BATCH - 1)]
            return [(id, int(await redis.hget(self._sizes, id) or 0)) for id in ids]

        total = await self._do(expire, total)
        while total > self._max_bytes:
            going: list[str] = []
            for id, size in await self._do(oldest, []):
                if total > self._max_bytes and id != newest:
                    going.append(id)
                    total -= size
            if not going:
                return
            await self.remove(going)

    # ------------------------------------------------------------------ reading

    async def find(self, asked: str) -> str | Literal[False] | None:
        """The id of the recording that serves a request; False if there is none."""
        key = self._asked(asked)

        async def find(redis: Any) -> str | Literal[False]:
            found = await redis.get(key)
            return found.decode() if found else False

        id: str | Literal[False] | None = await self._do(find)
        return id

    async def load(self, id: str) -> bytes | None:
        """A recording's lines; b"" if it isn't there."""
        key = self._run(id)

        async def load(redis: Any) -> bytes:
            return b"".join(await redis.lrange(key, 0, -1))

        lines: bytes | None = await self._do(load)
        return lines

    async def all(self) -> list[Facts] | None:
        """All that there is, the newest first."""

        async def load(redis: Any) -> list[bytes]:
            return list((await redis.hgetall(self._facts)).values())

        found: list[bytes] | None = await self._do(load)
        if found is None:
            return None
        facts: list[Facts] = []
        for each in found:
            try:
                facts.append(msgspec.json.decode(each, type=Facts))
            except msgspec.DecodeError:
                continue  # of a newer version, or damaged: the others can be listed all the same
        return sorted(facts, key=lambda each: each.created, reverse=True)

    def _run(self, id: str) -> str:
        return self._keeper.key("rec", "run", id)

    def _asked(self, asked: str) -> str:
        return self._keeper.key("rec", "asked", asked)

    async def _delete(self, key: str) -> None:
        await self._do(lambda redis: redis.delete(key))

    async def _do(self, operation: Operation, otherwise: Any = None) -> Any:
        return await self._keeper.do(operation, otherwise)
