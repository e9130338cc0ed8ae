"""The store that needs no server: redis-py's own client, answered by an SQLite file instead of a connection.

burner-redis 0.1.7, which offers much the same in memory, was tried and does not fit a server: what has expired stays
in memory until its key is asked for again; the file is written as a whole (1.3 s for 100 MB, and the event loop stands
still) or at the end only, so that a crash loses everything; a damaged file is overwritten; no other process can look.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NoReturn

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError

from asynclm.adapters.stores.database import MEMORY, Database, Reply

_log: Final = logging.getLogger(__name__)

_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Embedded(Redis):
    """A `redis.asyncio.Redis` whose commands are carried out in a thread of this process.

    It has the commands of `Database` and no pipelines, transactions or subscriptions. The file at `path` is made when
    it is first used, is kept below `max_bytes`, survives a crash, and may be shared by the processes of one machine
    (not over a network file system). Where `path` is None or can't be used, everything is kept in memory, after a
    warning; without `or_memory`, commands then raise `redis.exceptions.ConnectionError`. A file that is damaged is put
    aside under another name. `busy_s` bounds the wait for another process.
    """

    def __init__(
        self, path: Path | None, *, max_bytes: int = 256 * 2**20, busy_s: float = 1.0, or_memory: bool = True
    ) -> None:
        super().__init__(protocol=2)
        self._path = path
        self._max_bytes = max_bytes
        self._busy_s = busy_s
        self._or_memory = or_memory
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="asynclm store")
        self._database: Database | None = None
        self._closed = False

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Carry out one command and give its reply the shape that redis-py gives it."""
        if self._closed:
            raise RedisConnectionError("the store is closed")
        # A name may hold two words ("SCRIPT LOAD").
        words = [*(args[0].split() if isinstance(args[0], str) else [args[0]]), *args[1:]]
        command = [_encoded(word) for word in words]
        reply = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, command)
        answer: Any = _Answer(reply)
        return await self.parse_response(answer, args[0], **options)

    def pipeline(self, *_: Any, **__: Any) -> NoReturn:
        """Not supported: a script does as much, on a cluster too."""
        raise NotImplementedError("the embedded store has no pipelines: use a script (eval)")

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Let go of the file, once the commands that were given are carried out."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown(wait=False)
        await super().aclose(close_connection_pool)

    # ------------------------------------------------------------------ in the thread

    def _run(self, command: list[bytes]) -> Reply:
        if self._database is None:
            self._database = self._open()
        try:
            return self._database.command(command)
        except sqlite3.DatabaseError as error:
            # Damage may show only when the damaged page is read.
            if self._path is None or not _is_damage(error):
                raise RedisConnectionError(f"the store's file fails: {error}") from error
            self._close()
            _put_aside(self._path, error)
            raise RedisConnectionError("the store's file was damaged: it begins anew") from error

    def _open(self) -> Database:
        if self._path is not None:
            try:
                return self._open_file(self._path)
            except (OSError, sqlite3.Error) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                if not self._or_memory:
                    raise RedisConnectionError(f"{reason}") from error
                _log.warning("%s can't be used (%s): what is stored is lost when the process ends", self._path, reason)
        return Database(MEMORY, max_bytes=self._max_bytes, busy_s=self._busy_s)

    def _open_file(self, path: Path) -> Database:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)  # others on this machine have no business with what tools said
        try:
            return Database(path, max_bytes=self._max_bytes, busy_s=self._busy_s)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            _put_aside(path, error)
            return Database(path, max_bytes=self._max_bytes, busy_s=self._busy_s)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


class _Answer:
    """A reply where redis-py looks for a connection to read it from."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    async def read_response(self, **_: Any) -> Reply:
        return self._reply


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _CORRUPT  # whatever more exactly it says


def _put_aside(path: Path, error: sqlite3.Error) -> None:
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    _log.warning("%s is damaged (%s): it is now %s, and the store begins anew", path, error, aside.name)
    path.replace(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _encoded(word: Any) -> bytes:
    """As redis-py puts it on the wire."""
    match word:
        case bytes():
            return word
        case bytearray() | memoryview():
            return bytes(word)
        case bool():
            raise DataError("Invalid input of type: 'bool'. Convert to a bytes, string, int or float first.")
        case int() | float():
            return repr(word).encode()
        case str():
            return word.encode()
        case _:
            raise DataError(
                f"Invalid input of type: {type(word).__name__!r}. Convert to a bytes, string, int or float first."
            )
