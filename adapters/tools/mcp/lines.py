"""Lines out of a stream of bytes, none of them longer than a bound."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

_SHOWN: Final = 256

# Where a JSON-RPC answer says what it answers: in front (Python's SDK) or at the end (TypeScript's).
_ID: Final = rb'"id"\s*:\s*(\d{1,15}|"listen-\d{1,15}")'
_VERSION: Final = rb'"jsonrpc"\s*:\s*"2\.0"'
_IN_FRONT: Final = re.compile(
    rb"\s*\{\s*(?:" + _VERSION + rb"\s*,\s*)?" + _ID + rb"\s*,(?:\s*" + _VERSION + rb'\s*,)?\s*"(?:result|error)"\s*:'
)
_AT_THE_END: Final = re.compile(
    rb"[}\]\"\del]\s*,\s*(?:" + _VERSION + rb"\s*,\s*)?" + _ID + rb"(?:\s*,\s*" + _VERSION + rb")?\s*\}\s*$"
)


class TooLong(msgspec.Struct, frozen=True):
    """A line that was not kept: its first and last bytes, and its length."""

    head: bytes
    tail: bytes
    size: int

    def answers(self) -> int | str | None:
        """The id of the request that this line answers, as far as its ends tell."""
        found = _IN_FRONT.match(self.head) or _AT_THE_END.search(self.tail)
        if found is None:
            return None
        id = found.group(1).decode()
        return id.strip('"') if id.startswith('"') else int(id)


class Lines:
    """Fed any split of the bytes, yields the same lines. Holds at most `max_bytes` and what it was fed last."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._head = b""
        self._tail = b""

    def feed(self, data: bytes) -> Iterator[bytes | TooLong]:
        """The lines that these bytes complete, without their ends."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._add(piece)
            yield self._take()
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        if not piece:
            return
        self._size += len(piece)
        if self._size <= self._max:
            self._parts.append(piece)
            return
        if self._parts:
            whole = b"".join(self._parts)
            self._head, self._tail = whole[:_SHOWN], whole[-_SHOWN:]
            self._parts = []
        self._head = (self._head + piece[:_SHOWN])[:_SHOWN]
        self._tail = (self._tail + piece[-_SHOWN:])[-_SHOWN:]

    def _take(self) -> bytes | TooLong:
        line = TooLong(self._head, self._tail, self._size) if self._size > self._max else b"".join(self._parts)
        self._parts, self._size, self._head, self._tail = [], 0, b"", b""
        return line
