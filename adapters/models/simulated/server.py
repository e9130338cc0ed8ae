"""The simulated upstream: an OpenAI-compatible server whose model is the `Writer` with its cheat sheet. Stateless.

`asynclm simulate` runs it. It answers `POST /v1/chat/completions` (streamed or not), `GET /v1/models`, `GET /healthz`
and `GET /stats`, which counts what a test wants to know: connections, requests, and how they ended.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from ...port import port
from .pace import Pace
from .plan import read, text_of
from .settings import HEADER, Settings, with_header
from .task import TaskError
from .tokens import count_tokens
from .writer import Writer

MODEL: Final = "simulated"
_MAX_BODY: Final = 64 * 1024 * 1024
_WATCH_S: Final = 0.05  # how often a waiting stream looks whether its client is still there
_MAX_STOPS: Final = 4

_encode = msgspec.json.encode


class RequestError(Exception):
    """A request that is answered with an error, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": type, "param": param, "code": code}
        self.headers = headers

    def response(self) -> web.Response:
        """The answer to send."""
        return web.json_response({"error": self.error}, status=self.status, headers=self.headers)


class _ClientGoneError(Exception):
    """The client has left."""


class _BrokenOnPurposeError(Exception):
    """The connection is to be dropped: a fault that was asked for."""


class Stats(msgspec.Struct):
    """Counts since the server started. `open` is the number of connections now, `active` that of requests under way.

    A chat request ends as one of: `completed`, `refused` (the request was bad), `failed` (a fault was asked for),
    `aborted` (the client left).
    """

    connections: int = 0
    open: int = 0
    requests: int = 0
    active: int = 0
    completed: int = 0
    refused: int = 0
    failed: int = 0
    aborted: int = 0


class _Chat(msgspec.Struct):
    """The part of a request that matters here; anything else a client sends is taken and ignored."""

    model: str
    messages: list[dict[str, Any]]
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None


class _Server:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._random = random.Random(settings.seed)
        self._errors_left = settings.error_times
        self._connections: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()
        self._stats = Stats()

    # ------------------------------------------------------------------ the endpoints

    async def chat(self, request: web.Request) -> web.StreamResponse:
        stats = self._stats
        stats.requests += 1
        stats.active += 1
        ended = "aborted"
        try:
            settings = self._settings_for(request)
            chat = _decode(await request.read())
            self._maybe_fail(settings)
            writer, prompt_tokens = _prepare(chat)
            answer = _Answer(request, settings, chat, writer, prompt_tokens, f"chatcmpl-simulated-{stats.requests}")
            response, ended = await (answer.stream() if chat.stream else answer.whole())
            return response
        except RequestError as refusal:
            ended = "failed" if refusal.error["code"] == "simulated" else "refused"
            raise
        except (_BrokenOnPurposeError, _ClientGoneError, ConnectionError) as error:
            if isinstance(error, _BrokenOnPurposeError):
                ended = "failed"
                if request.transport is not None:
                    request.transport.abort()
            return web.Response()  # goes nowhere
        finally:
            stats.active -= 1
            setattr(stats, ended, getattr(stats, ended) + 1)

    async def models(self, request: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "asynclm"}
        return web.json_response({"object": "list", "data": [model]})

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def stats(self, request: web.Request) -> web.Response:
        self._stats.open = sum(not transport.is_closing() for transport in self._connections)
        return web.json_response(body=_encode(self._stats))

    @web.middleware
    async def shape_errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Count connections, and give every error OpenAI's shape."""
        transport = request.transport
        if transport is not None and transport not in self._connections:
            self._connections.add(transport)
            self._stats.connections += 1
        try:
            return await handler(request)
        except RequestError as refusal:
            return refusal.response()
        except web.HTTPException as error:
            where = f"{request.method} {request.path}"
            return RequestError(error.status, f"{where}: {error.reason}", headers=_allow(error)).response()

    # ------------------------------------------------------------------ faults

    def _settings_for(self, request: web.Request) -> Settings:
        header = request.headers.get(HEADER)
        if header is None:
            return self._settings
        try:
            return with_header(self._settings, header)
        except ValueError as error:
            raise RequestError(400, str(error), param=HEADER) from None

    def _maybe_fail(self, settings: Settings) -> None:
        if settings.error_status is None:
            return
        if settings.error_times is not None:
            if not self._errors_left:
                return
            self._errors_left -= 1
        elif settings.error_rate is not None and self._random.random() >= settings.error_rate:
            return
        retry_after = settings.retry_after
        raise RequestError(
            settings.error_status,
            f"simulated error {settings.error_status}",
            type="invalid_request_error" if settings.error_status < 429 else "server_error",
            code="simulated",
            headers=None if retry_after is None else {"retry-after": f"{retry_after:g}"},
        )


