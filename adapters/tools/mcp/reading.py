"""What comes from a server on its way to the SDK: paced, counted, and its end noticed."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from types import TracebackType
from typing import Final, Self

import anyio
from mcp.client._transport import ReadStream
from mcp.shared.message import SessionMessage

from asynclm.adapters.tools.mcp.pace import Pace

Message = SessionMessage | Exception

_RATE: Final = 500.0
_BURST: Final = 1000.0


def message_pace() -> Pace:
    """How many messages beyond the answers to its calls a server may send: notifications, requests, junk."""
    return Pace(_RATE, _BURST)


class Reading:
    """A transport's stream of messages, read no faster than `pace` allows.

    `flooded` is called the first time that it has to wait, `junk` for whatever is no message (which goes no further),
    `ended` when the stream ends. Each answer costs what `pace` was credited for the call.
    """

    def __init__(
        self,
        stream: ReadStream[Message],
        pace: Pace,
        *,
        flooded: Callable[[], None],
        junk: Callable[[Exception], None],
        ended: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._pace = pace
        self._flooded = flooded
        self._junk = junk
        self._ended = ended

    @property
    def last_context(self) -> Context | None:
        """The context in which the last message was sent, where the transport keeps it."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Message:
        """The next message. Raises `anyio.EndOfStream`."""
        while True:
            try:
                item = await self._stream.receive()
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                self._ended()
                raise
            before = self._pace.waited
            await self._pace.spend(1)
            if self._pace.waited and not before:
                self._flooded()
            if not isinstance(item, Exception):
                return item
            self._junk(item)

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
