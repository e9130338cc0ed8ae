"""The simulated model in process: the `Model` protocol over a `Writer`, with or without in-sequence injection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from asynclm.adapters.models.protocol import (
    Abilities,
    Ended,
    ModelError,
    Request,
    StreamEvent,
    TextDelta,
)
from asynclm.cml.transcript import as_turns
from asynclm.cml.usage import Usage

from .pace import Pace
from .plan import read, text_of
from .task import TaskError
from .tokens import count_tokens
from .writer import Writer


class SimulatedModel:
    """An ideal CML-speaking model that needs no upstream (`kind = "simulated"`).

    `ttft_ms` is the time to the first token, `tpot_ms` the time of each further one. With `inject`, interrupts can be
    put into its live sequence; otherwise they come as the next user turn of a new stream.
    """

    def __init__(self, *, ttft_ms: float = 150.0, tpot_ms: float = 5.0, inject: bool = False) -> None:
        self._ttft_ms = ttft_ms
        self._tpot_ms = tpot_ms
        self._abilities = Abilities(inject=inject, interleave=True, stop_sequences=4)

    def abilities(self, model: str) -> Abilities:
        """The same for every model name."""
        return self._abilities

    async def open(self, request: Request) -> SimulatedStream:
        """Begin a stream. Raises `ModelError` (400) for a `<task>` block that can't be used."""
        messages = [*request.messages, *as_turns(request.transcript)]
        try:
            progress = read(messages)
        except TaskError as error:
            raise ModelError(str(error), status=400, type="invalid_request_error", param="messages") from None
        live = self._abilities.inject
        writer = Writer(progress, stop=request.stop, max_tokens=request.max_tokens, live=live)
        prompt_tokens = sum(count_tokens(text_of(message)) for message in messages)
        return SimulatedStream(writer, Pace(self._ttft_ms, self._tpot_ms), prompt_tokens, live=live)

    async def aclose(self) -> None:
        """Nothing to close."""


class SimulatedStream:
    """One stream, a token a batch; an `InjectableStream` when it is live.

    A live stream waits at a trap, as after `pause`, until something is injected or it is closed.
    """

    def __init__(self, writer: Writer, pace: Pace, prompt_tokens: int, *, live: bool) -> None:
        self._writer = writer
        self._pace = pace
        self._prompt_tokens = prompt_tokens
        self._live = live
        self._paused = False
        self._closed = False
        self._woken = asyncio.Event()

    def __aiter__(self) -> SimulatedStream:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        if self._closed:
            raise StopAsyncIteration
        if self._live:
            self._pace.ask()
        while True:
            await self._pace.wait()
            if self._over():
                raise StopAsyncIteration
            if self._paused or self._writer.waiting:
                self._woken.clear()
                await self._woken.wait()
                if self._over():
                    raise StopAsyncIteration
                self._pace.restart()
                continue
            text = self._writer.next()
            reason = self._writer.finish_reason
            if reason is not None:
                self._closed = True
                text += self._writer.flush()
                usage = Usage(self._prompt_tokens, self._writer.completion_tokens)
                return [TextDelta(text), Ended(reason), usage] if text else [Ended(reason), usage]
            if text:
                return [TextDelta(text)]

    def _over(self) -> bool:
        return self._closed  # a call, because type checkers don't see that it may have changed during an await

    def pause(self, expected: float | None = None) -> None:
        """Write nothing more until something is injected."""
        self._paused = True

    def inject(self, text: str) -> None:
        """Append interrupts to the live sequence. Raises RuntimeError for a stream that isn't live."""
        if not self._live:
            raise RuntimeError("this simulated stream takes no injection: the model was made without inject=True")
        self._prompt_tokens += count_tokens(text)
        self._writer.inject(text)
        self._paused = False
        self._woken.set()

    async def aclose(self) -> None:
        """End the stream; a waiting reader sees its end."""
        self._closed = True
        self._paused = False
        self._woken.set()
