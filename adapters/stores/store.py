"""The guard around a store: whatever happens to the store, a run goes on without it.

Every operation is bounded in time. A store that can't be reached, is too slow or speaks no Redis is left alone for a
moment (a breaker), then tried with one operation; a store that answers with an error (out of memory, read-only) goes
on being asked, since it may still be read. Whoever asks gets the value that they named for "the store didn't help";
the log gets one warning a minute.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ClusterDownError, RedisClusterException, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

_log: Final = logging.getLogger(__name__)

_WARN_EVERY_S: Final = 60.0
_FAILURES: Final = 3  # in a row, before the store is left alone
_MAX_OPEN_S: Final = 30.0
_CLOSE_S: Final = 2.0

# What a client raises on its own account where a store fails; a server that speaks no Redis may raise others.
FAILURES: Final[tuple[type[Exception], ...]] = (RedisError, RedisClusterException, OSError)

# Of the client only Any is known: redis-py's types are those of its clients with and without async at once.
Operation = Callable[[Any], Awaitable[Any]]


class Counts(msgspec.Struct):
    """Operations since the start: asked for, failed (timeouts included), timed out, and not tried because of the
    breaker. `warnings` is how many were logged.
    """

    operations: int = 0
    failures: int = 0
    timeouts: int = 0
    skipped: int = 0
    warnings: int = 0


class Store:
    """A store, guarded. `name` is what it is called in warnings; `prefix` begins every key that is put into it.

    `timeout_s` bounds an operation, the wait for its turn included; `concurrency` is how many run at once. `open_s` is
    how long a store that fails is left alone at first; each failed trial doubles it, up to 30 s.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        name: str,
        prefix: str = "asynclm:",
        timeout_s: float = 0.5,
        open_s: float = 1.0,
        concurrency: int = 64,
    ) -> None:
        self.name = name
        self.prefix = prefix
        self.counts = Counts()
        self._redis = redis
        self._timeout_s = timeout_s
        self._first_open_s = open_s
        self._slots = asyncio.Semaphore(concurrency)
        self._failures = 0  # in a row
        self._open_s = open_s
        self._open_until = 0.0
        self._trying = False
        self._warned = float("-inf")
        self._unsaid = 0  # failures since the last warning
        self._down = False

    @property
    def up(self) -> bool:
        """Whether the store was last seen to work."""
        return not self._down

    def key(self, *parts: str) -> str:
        """A key of ours: the prefix, then the parts with colons between."""
        return self.prefix + ":".join(parts)

    async def do(self, operation: Operation, otherwise: Any, *, timeout_s: float | None = None) -> Any:
        """What the operation returns; `otherwise` if the store fails, is too slow or is being left alone, and where the
        operation can make nothing of what it said.

        An operation that timed out may or may not have been carried out. Raises CancelledError only.
        """
        self.counts.operations += 1
        trial = self._failures >= _FAILURES
        if trial:
            if self._trying or asyncio.get_running_loop().time() < self._open_until:
                self.counts.skipped += 1
                return otherwise
            self._trying = True
        try:
            async with asyncio.timeout(self._timeout_s if timeout_s is None else timeout_s), self._slots:
                value = await operation(self._redis)
        except ResponseError as error:
            if isinstance(error, ClusterDownError):
                self._failed(error)
            else:
                self._refused(error)
            return otherwise
        except FAILURES as error:
            self._failed(error)
            return otherwise
        except Exception as error:  # whatever the answer of something that is no Redis comes to
            _log.debug("the store %s fails", self.name, exc_info=error)
            self._failed(error)
            return otherwise
        finally:
            if trial:
                self._trying = False
        if self._failures or self._down:
            self._works()
        return value

    async def aclose(self) -> None:
        """Let go of the store."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._redis.aclose()
        except Exception as error:
            _log.debug("closing %s: %s", self.name, error)

    def _failed(self, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        timeout = isinstance(error, RedisTimeoutError | TimeoutError)
        self.counts.failures += 1
        self.counts.timeouts += timeout
        if self._failures >= _FAILURES and now >= self._open_until:
            self._open_s = min(2 * self._open_s, _MAX_OPEN_S)
        self._failures += 1
        if self._failures >= _FAILURES:
            self._open_until = now + self._open_s
        self._warn(f"no answer within {self._timeout_s:g} s" if timeout else _said(error))

    def _refused(self, error: ResponseError) -> None:
        self._failures = 0
        self.counts.failures += 1
        self._warn(_said(error))

    def _works(self) -> None:
        if self._down:
            self._down = False
            _log.info("the store %s works again", self.name)
        self._failures = 0
        self._open_s = self._first_open_s

    def _warn(self, why: str) -> None:
        self._down = True
        self._unsaid += 1
        now = asyncio.get_running_loop().time()
        if now - self._warned < _WARN_EVERY_S:
            return
        self._warned = now
        self.counts.warnings += 1
        _log.warning(
            "the store %s fails (%s; %d operations since the last warning): runs go on without it",
            self.name,
            why,
            self._unsaid,
        )
        self._unsaid = 0


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())[:200] or type(error).__name__
