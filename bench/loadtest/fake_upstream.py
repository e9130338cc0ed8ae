"""A small, fast, fake OpenAI upstream for load tests. Loopback only.

    python bench/loadtest/fake_upstream.py --port 9100

The model's name says how the answer is shaped:

    fake-N-D        N content chunks, D ms apart (D may be 0 or a decimal)
    fake-N-D-B      the same, B chunks joined in each write to the socket (default 1; 0: all in one)
    fake-N-D-B-S    the same, the text of each chunk padded to S characters
    cut-N-D         N chunks, then the connection is dropped without an end
    err-STATUS      an error with that status, in OpenAI's shape

Routes: POST */chat/completions (streamed or not), GET */models, GET */healthz. The first chunk leaves with the headers,
each later one D ms after the one before; each event is its own chunk of the HTTP body, as OpenAI sends it. The answers
are put together once a model name, so that a chunk costs little more than its write.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

import msgspec
import uvloop

_WORDS: Final = (
    *(" the", " quick", " brown", " fox", " jumps", " over", " a", " lazy"),
    *(" dog", ".", " Streaming", " tokens", ' "quoted"', " caf\u00e9", "\n", " end"),
)
_CREATED: Final = 1760000000
_ID: Final = "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG"
_BACKLOG: Final = 2048
_BODY_END: Final = b"0\r\n\r\n"
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"x-request-id: req_fake0001\r\nopenai-processing-ms: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_MODELS: Final = ("fake-1-0", "fake-200-0", "fake-10-20", "fake-40-50", "fake-50-200")

_encode: Final = msgspec.json.Encoder().encode


def expected_text(chunks: int, size: int = 0) -> str:
    """The whole text of an answer of so many chunks, each padded to `size` characters."""
    return "".join(_word(index, size) for index in range(chunks))


def _word(index: int, size: int) -> str:
    return _WORDS[index % len(_WORDS)].ljust(size, "x")


class Shape(NamedTuple):
    """What a model's name asks for. `delay_s` is between chunks, `joined` how many of them a write holds."""

    kind: str
    chunks: int = 1
    delay_s: float = 0.0
    joined: int = 1
    size: int = 0
    status: int = 200


def shape_of(model: str) -> Shape:
    """Read a model's name. Raises ValueError for one that means nothing here."""
    kind, *numbers = model.split("-")
    if kind == "err" and len(numbers) == 1:
        return Shape(kind, status=int(numbers[0]))
    if kind not in ("fake", "cut") or not 2 <= len(numbers) <= 4:
        raise ValueError(f"no such model: {model[:60]!r}")
    chunks, delay_ms = int(numbers[0]), float(numbers[1])
    joined, size = map(int, (*numbers[2:], *("1", "0")[len(numbers) - 2 :]))
    if not (0 < chunks <= 100_000 and 0 <= delay_ms <= 60_000 and joined >= 0 and 0 <= size <= 10_000):
        raise ValueError(f"out of bounds: {model[:60]!r}")
    return Shape(kind, chunks, delay_ms / 1000, joined or chunks, size)


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(document: Any) -> bytes:
    return _http_chunk(b"data: " + _encode(document) + b"\n\n")


def _usage(chunks: int) -> dict[str, Any]:
    return {
        "prompt_tokens": 9,
        "completion_tokens": chunks,
        "total_tokens": 9 + chunks,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


@lru_cache(256)
def _stream(model: str, with_usage: bool) -> tuple[bytes, ...]:
    """The writes to the socket of one stream; the first holds the headers too."""
    shape = shape_of(model)
    # The API sends `usage`, null but in the last chunk, only if it was asked for.
    no_usage = {"usage": None} if with_usage else {}

    def chunk(choices: list[Any], usage: dict[str, Any]) -> bytes:
        head = {"id": _ID, "object": "chat.completion.chunk", "created": _CREATED, "model": model}
        return _event(
            {**head, "service_tier": "default", "system_fingerprint": "fp_44709d6fcb", "choices": choices} | usage
        )

    def choice(delta: dict[str, Any], reason: str | None = None) -> list[Any]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]

    first: dict[str, Any] = {"role": "assistant", "content": _word(0, shape.size), "refusal": None}
    deltas = [first, *({"content": _word(index, shape.size)} for index in range(1, shape.chunks))]
    events = [chunk(choice(delta), no_usage) for delta in deltas]
    writes = [b"".join(events[at : at + shape.joined]) for at in range(0, len(events), shape.joined)]
    writes[0] = _STREAM_HEAD + writes[0]
    if shape.kind == "fake":
        writes[-1] += chunk(choice({}, "stop"), no_usage)
        if with_usage:
            writes[-1] += chunk([], {"usage": _usage(shape.chunks)})
        writes[-1] += _http_chunk(b"data: [DONE]\n\n") + _BODY_END
    return tuple(writes)


