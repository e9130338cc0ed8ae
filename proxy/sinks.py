"""Where a run's answer goes: a stream of server-sent events, or one document at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from asynclm.cml.machine import RunError
from asynclm.cml.usage import Usage
from asynclm.proxy.answer import HEARTBEAT, StreamedAnswer, WholeAnswer
from asynclm.proxy.background import Background


class _EventStream(web.StreamResponse):
    # The headers leave with the first event, in one write.
    _send_headers_immediately = False


class StreamSink:
    """Streams to the client. Headers go out once the upstream has accepted the run; until then an error can have a
    status.

    A comment is sent after each `heartbeat_s` seconds without an event, so that nobody on the way takes the silence
    of a slow tool for a dead connection.
    """

    def __init__(
        self,
        request: web.Request,
        answer: StreamedAnswer,
        headers: Mapping[str, str],
        background: Background,
        heartbeat_s: float,
    ) -> None:
        self._request = request
        self._answer = answer
        self._response = _EventStream(headers={**headers, "content-type": "text/event-stream; charset=utf-8"})
        self._response.headers["cache-control"] = "no-cache"
        self._background = background
        self._heartbeat_s = heartbeat_s
        self._loop = asyncio.get_running_loop()
        self._wrote = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.text = answer.text
        self.reasoning = answer.reasoning
        self.tool_call = answer.tool_call

    @property
    def opened(self) -> bool:
        """Whether the response has begun."""
        return self._response.prepared

    async def open(self) -> None:
        """Begin the response, with the role."""
        if self.opened or self._closed:
            return
        try:
            await self._response.prepare(self._request)
        except ConnectionError:
            self.close()
            return
        self._answer.begin()
        await self.flush()
        self._timer = self._loop.call_later(self._heartbeat_s, self._beat)

    async def flush(self) -> None:
        """Send what there is, as one write. A client that has left is not an error: the server will cancel the run."""
        if self._answer and not self._closed:
            self._wrote = self._loop.time()
            try:
                await self._response.write(self._answer.take())
            except ConnectionError:
                self.close()

    async def finish(self, reason: str, usage: Usage, extra: Mapping[str, Any]) -> web.StreamResponse:
        """End the answer."""
        await self.open()
        self._answer.finish(reason, usage, extra)
        return await self._end()

    async def fail(self, error: RunError) -> web.StreamResponse:
        """End the answer with an error event."""
        self._answer.fail(error)
        return await self._end()

    def close(self) -> None:
        """Nothing more is to be sent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    async def _end(self) -> web.StreamResponse:
        data = self._answer.take()
        self.close()
        await self._response.write_eof(data)
        return self._response

    def _beat(self) -> None:
        quiet = self._loop.time() - self._wrote
        if quiet >= self._heartbeat_s:
            self._wrote = self._loop.time()
            quiet = 0.0
            self._background.spawn(self._heartbeat(), "heartbeat")
        self._timer = self._loop.call_later(self._heartbeat_s - quiet, self._beat)

    async def _heartbeat(self) -> None:
        try:
            if not self._closed:
                await self._response.write(HEARTBEAT)
        except ConnectionError:
            self.close()


class WholeSink:
    """Collects the answer for a client that did not ask for a stream."""

    def __init__(self, answer: WholeAnswer, headers: Mapping[str, str]) -> None:
        self._answer = answer
        self._headers = headers
        self.opened = False  # nothing is sent before the end: an error always has a status
        self.text = answer.text
        self.reasoning = answer.reasoning
        self.tool_call = answer.tool_call

    async def open(self) -> None:
        """Nothing to do yet."""

    async def flush(self) -> None:
        """Nothing to do yet."""

    async def finish(self, reason: str, usage: Usage, extra: Mapping[str, Any]) -> web.StreamResponse:
        """The whole answer."""
        body = self._answer.document(reason, usage, extra)
        return web.Response(body=body, headers=self._headers, content_type="application/json")

    def close(self) -> None:
        """Nothing to do."""
