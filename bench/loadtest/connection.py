"""One HTTP/1.1 connection of the load client: sends the same request again and again, and looks at as little of each
answer as it can.

While a run is measured no JSON is parsed here, since the client shares the machine with what it measures: events are
counted by their name, and an answer is taken for whole if the first word, a finish reason and `[DONE]` have come.
Whether the text is right is checked before (see `verify`).
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final, cast

now: Final = time.perf_counter

# The first word of every fake stream, with the quote that opens the string: a role's empty chunk is no content yet.
_FIRST_CONTENT: Final = b'" the'
_FINISHED: Final = b'"stop"'
_DONE: Final = b"[DONE]"
_BODY_END: Final = b"0\r\n\r\n"  # at the start of a line
_TAIL: Final = 1024  # bytes kept of the end: it holds the finish reason and the usage that may follow it
_CHUNK_HEAD: Final = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")
_MAX_HEAD: Final = 65_536


class Connection(asyncio.Protocol):
    """A kept-alive connection. One request at a time.

    `began` (seconds of `now`), `first_s` (seconds from the request to the first content, None before it) and
    `events` are of the request under way (`busy`), or else the last one. `reusable` is False once the connection can't
    take another request.
    """

    def __init__(self) -> None:
        self.began = 0.0
        self.first_s: float | None = None
        self.events = 0
        self.busy = False
        self.reusable = True
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._ended: asyncio.Future[str | None] | None = None  # what `exchange` waits on: what was wrong

    async def exchange(self, request: bytes) -> str | None:
        """Send the request and take in the whole answer. Returns what was wrong with it, if anything."""
        assert self._ended is None, "one request at a time"
        if self._transport is None:
            self.reusable = False
            return "connection lost (before the request)"
        self._ended = self._loop.create_future()
        self._status = 0
        self._head = b""
        self._in_body = False
        self._chunked = False
        self._left: int | None = None  # bytes of a body whose length is known
        self._tail = b""
        self.first_s = None
        self.events = 0
        self.busy = True
        self.began = now()
        self._transport.write(request)
        try:
            return await self._ended
        finally:
            self._ended = None
            self.busy = False

    def close(self) -> None:
        """Drop the connection."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is not one by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        """End the answer under way; that is right only for a body that ends with its connection."""
        self._transport = None
        self.reusable = False
        if self.busy:
            whole = self._in_body and not self._chunked and self._left is None
            self._end(None if whole else f"connection lost ({type(exc).__name__ if exc else 'end of file'})")

    def data_received(self, data: bytes) -> None:
        """Take in a part of the answer."""
        if not self.busy:
            return
        if not self._in_body:
            rest = self._read_head(data)
            if rest is None or (not rest and self._left != 0):
                return
            data = rest
        recent = self._tail + data
        if self.first_s is None and _FIRST_CONTENT in recent:
            self.first_s = now() - self.began
        self._tail = tail = recent[-_TAIL:]
        self.events += data.count(b"data:")  # one cut in two by a read is missed: rare, and only shares are taken of it
        if self._chunked:
            if tail.endswith(_BODY_END) and (tail == _BODY_END or tail.endswith(b"\r\n" + _BODY_END)):
                self._end(None)
        elif self._left is not None:
            self._left -= len(data)
            if self._left <= 0:
                self._end(None)

    # ------------------------------------------------------------------ the answer

    def _read_head(self, data: bytes) -> bytes | None:
        """What follows the head; None while it isn't whole."""
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end and len(self._head) < _MAX_HEAD:
            return None
        line, *fields = head.lower().split(b"\r\n")
        if not end or not re.match(rb"http/1\.[01] \d\d\d\b", line):
            self.reusable = False
            self._end("not HTTP")
            return None
        headers = {name: value.strip() for name, _, value in (field.partition(b":") for field in fields)}
        self._in_body = True
        self._status = int(line[9:12])
        self._chunked = headers.get(b"transfer-encoding") == b"chunked"
        if not self._chunked and b"content-length" in headers:
            self._left = int(headers[b"content-length"])
        if headers.get(b"connection") == b"close" or (not self._chunked and self._left is None):
            self.reusable = False
        return rest

    def _end(self, error: str | None) -> None:
        assert self._ended is not None
        self.busy = False
        if not self._ended.done():  # it is, if whoever waited was cancelled
            self._ended.set_result(error or self._wrong())

    def _wrong(self) -> str | None:
        if self._status != 200:
            return f"status {self._status}"
        if self.first_s is None:
            return "no content"
        tail = self._tail
        if _FINISHED not in tail or _DONE not in tail:  # the framing of the body may have cut them in two
            tail = _CHUNK_HEAD.sub(b"", tail)
        if _FINISHED not in tail:
            return "no finish reason"
        return None if _DONE in tail else "no [DONE]"
