"""Plays a recording to a client: the same deltas, at once or with the times they had. No upstream, no tools."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from asynclm.cml.machine import RunError
from asynclm.proxy.answer import StreamedAnswer, WholeAnswer
from asynclm.proxy.background import Background
from asynclm.proxy.chat import ChatRequest
from asynclm.proxy.errors import SERVER_ERROR, api_error
from asynclm.proxy.recording.recorded import CONTENT, TOOL_CALLS, Piece, Recording
from asynclm.proxy.sinks import StreamSink, WholeSink

_AT_ONCE: Final = 64  # deltas between two writes, where none has to be waited for
_SHUTDOWN: Final = RunError("The proxy is shutting down.", 503, SERVER_ERROR, "server_shutdown")


async def play(
    recording: Recording,
    request: web.Request,
    chat: ChatRequest,
    headers: Mapping[str, str],
    background: Background,
    *,
    heartbeat_s: float,
    timed: bool,
    stopping: asyncio.Event,
) -> web.StreamResponse:
    """Answer the request from a recording that is `servable`, streamed if that is what the request wants.

    `timed`: with the times that the deltas had. Ends with an error when `stopping` is set.
    """
    id = f"chatcmpl-{headers['x-request-id']}"
    sink: StreamSink | WholeSink
    if chat.stream:
        answer = StreamedAnswer(id, chat.model, include_usage=chat.include_usage)
        sink = StreamSink(request, answer, headers, background, heartbeat_s)
    else:
        sink = WholeSink(WholeAnswer(id, chat.model), headers)
    try:
        await sink.open()
        if not await _deltas(recording, sink, timed, stopping):
            if isinstance(sink, StreamSink):
                return await sink.fail(_SHUTDOWN)
            raise api_error(_SHUTDOWN, headers)
        answered = recording.answered
        assert answered is not None, "only whole recordings are played"
        extra = {**answered.extra, "replayed": True}
        return await sink.finish(answered.reason, answered.usage, extra)
    finally:
        sink.close()


async def _deltas(recording: Recording, sink: StreamSink | WholeSink, timed: bool, stopping: asyncio.Event) -> bool:
    """False if it was stopped."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    due = 0
    for piece in recording.sent:
        if timed and began + piece.t > loop.time():
            await sink.flush()
            if await _stopped(stopping, began + piece.t):
                return False
        elif due >= _AT_ONCE:
            due = 0
            await sink.flush()
            await asyncio.sleep(0)  # others want to be served, too
        due += 1
        _put(sink, piece)
    last = recording.timeline.entries[-1].t if recording.timeline.entries else 0.0
    await sink.flush()
    return not (timed and await _stopped(stopping, began + last))


async def _stopped(stopping: asyncio.Event, until: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(until):
            await stopping.wait()
    return stopping.is_set()


def _put(sink: Any, piece: Piece) -> None:
    if piece.key == CONTENT:
        sink.text(piece.value)
    elif piece.key == TOOL_CALLS:
        sink.tool_call(**piece.value)
    else:
        sink.reasoning(piece.value, piece.key)
