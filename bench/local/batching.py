"""Several runs on one engine: tokens a second together, and one's tokens beside another's prompt."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

from asynclm.adapters.models.local.engine import Engine
from asynclm.adapters.models.local.generation import Broke, Full, Generation, News, Wrote
from asynclm.adapters.models.local.loop import Batching, StepLoop

from .clock import Clock, WallClock
from .meter import Meter
from .results import Stall, Throughput
from .steps import GREEDY, some_tokens


class EngineFailedError(Exception):
    """The engine could not write what was to be measured."""


class _Reader:
    """Asks for one token after the other, and notes when each is there (s)."""

    def __init__(self, loop: StepLoop, prompt: list[int], clock: Clock) -> None:
        self._loop = loop
        self._clock = clock
        self.times: list[float] = []
        self._arrived = asyncio.Event()
        self._failure: str | None = None
        self._generation = Generation(prompt, GREEDY, self._hear)
        loop.open(self._generation)
        loop.ask(self._generation)

    def _hear(self, news: News) -> None:
        if isinstance(news, Wrote):
            self.times.append(self._clock.now())
            self._loop.ask(self._generation)
        elif isinstance(news, Broke | Full):
            self._failure = news.message if isinstance(news, Broke) else "the context is full"
        self._arrived.set()

    async def wrote(self, tokens: int) -> None:
        """Wait for so many tokens. Raises `EngineFailedError`."""
        while len(self.times) < tokens:
            if self._failure is not None:
                raise EngineFailedError(self._failure)
            self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        self._loop.close(self._generation)


@asynccontextmanager
async def _step_loop(engine: Engine, batching: Batching, clock: Clock) -> AsyncIterator[StepLoop]:
    loop = StepLoop(Meter(engine, clock), frozenset(), batching)  # nothing ends an answer
    loop.start()
    try:
        yield loop
    finally:
        await loop.aclose()


async def throughput(
    engine: Engine,
    many: int,
    *,
    prompt: int,
    tokens: int,
    rounds: int,
    late: Callable[[], bool],
    clock: Clock | None = None,
) -> list[Throughput]:
    """One run, and `many` at once, by turns: `tokens` each behind a prompt of so many."""
    clock = clock or WallClock()
    found: dict[int, list[float]] = {1: [], many: []}
    for number in range(rounds):
        if number and late():
            break
        for runs, rates in found.items():
            async with _step_loop(engine, Batching(max_running=many, kept_tokens=0), clock) as loop:
                readers = [_Reader(loop, some_tokens(engine, prompt, seed), clock) for seed in range(runs)]
                for reader in readers:
                    await reader.wrote(1)  # prompts are no part of it
                begun = [len(reader.times) for reader in readers]
                began = clock.now()
                await asyncio.gather(*(reader.wrote(at + tokens) for reader, at in zip(readers, begun, strict=True)))
                wrote = sum(len(reader.times) for reader in readers) - sum(begun)
                rates.append(wrote / (clock.now() - began))
                for reader in readers:
                    reader.close()
    return [Throughput(runs=runs, tokens_per_s=tuple(rates)) for runs, rates in found.items()]


async def stall(
    engine: Engine, *, busy_chunk: int, prompt: int, context: int = 64, alone: int = 6, clock: Clock | None = None
) -> Stall:
    """One run writes on while another one's prompt is computed."""
    clock = clock or WallClock()
    async with _step_loop(engine, Batching(busy_chunk=busy_chunk, kept_tokens=0), clock) as loop:
        writer = _Reader(loop, some_tokens(engine, context), clock)
        await writer.wrote(1 + alone)
        began = clock.now()
        other = _Reader(loop, some_tokens(engine, prompt, 1), clock)
        await other.wrote(1)
        ended = other.times[0]
        writer.close()
        other.close()
    steps = list(pairwise(writer.times))
    beside = [later - earlier for earlier, later in steps if later > began and earlier < ended]
    before = [later - earlier for earlier, later in steps if later <= began]
    return Stall(
        busy_chunk=busy_chunk,
        prompt=prompt,
        steps_ms=tuple(1000 * each for each in beside),
        alone_ms=1000 * statistics.median(before),
        prefill_s=ended - began,
    )
