"""A secret that all proxies on one store share: the key of hashes that hide whom something is for."""

from __future__ import annotations

import os

from asynclm.adapters.stores import Store


class SharedSecret:
    """The secret that is `given`; without one it is drawn, once for all proxies, and kept in the store."""

    def __init__(self, store: Store, given: bytes | None = None) -> None:
        self._store = store
        self._secret = given

    async def get(self) -> bytes | None:
        """The secret; None where the store doesn't help."""
        if self._secret is None:
            where = self._store.key("cache", "secret")
            drawn = os.urandom(32)
            made = await self._store.do(lambda redis: redis.set(where, drawn, nx=True), None)
            there = drawn if made is True else await self._store.do(lambda redis: redis.get(where), None)
            self._secret = there if isinstance(there, bytes) else None
        return self._secret
