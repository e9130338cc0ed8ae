"""Single steps of an engine that nobody else uses, timed to the device's end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from asynclm.adapters.models.local.engine import Engine, Feed, Pick, Sampling

from .clock import Clock, WallClock

GREEDY = Sampling(temperature=0.0)


def some_tokens(engine: Engine, count: int, seed: int = 0) -> list[int]:
    """Any tokens: what they are changes nothing in the time that they take."""
    return random.Random(seed).choices(range(engine.vocabulary), k=count)


def fill(engine: Engine, number: int, tokens: Sequence[int], chunk: int) -> None:
    """Append tokens as the step loop does with a prompt, so many in a pass."""
    for begin in range(0, len(tokens), chunk):
        end = begin + chunk
        engine.forward([Feed(number, tokens[begin:end], end >= len(tokens))])
    engine.synchronize()


def step_s(engine: Engine, number: int, tokens: Sequence[int], clock: Clock | None = None) -> float:
    """Append these in one pass and draw the next: the time of it (s)."""
    clock = clock or WallClock()
    began = clock.now()
    with clock.working():
        engine.forward([Feed(number, tokens)])
        engine.sample([Pick(number)])
        engine.synchronize()
    return clock.now() - began


@contextmanager
def sequence(engine: Engine, tokens: Sequence[int] = (), chunk: int = 512) -> Iterator[int]:
    """A sequence that holds these, for a while."""
    number = engine.open(GREEDY)
    try:
        fill(engine, number, tokens, chunk)
        yield number
    finally:
        engine.free(number)


def plain_steps(engine: Engine, context: int, count: int, chunk: int = 512, clock: Clock | None = None) -> list[float]:
    """What each of so many single tokens takes behind a sequence of that length (s); the first is left out."""
    with sequence(engine, some_tokens(engine, context), chunk) as number:
        return [step_s(engine, number, [7], clock) for _ in range(count + 1)][1:]
