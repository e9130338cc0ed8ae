"""A loopback HTTP server that says exactly the bytes a test wants, and reports what happens to its connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

from asynclm.adapters.models import ModelError, Request, Stream, StreamEvent


class Exchange:
    """One request, and the way to answer it."""

    def __init__(self, transport: asyncio.Transport, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = lines[0].split(" ")
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        self.body = body
        self.gone = asyncio.Event()  # the client has dropped the connection
        self._transport = transport

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def head(self, kind: str = "text/event-stream", status: str = "200 OK", **headers: str) -> None:
        """Begin a chunked answer."""
        fields = {"content-type": kind, "transfer-encoding": "chunked"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode())

    def chunk(self, *data: bytes) -> None:
        for piece in data:
            self.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def end(self) -> None:
        self.write(b"0\r\n\r\n")

    def whole(self, body: bytes, kind: str = "application/json", status: str = "200 OK", **headers: str) -> None:
        """Answer with a body of known length."""
        fields = {"content-type": kind, "content-length": str(len(body))} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body)

    def drop(self) -> None:
        self._transport.abort()

    def close(self) -> None:
        self._transport.close()


Answer = Callable[[Exchange], Awaitable[None] | None]


class LoopbackUpstream:
    """The server. `answers` are taken one a request; the last one is used again and again."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.open = 0
        self.arrived = asyncio.Event()
        self.idle = asyncio.Event()  # no connection is open
        self.idle.set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def last(self) -> Exchange:
        return self.exchanges[-1]

    async def arrival(self) -> Exchange:
        """The next request that arrives."""
        await self.arrived.wait()
        self.arrived.clear()
        return self.last

    def answer(self, exchange: Exchange) -> Awaitable[None] | None:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(exchange)


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: LoopbackUpstream) -> None:
        self.upstream = upstream
        self.buffer = b""
        self.exchange: Exchange | None = None
        self.tasks: set[asyncio.Future[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.upstream.connections += 1
        self.upstream.open += 1
        self.upstream.idle.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.open -= 1
        if not self.upstream.open:
            self.upstream.idle.set()
        if self.exchange is not None:
            self.exchange.gone.set()
        for task in self.tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        exchange = Exchange(self.transport, head, b"")
        length = int(exchange.headers.get("content-length", "0"))
        if len(rest) < length:
            return
        exchange.body, self.buffer = rest[:length], rest[length:]
        self.exchange = exchange
        self.upstream.exchanges.append(exchange)
        self.upstream.arrived.set()
        answering = self.upstream.answer(exchange)
        if answering is not None:
            task = asyncio.ensure_future(answering)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)


async def start() -> tuple[LoopbackUpstream, asyncio.Server]:
    upstream = LoopbackUpstream()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(upstream), "127.0.0.1", 0)
    upstream.port = server.sockets[0].getsockname()[1]
    return upstream, server


def request(text: str = "hi", **more: Any) -> Request:
    return Request(**{"model": "m", "messages": [{"role": "user", "content": text}], **more})


async def collect(stream: Stream) -> list[StreamEvent]:
    """Every event of a stream; closes it."""
    try:
        return [event async for batch in stream for event in batch]
    finally:
        await stream.aclose()


async def collect_failing(stream: Stream) -> tuple[list[StreamEvent], ModelError]:
    """The events of a stream that fails, and how it fails; closes it."""
    events: list[StreamEvent] = []
    try:
        async for batch in stream:
            events += batch
    except ModelError as error:
        return events, error
    finally:
        await stream.aclose()
    raise AssertionError(f"the stream did not fail: {events}")
