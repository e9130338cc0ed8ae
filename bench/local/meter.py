"""An engine that is lent to several step loops, one after the other, and says how long its passes took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from asynclm.adapters.models.local.engine import Engine, Feed, Memory, Pick, Sampled, Sampling

from .clock import Clock, WallClock


class Span(NamedTuple):
    """A call of the engine: from when to when (s), with how many sequences and tokens."""

    began: float
    ended: float
    sequences: int
    tokens: int


class Meter:
    """An `Engine` in front of another one. `close` only frees its sequences: the engine stays its owner's.

    `passes` and `draws` are the calls of `forward` and `sample`. A pass may end before the device has done it.
    """

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self._engine = engine
        self._clock = clock or WallClock()
        self._numbers: set[int] = set()
        self.passes: list[Span] = []
        self.draws: list[Span] = []

    @property
    def context(self) -> int:
        """The engine's."""
        return self._engine.context

    @property
    def vocabulary(self) -> int:
        """The engine's."""
        return self._engine.vocabulary

    @property
    def description(self) -> str:
        """The engine's."""
        return self._engine.description

    def open(self, sampling: Sampling) -> int:
        """A new, empty sequence."""
        number = self._engine.open(sampling)
        self._numbers.add(number)
        return number

    def fork(self, source: int, length: int, sampling: Sampling) -> int:
        """A new sequence with the beginning of another."""
        number = self._engine.fork(source, length, sampling)
        self._numbers.add(number)
        return number

    def length(self, sequence: int) -> int:
        """How many tokens it has."""
        return self._engine.length(sequence)

    def forward(self, feeds: Sequence[Feed]) -> None:
        """Append and compute, timed."""
        began = self._clock.now()
        with self._clock.working():
            self._engine.forward(feeds)
        self.passes.append(Span(began, self._clock.now(), len(feeds), sum(len(feed.tokens) for feed in feeds)))

    def sample(self, picks: Sequence[Pick]) -> list[Sampled]:
        """Draw, timed."""
        began = self._clock.now()
        with self._clock.working():
            drawn = self._engine.sample(picks)
        self.draws.append(Span(began, self._clock.now(), len(picks), len(picks)))
        return drawn

    def truncate(self, sequence: int, length: int) -> None:
        """Forget all but the first tokens."""
        self._engine.truncate(sequence, length)

    def swap_out(self, sequence: int) -> None:
        """Move a cache to the host."""
        self._engine.swap_out(sequence)

    def swap_in(self, sequence: int) -> None:
        """Bring it back."""
        self._engine.swap_in(sequence)

    def drop(self, sequence: int) -> None:
        """Forget a cache."""
        self._engine.drop(sequence)

    def free(self, sequence: int) -> None:
        """End a sequence."""
        self._numbers.discard(sequence)
        self._engine.free(sequence)

    def memory(self) -> Memory:
        """What the cache holds."""
        return self._engine.memory()

    def synchronize(self) -> None:
        """Wait for the device."""
        self._engine.synchronize()

    def close(self) -> None:
        """Free the sequences that were opened here."""
        for number in list(self._numbers):
            self.free(number)
