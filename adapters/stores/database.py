"""Redis's commands on an SQLite file: the part that needs no event loop.

What isn't here is refused as a Redis server refuses a command that it doesn't know. Replies are those of the wire
protocol (RESP2): bytes, int, None, lists of these, and `OK`. The file can be open in several processes at once; a
command is a transaction, and so is a script.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from asynclm.adapters.stores.script import Scripts

Reply = Any  # bytes | int | None | list[Reply]

OK: Final = b"OK"
MEMORY: Final = ":memory:"

_PAGE_BYTES: Final = 4096
_SWEEP_S: Final = 10.0  # how often expired keys are removed that nobody asks for
_FULL: Final = 0.9  # of the bytes allowed: where making room stops

_OPEN_S: Final = 5.0  # how long processes that open a new file at once wait for each other
_LOCKED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

_SETTINGS: Final = (
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA foreign_keys = ON",
)
_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS keys (key BLOB PRIMARY KEY, kind TEXT NOT NULL, value BLOB, expires REAL);
CREATE INDEX IF NOT EXISTS keys_expires ON keys (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS fields (
    key BLOB NOT NULL REFERENCES keys ON DELETE CASCADE, field BLOB NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (key, field)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (
    key BLOB NOT NULL REFERENCES keys ON DELETE CASCADE, member BLOB NOT NULL, score REAL NOT NULL,
    PRIMARY KEY (key, member)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS members_score ON members (key, score, member);
CREATE TABLE IF NOT EXISTS elements (
    key BLOB NOT NULL REFERENCES keys ON DELETE CASCADE, place INTEGER NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (key, place)) WITHOUT ROWID;
COMMIT;
"""


