"""A recorded model and its tools as the parts of a run that goes on now: they write and return what they did."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from asynclm.adapters.models.protocol import Abilities, Ended, Request, StreamEvent, TextDelta
from asynclm.cml.tools import CallError, Invocation, ToolSpec
from asynclm.proxy.cache.key import canonical
from asynclm.proxy.recording.progress import Progress
from asynclm.proxy.recording.script import Beat, Outcome, Script, State


class RecordedModel:
    """Writes what the script says.

    `ttft_s` and `tpot_s` take the place of the recorded times to the first and each further piece, if they are given.
    `told` collects what each of its streams had been told, whenever it was told something.
    """

    def __init__(self, script: Script, *, inject: bool, ttft_s: float | None, tpot_s: float | None) -> None:
        self._script = script
        self._inject = inject
        self.ttft_s = script.ttft_s if ttft_s is None else ttft_s
        self.tpot_s = tpot_s
        self.told: list[State] = []
        self.forced = 0

    def abilities(self, model: str) -> Abilities:
        """As the recorded model's, but for what was said otherwise."""
        return Abilities(inject=self._inject)

    async def open(self, request: Request) -> RecordedStream:
        """Begin a stream."""
        progress = Progress(self._script, request.transcript)
        self.told.append(progress.state)
        return RecordedStream(self, progress, self._script.reason, live=self._inject)

    async def aclose(self) -> None:
        """Nothing to close."""


class RecordedStream:
    """One stream, a piece a batch. A live one waits at a trap until something is injected."""

    def __init__(self, model: RecordedModel, progress: Progress, reason: str, *, live: bool) -> None:
        self._model = model
        self._progress = progress
        self._reason = reason
        self._live = live
        self._beats: deque[Beat] = deque()
        self._waits = False
        self._first = True
        self._over = False
        self._paused = False
        self._woken = asyncio.Event()
        self._due = asyncio.get_running_loop().time() + model.ttft_s

    def __aiter__(self) -> RecordedStream:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        while not self._over:
            if self._paused or (self._live and self._waits and not self._beats):
                self._woken.clear()
                await self._woken.wait()
                self._due = asyncio.get_running_loop().time()
                continue
            if not self._beats and not self._turn():
                self._over = True
                return [Ended("stop" if self._waits else self._reason)]
            beat = self._beats.popleft()
            gap = beat.gap if self._model.tpot_s is None else 0.0 if self._first else self._model.tpot_s
            self._due += gap
            self._first = False
            await asyncio.sleep(max(0.0, self._due - asyncio.get_running_loop().time()))
            if self._stopped():
                self._beats.appendleft(Beat(0.0, beat.text))
                continue
            if beat.text and not self._closed():
                return [TextDelta(beat.text)]
        raise StopAsyncIteration

    # Calls, because type checkers don't see that these may have changed during an await.
    def _closed(self) -> bool:
        return self._over

    def _stopped(self) -> bool:
        return self._paused

    def _turn(self) -> bool:
        """What comes next. False at the end."""
        if self._waits:
            return False
        self._waits = self._progress.waits
        beats = self._progress.next()
        self._model.forced += self._progress.forced
        self._progress.forced = False
        self._beats.extend(beats or ())
        return beats is not None

    def pause(self, expected: float | None = None) -> None:
        """Write nothing more until something is injected."""
        self._paused = True

    def inject(self, text: str) -> None:
        """It is told something in its live sequence."""
        self._progress.told(text)
        self._model.told.append(self._progress.state)
        self._waits = False
        self._paused = False
        self._woken.set()

    async def aclose(self) -> None:
        """End the stream."""
        self._over = True
        self._paused = False
        self._woken.set()


class RecordedTools:
    """The calls of a recording: a `Catalog` for the run machine, and the tools that it names."""

    def __init__(self, script: Script) -> None:
        self._rejected = deque(script.rejected)
        self._outcomes: dict[tuple[str, bytes], deque[Outcome]] = {}
        self._specs: dict[str, ToolSpec] = {}
        for made in script.calls:
            self._specs.setdefault(made.tool, ToolSpec(name=made.tool))
            key = (made.tool, canonical(made.arguments))
            self._outcomes.setdefault(key, deque()).append(made.outcome)

    def specs(self) -> list[ToolSpec]:
        """Every tool that was called."""
        return list(self._specs.values())

    def check(self, invocation: Invocation) -> tuple[ToolSpec, dict[str, Any]]:
        """Any call that was accepted is; any other is rejected as it was. Raises `CallError`."""
        if not invocation.positional and (invocation.name, canonical(invocation.named)) in self._outcomes:
            return self._specs[invocation.name], invocation.named
        type, message = self._rejected.popleft() if self._rejected else ("unknown_tool", "not in the recording")
        raise CallError(type, message)

    def tools(self) -> list[RecordedTool]:
        """The tools, for an executor."""
        return [RecordedTool(spec, self._outcomes) for spec in self._specs.values()]


class RecordedTool:
    """Returns what it returned, when it did; the same call again, the next of its results."""

    def __init__(self, spec: ToolSpec, outcomes: dict[tuple[str, bytes], deque[Outcome]]) -> None:
        self.spec = spec
        self._outcomes = outcomes

    async def run(self, arguments: dict[str, Any]) -> object:
        """Take as long as it took. Raises `CallError` where it failed."""
        left = self._outcomes[self.spec.name, canonical(arguments)]
        outcome = left.popleft() if len(left) > 1 else left[0]
        await asyncio.sleep(outcome.seconds)
        value = msgspec.json.decode(outcome.value)
        if outcome.ok:
            return value
        error = value.get("error") if isinstance(value, dict) else None
        error = error if isinstance(error, dict) else {}
        raise CallError(str(error.get("type", "tool_error")), str(error.get("message", outcome.value)))
