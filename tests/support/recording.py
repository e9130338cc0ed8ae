"""The simulated model behind both vendors' APIs, over real HTTP, with every request kept as the bytes that came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

from asynclm.adapters.models.simulated.plan import read
from asynclm.adapters.models.simulated.writer import Writer
from asynclm.adapters.models.stops import Stops

PROMPT_TOKENS = 1000  # of request 0; the number of the request is added, so that the usage says which one it is about


class RecordingUpstream:
    """`bodies` are the requests as they arrived; `active` of them are being answered, `most_active` were at once.

    `hold` is asked for each request, by its number from 0, how many requests must have arrived before it is answered.
    """

    def __init__(self, *, hold: Callable[[int], int] = lambda number: 0, tpot_s: float = 0.0) -> None:
        self.bodies: list[bytes] = []
        self.connections: set[Any] = set()
        self.active = 0
        self.most_active = 0
        self._hold = hold
        self._tpot_s = tpot_s
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> RecordingUpstream:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_post("/v1/messages", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def base_url(self, kind: str) -> str:
        """The address as the config of an upstream of that kind takes it."""
        return f"{self.url}/v1" if kind == "openai" else self.url

    async def arrivals(self, count: int) -> None:
        """Wait until that many requests have arrived."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.bodies) >= count)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        number = len(self.bodies)
        self.bodies.append(data)
        self.connections.add(request.transport)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            async with self._changed:
                self._changed.notify_all()
            await self.arrivals(self._hold(number))
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            events = self._chunks if request.path.endswith("completions") else self._events
            async for event in events(json.loads(data), PROMPT_TOKENS + number):
                await response.write(event)
            for _ in range(3):  # as from many servers, the end of the body comes a moment behind the last event
                await asyncio.sleep(0)
            return response
        finally:
            self.active -= 1

    async def _chunks(self, body: dict[str, Any], prompt_tokens: int) -> AsyncIterator[bytes]:
        """An answer of OpenAI's chat completions API."""
        stops = Stops(body.get("stop", ()))
        async for text in self._written(body["messages"], stops):
            yield _sse({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        yield _sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield _sse({"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 9}})
        yield b"data: [DONE]\n\n"

    async def _events(self, body: dict[str, Any], prompt_tokens: int) -> AsyncIterator[bytes]:
        """An answer of Anthropic's Messages API."""
        stops = Stops(body.get("stop_sequences", ()))
        messages = [
            {"role": turn["role"], "content": block["text"]} for turn in body["messages"] for block in turn["content"]
        ]
        yield _sse({"type": "message_start", "message": {"usage": {"input_tokens": prompt_tokens}}})
        async for text in self._written(messages, stops):
            yield _sse({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})
        delta = {"stop_reason": "end_turn"}
        if stops.hit:
            delta = {"stop_reason": "stop_sequence", "stop_sequence": body["stop_sequences"][0]}
        yield _sse({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9}})
        yield _sse({"type": "message_stop"})

    async def _written(self, messages: list[dict[str, Any]], stops: Stops) -> AsyncIterator[str]:
        writer = Writer(read(messages))
        while writer.finish_reason is None and not stops.hit:
            text = stops.feed(writer.next())
            if text:
                yield text
            await asyncio.sleep(self._tpot_s)
        yield stops.flush()


def _sse(event: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()
