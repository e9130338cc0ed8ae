"""What lies in the cache: counted, listed, removed. For people, so nothing here is guarded: a store that fails raises
redis-py's errors.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from asynclm.proxy.cache import entry as entries
from asynclm.proxy.cache.entry import Entry

_ENTRY: Final = "entry"
_OF_CALLS: Final = (_ENTRY, "lock", "fence", "outcome")
_SERVED: Final = "served"


class Stats(msgspec.Struct):
    """Of one tool: what is kept now, and how its calls were served since the cache was last cleared."""

    entries: int = 0
    bytes: int = 0
    hit: int = 0
    miss: int = 0
    stale: int = 0
    coalesced: int = 0


class Kept(msgspec.Struct, frozen=True):
    """An entry, how old it is and how long it is still kept (s), and its size in the store (bytes)."""

    entry: Entry
    age_s: float
    left_s: float
    size: int


class Contents:
    """The cache in a store, whose keys begin with `prefix`. `redis` is a client of redis-py."""

    def __init__(self, redis: Any, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix

    async def stats(self, tool: str | None = None) -> dict[str, Stats]:
        """By tool, in the order of their names."""
        found: dict[str, Stats] = {}
        async for name, key in self._keys(_ENTRY, tool):
            size = await self._redis.strlen(key)
            if size:  # else it has just expired
                stats = found.setdefault(name, Stats())
                stats.entries += 1
                stats.bytes += size
        async for name, key in self._keys(_SERVED, tool):
            counts = {way.decode(): int(number) for way, number in (await self._redis.hgetall(key)).items()}
            stats = found.setdefault(name, Stats())
            for way in ("hit", "miss", "stale", "coalesced"):
                setattr(stats, way, counts.get(way, 0))
        return dict(sorted(found.items()))

    async def entries(self, tool: str | None = None, arguments: bytes | None = None) -> list[Kept]:
        """The entries, of one tool, and of calls with these arguments (canonical JSON); the newest first."""
        now = time.time()
        found = []
        async for _, key in self._keys(_ENTRY, tool):
            data = await self._redis.get(key)
            entry = entries.read(data)
            if entry is not None and arguments in (None, entry.arguments):
                left = await self._redis.pttl(key)
                found.append(Kept(entry, entry.age(now), max(0, left) / 1000, len(data)))
        return sorted(found, key=lambda kept: kept.age_s)

    async def clear(self, tool: str | None = None) -> int:
        """Remove the entries, and see to it that calls that run now leave none; how many entries there were."""
        removed = 0
        for kind in reversed(_OF_CALLS):  # fences before entries: what is written in between would stay
            async for _, key in self._keys(kind, tool):
                gone = await self._redis.delete(key)
                removed += gone if kind == _ENTRY else 0
        async for _, key in self._keys(_SERVED, tool):
            await self._redis.delete(key)
        return removed

    async def _keys(self, kind: str, tool: str | None) -> AsyncIterator[tuple[str, bytes]]:
        start = f"{self._prefix}cache:{kind}:"
        rest = ("" if kind == _SERVED else ":*") if tool is not None else "*"
        async for key in self._redis.scan_iter(match=f"{start}{tool or ''}{rest}", count=1000):
            yield key.decode().removeprefix(start).partition(":")[0], key
