"""Earlier turns in the store.

| key | holds |
|---|---|
| `turn:{ROOT}:HASH` | a turn; `ROOT` is the same for all of a conversation, so that a cluster has them on one node |
| `turn:{index}:...` | `times` (when each was stored), `sizes` and their `total`: what there is |

The names are hashes, keyed with a secret, of the conversation and the client's key: they give away neither.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from asynclm.adapters.stores import Store
from asynclm.cml.transcript import Segment
from asynclm.proxy.shared_secret import SharedSecret

_log: Final = logging.getLogger(__name__)

_VERSION: Final = 1
_SHARE: Final = 4  # one turn may take no more than this part of all the room
_INDEX_SPARE_S: Final = 86_400  # how long the index outlives what it lists

# KEYS: times, sizes, total; ARGV: name, now, size, life of the index (ms), when what expires now was stored, most bytes
_ENTER: Final = """
local total = 0
local gone = {}
local function drop(name)
    local size = redis.call('HGET', KEYS[2], name)
    redis.call('ZREM', KEYS[1], name)
    redis.call('HDEL', KEYS[2], name)
    if size then total = redis.call('INCRBY', KEYS[3], '-' .. size) end
end
drop(ARGV[1])
total = redis.call('INCRBY', KEYS[3], ARGV[3])
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[5])) do
    drop(name)
    table.insert(gone, name)
end
while total > tonumber(ARGV[6]) do
    local oldest = redis.call('ZRANGE', KEYS[1], 0, 0)
    if not oldest[1] then break end
    drop(oldest[1])
    table.insert(gone, oldest[1])
end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
return gone
"""


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A turn: the index of the message that it begins with, and what was written and told."""

    start: int
    transcript: tuple[Segment, ...]


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    version: int
    turn: Kept


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_Stored)


class StoredTurns:
    """The turns in a store, each kept for `keep_s` seconds, all of them in `max_bytes`."""

    def __init__(self, store: Store, secret: SharedSecret, *, keep_s: float, max_bytes: int) -> None:
        self._store = store
        self._secret = secret
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._index = tuple(store.key("turn", "{index}", name) for name in ("times", "sizes", "total"))

    async def keep(self, root: bytes, digest: bytes, kept: Kept) -> None:
        """Write a turn; the oldest make room for it. One that is too large is not written."""
        try:
            data = _encode(_Stored(_VERSION, kept))
        except (ValueError, TypeError):  # text without a UTF-8 form
            return
        secret = await self._secret.get()
        if secret is None or len(data) > self._max_bytes // _SHARE:
            return
        name = f"{{{_name(secret, root)}}}:{_name(secret, digest)}"
        key = self._store.key("turn", name)
        life_ms = round(self._keep_s * 1000)
        if await self._store.do(lambda redis: redis.set(key, data, px=life_ms), None) is None:
            return
        now = time.time()
        values = (
            *(name, f"{now:.6f}", str(len(data))),
            *(str(life_ms + _INDEX_SPARE_S * 1000), f"{now - self._keep_s:.3f}", str(self._max_bytes)),
        )
        gone = await self._store.do(lambda redis: redis.eval(_ENTER, 3, *self._index, *values), None)
        for each in gone if isinstance(gone, list) else ():
            await self._forget(each.decode())

    async def find(self, root: bytes, digests: Sequence[bytes]) -> dict[bytes, Kept]:
        """Those of the turns that are there."""
        secret = await self._secret.get()
        if secret is None:
            return {}
        tag = _name(secret, root)
        keys = [self._store.key("turn", f"{{{tag}}}:{_name(secret, digest)}") for digest in digests]
        rows = await self._store.do(lambda redis: redis.mget(keys), None)
        return {
            digest: kept
            for digest, row in zip(digests, rows if isinstance(rows, list) else (), strict=False)
            if isinstance(row, bytes) and (kept := _read(row)) is not None
        }

    async def _forget(self, name: str) -> None:
        key = self._store.key("turn", name)
        await self._store.do(lambda redis: redis.delete(key), 0)


def _name(secret: bytes, digest: bytes) -> str:
    return hmac.new(secret, digest, "sha256").hexdigest()[:32]


def _read(data: bytes) -> Kept | None:
    """What was kept; None for what another version, or nobody of ours, wrote."""
    try:
        stored = _decoder.decode(data)
    except msgspec.DecodeError:
        return None
    return stored.turn if stored.version == _VERSION else None