class _Answer:
    """One answer under way."""

    def __init__(
        self, request: web.Request, settings: Settings, chat: _Chat, writer: Writer, prompt_tokens: int, id: str
    ) -> None:
        self._request = request
        self._settings = settings
        self._writer = writer
        self._prompt_tokens = prompt_tokens
        self._pace = Pace(settings.ttft_ms, settings.tpot_ms)
        self._usage_asked = bool((chat.stream_options or {}).get("include_usage"))
        self._head = {"id": id, "created": int(time.time()), "model": chat.model}

    async def stream(self) -> tuple[web.StreamResponse, str]:
        """Send chunks as the tokens come."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
        await response.prepare(self._request)
        role = self._chunk({"role": "assistant", "content": ""})  # goes out along with the first text
        while True:
            fault = await self._fault()
            if fault is not None:
                await response.write(role + b"data: " + _encode({"error": fault.error}) + b"\n\n")
                return response, "failed"
            text = await self._token()
            if text:
                await response.write(role + self._chunk({"content": text}))
                role = b""
            if self._writer.finish_reason is not None:
                break
        last = [role, self._chunk({}, self._writer.finish_reason)]
        if self._usage_asked:
            last.append(self._event({"choices": [], "usage": self._usage()}))
        last.append(b"data: [DONE]\n\n")
        await response.write(b"".join(last))
        return response, "completed"

    async def whole(self) -> tuple[web.StreamResponse, str]:
        """Send one JSON document when all tokens have come."""
        parts: list[str] = []
        while self._writer.finish_reason is None:
            fault = await self._fault()
            if fault is not None:
                raise fault
            parts.append(await self._token())
        message = {"role": "assistant", "content": "".join(parts), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._writer.finish_reason}
        body = {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage()}
        return web.json_response(body=_encode(body)), "completed"

    async def _token(self) -> str:
        await self._until(self._pace.deadline)
        self._pace.passed()
        text = self._writer.next()
        return text if self._writer.finish_reason is None else text + self._writer.flush()

    async def _fault(self) -> RequestError | None:
        """Show the fault that is due at this token, if any: drop or stall here, or return the error to be sent."""
        count = self._writer.completion_tokens
        settings = self._settings
        if settings.break_at is not None and count >= settings.break_at:
            raise _BrokenOnPurposeError
        if settings.stall_at is not None and count >= settings.stall_at:
            await self._until(float("inf"))
        if settings.error_at is not None and count >= settings.error_at:
            return RequestError(500, f"simulated error after {count} tokens", type="server_error", code="simulated")
        return None

    async def _until(self, deadline: float) -> None:
        """Wait, and notice a client that leaves meanwhile: a handler that writes nothing is not told of it."""
        clock = asyncio.get_running_loop().time
        while True:
            if self._request.transport is None or self._request.transport.is_closing():
                raise _ClientGoneError
            left = deadline - clock()
            await asyncio.sleep(max(0.0, min(left, _WATCH_S)))
            if left <= _WATCH_S:
                return

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._event({"choices": [choice], "usage": None} if self._usage_asked else {"choices": [choice]})

    def _event(self, fields: dict[str, Any]) -> bytes:
        return b"data: " + _encode({**self._head, "object": "chat.completion.chunk", **fields}) + b"\n\n"

    def _usage(self) -> dict[str, Any]:
        completion_tokens = self._writer.completion_tokens
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self._prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


def _decode(body: bytes) -> _Chat:
    try:
        chat = msgspec.json.decode(body, type=_Chat)
    except msgspec.ValidationError as error:  # before its base class: the JSON is well-formed, its content is wrong
        raise RequestError(400, f"invalid request body: {error}") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise RequestError(400, f"the request body is not valid JSON: {error}") from None
    if not chat.messages:
        raise RequestError(400, "messages must not be empty", param="messages")
    if chat.n not in (None, 1):
        raise RequestError(400, "n must be 1: the simulated model knows one answer", param="n")
    stop = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
    if len(stop) > _MAX_STOPS:
        raise RequestError(400, f"stop takes up to {_MAX_STOPS} sequences, not {len(stop)}", param="stop")
    for name in ("max_tokens", "max_completion_tokens"):
        bound = getattr(chat, name)
        if bound is not None and bound < 1:
            raise RequestError(400, f"{name} must be at least 1", param=name)
    return chat


def _prepare(chat: _Chat) -> tuple[Writer, int]:
    try:
        progress = read(chat.messages)
    except TaskError as error:
        raise RequestError(400, str(error), param="messages") from None
    stop = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
    bounds = [bound for bound in (chat.max_tokens, chat.max_completion_tokens) if bound is not None]
    writer = Writer(progress, stop=stop, max_tokens=min(bounds, default=None))
    return writer, sum(count_tokens(text_of(message)) for message in chat.messages)


def _allow(error: web.HTTPException) -> dict[str, str] | None:
    allow = error.headers.get("Allow")
    return None if allow is None else {"Allow": allow}


def make_app(settings: Settings | None = None) -> web.Application:
    """The server as an aiohttp application. Each has counts and a fault sequence of its own."""
    server = _Server(settings or Settings())
    app = web.Application(middlewares=[server.shape_errors], client_max_size=_MAX_BODY)
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_get("/v1/models", server.models)
    app.router.add_get("/healthz", server.health)
    app.router.add_get("/stats", server.stats)
    return app


async def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT. Prints one line with the address when ready. Raises OSError if it can't listen."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    runner = web.AppRunner(make_app(settings), access_log=None, shutdown_timeout=0.25)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        port = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        print(f"asynclm simulate: listening on http://{shown}:{port}/v1", flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()


_FAULTS: Final = {
    "error_status": (int, "CODE", "answer with this HTTP status instead of a stream"),
    "error_times": (int, "N", "... to the first N requests only"),
    "error_rate": (float, "P", "... with this probability"),
    "seed": (int, "N", "what --error-rate draws with"),
    "retry_after": (float, "S", "the retry-after header of such an answer, seconds"),
    "break_at": (int, "N", "drop the connection after N tokens"),
    "error_at": (int, "N", "send an error event after N tokens"),
    "stall_at": (int, "N", "fall silent after N tokens"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `asynclm simulate`."""
    defaults = Settings()
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=port, default=9100, help="port, 0 for any that is free (default %(default)s)")
    parser.add_argument(
        "--ttft-ms",
        type=float,
        default=defaults.ttft_ms,
        metavar="MS",
        help="time to first token (default %(default)g)",
    )
    parser.add_argument(
        "--tpot-ms",
        type=float,
        default=defaults.tpot_ms,
        metavar="MS",
        help="time per output token (default %(default)g)",
    )
    faults = parser.add_argument_group(
        "faults", f"one request can ask for its own by the header {HEADER}: KEY=VALUE;..."
    )
    for name, (kind, metavar, text) in _FAULTS.items():
        flag = "--" + name.replace("_", "-")
        faults.add_argument(flag, type=kind, default=getattr(defaults, name), metavar=metavar, help=text)


def run(args: argparse.Namespace) -> int:
    """Carry out `asynclm simulate`; returns the exit status (2: bad flags, 1: can't listen)."""
    try:
        settings = Settings(**{name: getattr(args, name) for name in Settings.__struct_fields__})
    except ValueError as error:
        print(f"asynclm simulate: {error}", file=sys.stderr)
        return 2
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(serve(settings, args.host, args.port))
    except (OSError, UnicodeError) as error:  # the latter for a host that can't be a name
        where = f"{args.host}:{args.port}"
        reason = getattr(error, "strerror", None) or error
        print(f"asynclm simulate: can't listen on {where}: {reason}", file=sys.stderr)
        return 1
    return 0


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()
