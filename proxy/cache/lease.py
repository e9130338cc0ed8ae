"""Who runs a call: of all that want it, over all proxies, one at a time.

The lock of a call is a lease: its holder renews it while the call runs, and if the holder dies it ends by itself and
somebody else takes over. Every holder gets a token of its own (a fencing token): the store remembers the last one that
was handed out and takes a result only from that one, so a holder that was believed dead and comes back late overwrites
nothing. What came of a call that isn't kept (an error, say) is left under its token for those that wait, for a moment.

The keys of one call have its digest in braces: in a cluster they lie on one node.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from asynclm.adapters.stores import Store

_OUTCOME_MS: Final = 5000
_NOTHING: Final = b""

# KEYS: entry, lock, fence, outcome of the holder that is known; ARGV: new token, lease, life of the fence (ms)
_CLAIM: Final = """
local outcome = redis.call('get', KEYS[4])
if outcome then return {2, outcome} end
local holder = redis.call('get', KEYS[2])
if holder then return {0, holder} end
redis.call('set', KEYS[2], ARGV[1], 'PX', ARGV[2])
redis.call('set', KEYS[3], ARGV[1], 'PX', ARGV[3])
return {1, ARGV[1], redis.call('get', KEYS[1])}
"""
# KEYS: lock; ARGV: token, lease (ms)
_RENEW: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end
return 0
"""
# KEYS: entry, lock, fence, outcome; ARGV: token, entry, its life (0: don't keep it), outcome, its life (ms)
_FINISH: Final = """
local kept = 0
if ARGV[3] ~= '0' and redis.call('get', KEYS[3]) == ARGV[1] then
    redis.call('set', KEYS[1], ARGV[2], 'PX', ARGV[3])
    kept = 1
end
redis.call('set', KEYS[4], ARGV[4], 'PX', ARGV[5])
if redis.call('get', KEYS[2]) == ARGV[1] then redis.call('del', KEYS[2]) end
return kept
"""
# KEYS: lock; ARGV: token
_RELEASE: Final = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


class Held(msgspec.Struct, frozen=True):
    """The call is ours to run; `entry` is what the store had when it became so."""

    token: str
    entry: bytes | None


class Taken(msgspec.Struct, frozen=True):
    """Somebody else runs it."""

    holder: str


class Done(msgspec.Struct, frozen=True):
    """The holder that was known has ended: `outcome` is what came of it, None where that is now in the store."""

    outcome: bytes | None


class CallKeys(msgspec.Struct, frozen=True):
    """The keys of one call in the store."""

    entry: str
    lock: str
    fence: str
    outcomes: str

    @classmethod
    def of(cls, store: Store, tool: str, digest: str) -> CallKeys:
        """For the call of that digest."""
        entry, lock, fence, outcomes = (
            store.key("cache", kind, tool, f"{{{digest}}}") for kind in ("entry", "lock", "fence", "outcome")
        )
        return cls(entry, lock, fence, outcomes)

    def outcome(self, token: str) -> str:
        """Where the holder with that token leaves what came of it."""
        return f"{self.outcomes}:{token}"


class Leases:
    """Takes, renews and gives back the locks of calls, each for `lease_s` seconds. The store may fail at any moment."""

    def __init__(self, store: Store, lease_s: float) -> None:
        self.lease_s = lease_s
        self._store = store
        self._lease_ms = round(lease_s * 1000)

    async def claim(self, keys: CallKeys, *, known: str = "", life_s: float) -> Held | Taken | Done | None:
        """Try to become the one that runs the call; `known` is the holder that was met before, `life_s` how long a
        holder can be at it. None where the store doesn't help.
        """
        token = os.urandom(12).hex()
        fence_ms = round((life_s + 10 * self.lease_s) * 1000)
        where = (keys.entry, keys.lock, keys.fence, keys.outcome(known))
        reply = await self._store.do(
            lambda redis: redis.eval(_CLAIM, 4, *where, token, str(self._lease_ms), str(fence_ms)), None
        )
        match reply:
            case [1, bytes(), *rest]:
                return Held(token, rest[0] if rest else None)
            case [0, bytes() as holder]:
                return Taken(holder.decode("ascii", "replace"))
            case [2, bytes() as outcome]:
                return Done(outcome if outcome != _NOTHING else None)
        return None

    async def renew(self, keys: CallKeys, token: str) -> bool:
        """Go on holding the lock. False if it is lost; True also where the store doesn't say."""
        lease = str(self._lease_ms)
        renewed = await self._store.do(lambda redis: redis.eval(_RENEW, 1, keys.lock, token, lease), None)
        return renewed is None or renewed == 1

    async def finish(self, keys: CallKeys, token: str, entry: bytes | None, life_ms: int, outcome: bytes) -> bool:
        """Give the lock back. `entry` is kept for `life_ms` if nobody has become the holder since; where it is None,
        `outcome` is left to those that wait. True if the entry is kept.
        """
        if entry is not None and life_ms <= 0:
            entry = None
        values = (
            *(token, entry or _NOTHING, str(life_ms if entry is not None else 0)),
            *(_NOTHING if entry is not None else outcome, str(_OUTCOME_MS)),
        )
        where = (keys.entry, keys.lock, keys.fence, keys.outcome(token))
        return bool(await self._store.do(lambda redis: redis.eval(_FINISH, 4, *where, *values), 0))

    async def release(self, keys: CallKeys, token: str) -> None:
        """Give the lock back; nothing came of it."""
        await self._store.do(lambda redis: redis.eval(_RELEASE, 1, keys.lock, token), 0)
