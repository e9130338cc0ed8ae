"""The store that the config names."""

from __future__ import annotations

import sqlite3
from typing import Final

from redis.asyncio import Redis

from asynclm.adapters.stores import FAILURES, Embedded, Store, connect, shown
from asynclm.proxy.config import Config

# What a client raises where the store can't be used; the last for an address at which something else answers.
UNUSABLE: Final[tuple[type[Exception], ...]] = (*FAILURES, sqlite3.Error, ValueError)


def open_client(config: Config, *, timeout_s: float | None = None, or_memory: bool = True) -> tuple[Redis, str]:
    """A client of the store, and what to call it. Nothing is connected to and no file is made before it is used.

    `or_memory`: a file that can't be used is done without.
    """
    settings = config.store
    timeout_s = settings.timeout_s if timeout_s is None else timeout_s
    if settings.url is not None:
        return connect(settings.url, timeout_s=timeout_s), shown(settings.url)
    path = config.base / settings.path if settings.path else None
    embedded = Embedded(path, max_bytes=settings.max_bytes, busy_s=timeout_s, or_memory=or_memory)
    return embedded, str(path or "in memory")


def open_store(config: Config) -> Store:
    """The store, guarded."""
    redis, name = open_client(config)
    return Store(redis, name=name, prefix=config.store.prefix, timeout_s=config.store.timeout_s)
