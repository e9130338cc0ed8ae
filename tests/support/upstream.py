"""A scripted OpenAI upstream for tests: answers over HTTP with what it is told, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

Body = dict[str, Any]


class Answer:
    """One answer: text in pieces (a chunk each), then a finish reason, usage and [DONE], unless told otherwise.

    `usage`: tokens of prompt and answer; `cached`: how many of the prompt were.
    `hold`: wait for this event before piece `hold_at`. `cut_at`: drop the connection before that piece. `error_at`:
    send an error event before it, and end. `status`: an error of that status instead of an answer. `raw`: these bytes
    instead.
    """

    def __init__(
        self,
        *pieces: str,
        reason: str = "stop",
        usage: tuple[int, int] | None = (10, 5),
        cached: int | None = None,
        hold: asyncio.Event | None = None,
        hold_at: int = 0,
        cut_at: int | None = None,
        error_at: int | None = None,
        status: int = 200,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
        message: str | None = None,
    ) -> None:
        self.pieces = pieces
        self.reason = reason
        self.usage = usage
        self.cached = cached
        self.hold = hold
        self.hold_at = hold_at
        self.cut_at = cut_at
        self.error_at = error_at
        self.status = status
        self.headers = headers or {}
        self.raw = raw
        self.message = message or f"scripted {status}"


def chunk(delta: Body, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return (
        b"data: " + json.dumps({"id": "x", "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
    )


class ScriptedUpstream:
    """Serves the answers of `script` in order (the last one again and again), or what `script(body)` returns."""

    def __init__(self, script: list[Answer] | Callable[[Body], Answer]) -> None:
        self._script = script
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.other: list[tuple[str, str, bytes]] = []
        self.open = 0
        self.dropped = 0  # answers whose client left before their end
        self.changed = asyncio.Condition()
        self.url = ""

    async def __aenter__(self) -> ScriptedUpstream:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_route("*", "/{path:.*}", self._other)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something has happened here."""
        async with self.changed:
            await self.changed.wait_for(condition)

    async def _note(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.open += 1
        await self._note()
        try:
            if callable(self._script):
                answer = self._script(body)
            else:
                answer = self._script[min(len(self.requests), len(self._script)) - 1]
            return await self._answer(request, body, answer)
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        finally:
            self.open -= 1
            await asyncio.shield(self._note())

    async def _answer(self, request: web.Request, body: Body, answer: Answer) -> web.StreamResponse:
        if answer.status != 200:
            error = {"message": answer.message, "type": "scripted", "param": None, "code": "scripted_code"}
            return web.json_response({"error": error}, status=answer.status, headers=answer.headers)
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **answer.headers})
        await response.prepare(request)
        if answer.raw is not None:
            await response.write(answer.raw)
            return response
        await response.write(chunk({"role": "assistant", "content": ""}))
        for n, piece in enumerate((*answer.pieces, None)):
            if answer.hold is not None and n == answer.hold_at:
                await answer.hold.wait()
            if n == answer.cut_at:
                assert request.transport is not None
                request.transport.abort()
                return response
            if n == answer.error_at:
                await response.write(b'data: {"error": {"message": "scripted", "type": "server_error"}}\n\n')
                return response
            if piece is not None:
                await response.write(chunk({"content": piece}))
        await response.write(chunk({}, answer.reason))
        if answer.usage is not None and (body.get("stream_options") or {}).get("include_usage"):
            prompt, completion = answer.usage
            usage: Body = {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            }
            if answer.cached is not None:
                usage["prompt_tokens_details"] = {"cached_tokens": answer.cached}
            await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _other(self, request: web.Request) -> web.StreamResponse:
        self.other.append((request.method, request.raw_path, await request.read()))
        self.headers.append(dict(request.headers))
        return web.json_response({"path": request.raw_path}, headers={"x-upstream": "yes"})