@lru_cache(256)
def _whole(model: str) -> bytes:
    shape = shape_of(model)
    text = expected_text(shape.chunks, shape.size)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    document = {
        "id": _ID,
        "object": "chat.completion",
        "created": _CREATED,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": _usage(shape.chunks),
        "service_tier": "default",
        "system_fingerprint": "fp_44709d6fcb",
    }
    return _response(200, document)


def _response(status: int, document: Any) -> bytes:
    body = _encode(document)
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nx-request-id: req_fake0001\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _error(status: int, message: str) -> bytes:
    return _response(status, {"error": {"message": message, "type": "fake_error", "param": None, "code": "fake"}})


class _Asked(msgspec.Struct):
    """What matters of a request's body."""

    model: str
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None


class FakeUpstream(asyncio.Protocol):
    """One connection. Requests are answered one after another."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None
        self._writes: tuple[bytes, ...] = ()  # of the answer under way
        self._position = 0
        self._delay_s = 0.0
        self._next_at = 0.0
        self._close = False
        self._paused = False
        self._timer: asyncio.Handle | None = None

    # ------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is not one by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop what was to be written."""
        self._transport = None
        self._writes = ()
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        """The reader is slower than we are."""
        self._paused = True

    def resume_writing(self) -> None:
        """The reader has caught up."""
        self._paused = False
        if self._writes and self._timer is None:
            self._write_next()

    def data_received(self, data: bytes) -> None:
        """Collect requests."""
        self._received += data
        if not self._writes:
            self._read_request()

    # ------------------------------------------------------------------ requests

    def _read_request(self) -> None:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        line, *fields = self._received[:end].split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(b":") for field in fields)}
        if b"transfer-encoding" in headers:
            self._received = b""
            self._answer(_error(411, "this upstream wants a content-length"), close=True)
            return
        length = int(headers.get(b"content-length", b"0"))
        end += 4
        if len(self._received) < end + length:
            return
        body, self._received = self._received[end : end + length], self._received[end + length :]
        method, path, *_ = line.split(b" ")
        self._handle(method, path.partition(b"?")[0], body)

    def _handle(self, method: bytes, path: bytes, body: bytes) -> None:
        if method == b"GET" and path.endswith(b"/models"):
            models = [{"id": id, "object": "model", "created": _CREATED, "owned_by": "fake"} for id in _MODELS]
            return self._answer(_response(200, {"object": "list", "data": models}))
        if method == b"GET" and path.endswith(b"/healthz"):
            return self._answer(_response(200, {"status": "ok"}))
        if method != b"POST" or not path.endswith(b"/chat/completions"):
            return self._answer(_error(404, "no such route"))
        try:
            asked = msgspec.json.decode(body, type=_Asked)
            shape = shape_of(asked.model)
        except ValueError as error:  # msgspec's are subclasses
            return self._answer(_error(404, str(error)))
        if shape.kind == "err":
            return self._answer(_error(shape.status, f"fake error {shape.status}"))
        if not asked.stream:
            return self._answer(_whole(asked.model), after_s=shape.delay_s * (shape.chunks - 1))
        self._writes = _stream(asked.model, bool((asked.stream_options or {}).get("include_usage")))
        self._position = 0
        self._delay_s = shape.delay_s
        self._close = shape.kind == "cut"
        self._next_at = self._loop.time()
        return self._write_next()

    def _answer(self, response: bytes, *, after_s: float = 0.0, close: bool = False) -> None:
        self._writes, self._position, self._close = (response,), 0, close
        if after_s:
            self._timer = self._loop.call_later(after_s, self._write_next)
        else:
            self._write_next()

    def _write_next(self) -> None:
        """Write one part; the next one follows in the loop's next turn, or after the delay."""
        self._timer = None
        if self._transport is None or not self._writes or self._paused:
            return
        self._transport.write(self._writes[self._position])
        self._position += 1
        if self._position == len(self._writes):
            self._writes = ()
            if self._close:
                self._transport.close()  # what was written still leaves
            elif self._received:
                self._timer = self._loop.call_soon(self._read_request)
        elif self._delay_s:
            self._next_at += self._delay_s
            self._timer = self._loop.call_at(self._next_at, self._write_next)
        else:
            self._timer = self._loop.call_soon(self._write_next)


async def start(port: int = 0) -> tuple[asyncio.Server, str]:
    """Listen on loopback; port 0 takes a free one. Returns the server and its base URL, which ends in /v1."""
    server = await asyncio.get_running_loop().create_server(FakeUpstream, "127.0.0.1", port, backlog=_BACKLOG)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def _serve(port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server, url = await start(port)
    print(f"fake upstream: listening on {url}", flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    """Serve until told to stop."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--port", type=int, default=0, help="default: a free one")
    args = options.parse_args()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(args.port))


if __name__ == "__main__":
    main()
