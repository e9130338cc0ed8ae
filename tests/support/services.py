"""HTTP services on the loopback interface, for tools to speak to: handlers on a real socket, every request kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, NamedTuple

from aiohttp import web


class Received(NamedTuple):
    """A request as it came."""

    method: str
    target: str  # path and query as they stood on the line
    headers: dict[str, str]
    body: bytes


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Service:
    """Answers each path with its handler, any other with what it received, as JSON."""

    def __init__(self, handlers: dict[str, Handler] | None = None, host: str = "127.0.0.1") -> None:
        self.handlers = handlers or {}
        self.received: list[Received] = []
        self._host = host

    async def __aenter__(self) -> Service:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, 0).start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://{self._host}:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @property
    def last(self) -> Received:
        return self.received[-1]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        received = Received(request.method, request.raw_path, headers, body)
        self.received.append(received)
        handler = self.handlers.get(request.path)
        if handler is not None:
            return await handler(request)
        echoed: dict[str, Any] = received._asdict() | {"body": body.decode()}
        return web.json_response(echoed)


def answering(*responses: tuple[int, Any] | Callable[[], web.StreamResponse]) -> Handler:
    """A handler that gives these answers in turn, the last one for ever: status and JSON value, or made by a call."""
    left = list(responses)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(response, tuple):
            return web.json_response(response[1], status=response[0])
        return response()

    return answer