class Database:
    """One connection to the file at `path` (`MEMORY`: none, gone when closed). Use it from one thread at a time.

    The file is kept below `max_bytes`: where it would grow beyond, the keys that expire soonest go first. `busy_s` is
    how long a command waits while another process writes. Raises `sqlite3.Error` if the file can't be used.
    """

    def __init__(self, path: Path | str, *, max_bytes: int, busy_s: float) -> None:
        self._connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
        self._max_pages = max(max_bytes // _PAGE_BYTES, 64)
        self._swept = 0.0
        self._now = 0.0
        self._run = self._connection.execute
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise
        self._scripts = Scripts(self.call)

    def _prepare(self) -> None:
        deadline = time.monotonic() + _OPEN_S
        while True:
            try:
                for setting in _SETTINGS:
                    self._run(setting)
                self._connection.executescript(_SCHEMA)
                return
            except sqlite3.OperationalError as error:
                # SQLite itself doesn't wait where the file's mode is changed: that could be for ever.
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _LOCKED or time.monotonic() > deadline:
                    raise
            if self._connection.in_transaction:
                self._run("ROLLBACK")
            time.sleep(0.01)

    def close(self) -> None:
        """Write what is in the journal into the file, and let go of it."""
        self._connection.close()

    def command(self, arguments: Sequence[bytes]) -> Reply:
        """Carry out one command, whole or not at all. Raises `redis.exceptions.ResponseError`."""
        try:
            with self._transaction():
                return self.call(arguments)
        except sqlite3.OperationalError as error:
            raise _as_redis(error) from error

    def call(self, arguments: Sequence[bytes]) -> Reply:
        """Carry out one command within the transaction that is open: what a script's `redis.call` does."""
        name = bytes(arguments[0]).decode("ascii", "replace").upper()
        command = _COMMANDS.get(name)
        if command is None:
            raise ResponseError(f"unknown command '{name}'")
        try:
            return command(self, *arguments[1:])
        except (TypeError, IndexError, ValueError):
            raise ResponseError(f"wrong number of arguments for '{name.lower()}' command") from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._run("BEGIN IMMEDIATE")
        try:
            self._now = time.time()
            if self._now - self._swept >= _SWEEP_S or self._now < self._swept:
                self._swept = self._now
                self._sweep()
            yield
        except BaseException:
            if self._connection.in_transaction:
                self._run("ROLLBACK")
            raise
        self._run("COMMIT")

    def _sweep(self) -> None:
        self._run("DELETE FROM keys WHERE expires <= ?", (self._now,))
        soonest = "SELECT key FROM keys ORDER BY expires IS NULL, expires LIMIT 1 + (SELECT count(*) FROM keys) / 20"
        while self._pages() > self._max_pages * _FULL:
            if not self._run(f"DELETE FROM keys WHERE key IN ({soonest})").rowcount:
                break
        self._run("PRAGMA incremental_vacuum")

    def _pages(self) -> int:
        (used,) = self._run("PRAGMA page_count").fetchone()
        (free,) = self._run("PRAGMA freelist_count").fetchone()
        return int(used) - int(free)

    def _room(self, size: int) -> None:
        """See to it that so many more bytes fit. Raises `OutOfMemoryError` where they never will."""
        if size > self._max_pages * _PAGE_BYTES // 2:
            raise OutOfMemoryError("command not allowed: the value is too large for the store")
        if self._pages() + size // _PAGE_BYTES >= self._max_pages:
            self._sweep()

    # ------------------------------------------------------------------ keys

    def _kind(self, key: bytes) -> str | None:
        row = self._run("SELECT kind, expires FROM keys WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if row[1] is not None and row[1] <= self._now:
            self._run("DELETE FROM keys WHERE key = ?", (key,))
            return None
        return str(row[0])

    def _holds(self, key: bytes, kind: str) -> bool:
        """Whether there is such a key. Raises `ResponseError` if it holds something else."""
        found = self._kind(key)
        if found is not None and found != kind:
            raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return found is not None

    def _make(self, key: bytes, kind: str, size: int) -> None:
        self._room(size)
        if not self._holds(key, kind):
            self._run("INSERT INTO keys (key, kind) VALUES (?, ?)", (key, kind))

    def _drop_empty(self, key: bytes, table: str) -> None:
        if self._run(f"SELECT 1 FROM {table} WHERE key = ? LIMIT 1", (key,)).fetchone() is None:
            self._run("DELETE FROM keys WHERE key = ?", (key,))

    def _ping(self) -> Reply:
        return b"PONG"

    def _delete(self, *keys: bytes) -> Reply:
        gone = 0
        for key in keys:
            if self._kind(key) is not None:
                gone += self._run("DELETE FROM keys WHERE key = ?", (key,)).rowcount
        return gone

    def _exists(self, *keys: bytes) -> Reply:
        return sum(self._kind(key) is not None for key in keys)

    def _type(self, key: bytes) -> Reply:
        return (self._kind(key) or "none").encode()

    def _pexpire(self, key: bytes, milliseconds: bytes) -> Reply:
        if self._kind(key) is None:
            return 0
        expires = self._now + _integer(milliseconds) / 1000
        self._run("UPDATE keys SET expires = ? WHERE key = ?", (expires, key))
        return 1

    def _expire(self, key: bytes, seconds: bytes) -> Reply:
        return self._pexpire(key, b"%d" % (_integer(seconds) * 1000))

    def _pttl(self, key: bytes) -> Reply:
        if self._kind(key) is None:
            return -2
        (expires,) = self._run("SELECT expires FROM keys WHERE key = ?", (key,)).fetchone()
        return -1 if expires is None else max(0, round((expires - self._now) * 1000))

    def _ttl(self, key: bytes) -> Reply:
        left = self._pttl(key)
        return left if left < 0 else round(left / 1000)

    def _scan(self, cursor: bytes, *options: bytes) -> Reply:
        """All at once: the cursor that comes back is always 0."""
        pattern = b"*"
        for option, value in zip(options[::2], options[1::2], strict=True):
            if option.upper() == b"MATCH":
                pattern = value
            elif option.upper() != b"COUNT":
                raise ResponseError("syntax error")
        matches = glob(pattern)
        rows = self._run("SELECT key FROM keys WHERE expires IS NULL OR expires > ?", (self._now,))
        return [b"0", [key for (key,) in rows if matches(key)]]

    # ------------------------------------------------------------------ strings

    def _get(self, key: bytes) -> Reply:
        if not self._holds(key, "string"):
            return None
        return self._run("SELECT value FROM keys WHERE key = ?", (key,)).fetchone()[0]

    def _mget(self, *keys: bytes) -> Reply:
        return [self._get(key) if self._kind(key) == "string" else None for key in keys]

    def _set(self, key: bytes, value: bytes, *options: bytes) -> Reply:
        expires: float | None = None
        only_new = only_old = False
        rest = iter(options)
        for option in rest:
            match option.upper():
                case b"PX":
                    expires = self._now + _positive(next(rest, b"")) / 1000
                case b"EX":
                    expires = self._now + _positive(next(rest, b""))
                case b"NX":
                    only_new = True
                case b"XX":
                    only_old = True
                case _:
                    raise ResponseError("syntax error")
        there = self._kind(key) is not None
        if (only_new and there) or (only_old and not there):
            return None
        self._room(len(value))
        self._run("DELETE FROM keys WHERE key = ?", (key,))
        self._run("INSERT INTO keys VALUES (?, 'string', ?, ?)", (key, value, expires))
        return OK

    def _strlen(self, key: bytes) -> Reply:
        return len(self._get(key) or b"")

    def _incrby(self, key: bytes, amount: bytes) -> Reply:
        value = _integer(self._get(key) or b"0") + _integer(amount)
        self._make(key, "string", 0)
        self._run("UPDATE keys SET value = ? WHERE key = ?", (b"%d" % value, key))
        return value

    def _incr(self, key: bytes) -> Reply:
        return self._incrby(key, b"1")

    # ------------------------------------------------------------------ hashes

    def _hset(self, key: bytes, *pairs: bytes) -> Reply:
        new = [(pairs[n], pairs[n + 1]) for n in range(0, len(pairs), 2)]
        self._make(key, "hash", sum(map(len, pairs)))
        before = self._hlen(key)
        statement = "INSERT INTO fields VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
        self._connection.executemany(statement, [(key, field, value) for field, value in new])
        return self._hlen(key) - before

    def _hget(self, key: bytes, field: bytes) -> Reply:
        self._holds(key, "hash")
        row = self._run("SELECT value FROM fields WHERE key = ? AND field = ?", (key, field)).fetchone()
        return row[0] if row else None

    def _hgetall(self, key: bytes) -> Reply:
        self._holds(key, "hash")
        return [part for row in self._run("SELECT field, value FROM fields WHERE key = ?", (key,)) for part in row]

    def _hlen(self, key: bytes) -> Reply:
        self._holds(key, "hash")
        return self._run("SELECT count(*) FROM fields WHERE key = ?", (key,)).fetchone()[0]

    def _hdel(self, key: bytes, *fields: bytes) -> Reply:
        self._holds(key, "hash")
        gone = sum(self._run("DELETE FROM fields WHERE key = ? AND field = ?", (key, f)).rowcount for f in fields)
        self._drop_empty(key, "fields")
        return gone

    def _hincrby(self, key: bytes, field: bytes, amount: bytes) -> Reply:
        value = _integer(self._hget(key, field) or b"0") + _integer(amount)
        self._hset(key, field, b"%d" % value)
        return value

    # ------------------------------------------------------------------ lists

    def _rpush(self, key: bytes, *values: bytes) -> Reply:
        self._make(key, "list", sum(map(len, values)))
        (last,) = self._run("SELECT coalesce(max(place), -1) FROM elements WHERE key = ?", (key,)).fetchone()
        rows = [(key, last + 1 + n, value) for n, value in enumerate(values)]
        self._connection.executemany("INSERT INTO elements VALUES (?, ?, ?)", rows)
        return self._llen(key)

    def _llen(self, key: bytes) -> Reply:
        self._holds(key, "list")
        return self._run("SELECT count(*) FROM elements WHERE key = ?", (key,)).fetchone()[0]

    def _lrange(self, key: bytes, start: bytes, stop: bytes) -> Reply:
        first, count = _span(start, stop, self._llen(key))
        rows = self._run(
            "SELECT value FROM elements WHERE key = ? ORDER BY place LIMIT ? OFFSET ?", (key, count, first)
        )
        return [value for (value,) in rows]

    def _ltrim(self, key: bytes, start: bytes, stop: bytes) -> Reply:
        first, count = _span(start, stop, self._llen(key))
        kept = "SELECT place FROM elements WHERE key = ? ORDER BY place LIMIT ? OFFSET ?"
        self._run(f"DELETE FROM elements WHERE key = ? AND place NOT IN ({kept})", (key, key, count, first))
        self._drop_empty(key, "elements")
        return OK

    # ------------------------------------------------------------------ sorted sets

    def _zadd(self, key: bytes, *pairs: bytes) -> Reply:
        new = [(_score(pairs[n]), pairs[n + 1]) for n in range(0, len(pairs), 2)]
        self._make(key, "zset", sum(map(len, pairs)))
        before = self._zcard(key)
        statement = "INSERT INTO members VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET score = excluded.score"
        self._connection.executemany(statement, [(key, member, score) for score, member in new])
        return self._zcard(key) - before

    def _zrem(self, key: bytes, *members: bytes) -> Reply:
        self._holds(key, "zset")
        gone = sum(self._run("DELETE FROM members WHERE key = ? AND member = ?", (key, m)).rowcount for m in members)
        self._drop_empty(key, "members")
        return gone

    def _zcard(self, key: bytes) -> Reply:
        self._holds(key, "zset")
        return self._run("SELECT count(*) FROM members WHERE key = ?", (key,)).fetchone()[0]

    def _zscore(self, key: bytes, member: bytes) -> Reply:
        self._holds(key, "zset")
        row = self._run("SELECT score FROM members WHERE key = ? AND member = ?", (key, member)).fetchone()
        return _written(row[0]) if row else None

    def _zrange(self, key: bytes, start: bytes, stop: bytes, *options: bytes) -> Reply:
        flags = {option.upper() for option in options}
        if not flags <= {b"REV", b"WITHSCORES"}:
            raise ResponseError("syntax error")
        first, count = _span(start, stop, self._zcard(key))
        way = "DESC" if b"REV" in flags else "ASC"
        rows = self._run(
            f"SELECT member, score FROM members WHERE key = ? ORDER BY score {way}, member {way} LIMIT ? OFFSET ?",
            (key, count, first),
        ).fetchall()
        if b"WITHSCORES" in flags:
            return [part for member, score in rows for part in (member, _written(score))]
        return [member for member, _ in rows]

    def _zrevrange(self, key: bytes, start: bytes, stop: bytes, *options: bytes) -> Reply:
        return self._zrange(key, start, stop, b"REV", *options)

    def _zrangebyscore(self, key: bytes, least: bytes, most: bytes) -> Reply:
        self._holds(key, "zset")
        condition, bounds = _between(least, most)
        rows = self._run(
            f"SELECT member FROM members WHERE key = ? AND {condition} ORDER BY score, member", (key, *bounds)
        )
        return [member for (member,) in rows]

    def _zremrangebyscore(self, key: bytes, least: bytes, most: bytes) -> Reply:
        self._holds(key, "zset")
        condition, bounds = _between(least, most)
        gone = self._run(f"DELETE FROM members WHERE key = ? AND {condition}", (key, *bounds)).rowcount
        self._drop_empty(key, "members")
        return gone

    # ------------------------------------------------------------------ scripts

    def _eval(self, script: bytes, count: bytes, *rest: bytes) -> Reply:
        number = _integer(count)
        return self._scripts.run(script, rest[:number], rest[number:])


_NAMES: Final = """
    ping delete exists type scan expire pexpire ttl pttl get mget set strlen incr incrby hset hget hgetall hlen hdel
    hincrby rpush llen lrange ltrim zadd zrem zcard zscore zrange zrevrange zrangebyscore zremrangebyscore eval
"""
_COMMANDS: Final[dict[str, Callable[..., Reply]]] = {
    name.upper(): getattr(Database, f"_{name}") for name in _NAMES.split()
}
_COMMANDS["DEL"] = _COMMANDS["UNLINK"] = _COMMANDS.pop("DELETE")


def glob(pattern: bytes) -> Callable[[bytes], bool]:
    """Redis's patterns: `*`, `?`, `[abc]`, `[^a]`, and a backslash before what is meant literally."""
    parts = re.findall(rb"\\.|\[\^?[^\]]*\]|.", pattern, re.DOTALL)
    wild = {b"*": b".*", b"?": b"."}
    expression = b"".join(
        wild.get(part) or (part if part[:1] == b"[" and len(part) > 2 else re.escape(part.removeprefix(b"\\")))
        for part in parts
    )
    compiled = re.compile(expression, re.DOTALL)
    return lambda key: compiled.fullmatch(key) is not None


def _integer(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise ResponseError("value is not an integer or out of range") from None


def _positive(text: bytes) -> int:
    number = _integer(text)
    if number <= 0:
        raise ResponseError("invalid expire time in 'set' command")
    return number


def _score(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        raise ResponseError("value is not a valid float") from None


def _written(score: float) -> bytes:
    return (repr(int(score)) if score.is_integer() else repr(score)).encode()


def _between(least: bytes, most: bytes) -> tuple[str, tuple[float, float]]:
    above, below = ">=", "<="
    if least[:1] == b"(":
        above, least = ">", least[1:]
    if most[:1] == b"(":
        below, most = "<", most[1:]
    return f"score {above} ? AND score {below} ?", (_score(least), _score(most))


def _span(start: bytes, stop: bytes, length: int) -> tuple[int, int]:
    """Offset and count of a range whose ends are included and may count from behind."""
    first, last = _integer(start), _integer(stop)
    first = max(0, first + length if first < 0 else first)
    last = min(length - 1, last + length if last < 0 else last)
    return first, max(0, last - first + 1)


def _as_redis(error: sqlite3.OperationalError) -> ResponseError:
    """What a Redis server would say of it."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return OutOfMemoryError(f"command not allowed: {error}")
        case sqlite3.SQLITE_READONLY:
            return ReadOnlyError(f"You can't write against a read only file: {error}")
        case _:
            return ResponseError(str(error))
