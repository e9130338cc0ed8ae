"""An engine without a model: the next token follows from all tokens before it. It keeps books as a real one must."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from asynclm.adapters.models.local.engine import Feed, Memory, OutOfMemoryError, Pick, Sampled, Sampling

Next = Callable[[Sequence[int]], int]


def scrambled(vocabulary: int) -> Next:
    """Any token but 0, by a hash of what is there."""
    return lambda tokens: 1 + zlib.crc32(repr(list(tokens)).encode()) % (vocabulary - 1)


class ToyEngine:
    """Holds its sequences as plain lists, of `limit` tokens in all. `steps` are the passes: tokens by sequence."""

    def __init__(
        self, next: Next | None = None, *, context: int = 512, limit: int = 4096, vocabulary: int = 256
    ) -> None:
        self.context = context
        self.vocabulary = vocabulary
        self.description = "toy"
        self.next = next or scrambled(vocabulary)
        self.limit = limit
        self.sequences: dict[int, list[int]] = {}
        self.host: dict[int, list[int]] = {}
        self.ready: set[int] = set()
        self.steps: list[dict[int, list[int]]] = []
        self.events: list[tuple[str, int]] = []
        self.closed = False
        self.before: Callable[[], Any] = lambda: None
        self._numbers = 0

    def open(self, sampling: Sampling) -> int:
        self._numbers += 1
        self.sequences[self._numbers] = []
        return self._numbers

    def fork(self, source: int, length: int, sampling: Sampling) -> int:
        tokens = self.sequences[source][:length]
        assert len(tokens) == length
        self._room(length)
        number = self.open(sampling)
        self.sequences[number] = tokens
        self.events.append(("fork", length))
        return number

    def length(self, sequence: int) -> int:
        return len(self.sequences[sequence])

    def forward(self, feeds: Sequence[Feed]) -> None:
        self.before()
        assert len({feed.sequence for feed in feeds}) == len(feeds)
        for feed in feeds:
            assert feed.tokens
            assert feed.sequence in self.sequences, "not on the device"
            if len(self.sequences[feed.sequence]) + len(feed.tokens) > self.context:
                raise ValueError("beyond the context")
        self._room(sum(len(feed.tokens) for feed in feeds))
        for feed in feeds:
            self.sequences[feed.sequence].extend(feed.tokens)
            self.ready.discard(feed.sequence)
            if feed.logits:
                self.ready.add(feed.sequence)
        self.steps.append({feed.sequence: list(feed.tokens) for feed in feeds})

    def sample(self, picks: Sequence[Pick]) -> list[Sampled]:
        for pick in picks:
            assert pick.sequence in self.ready
        return [Sampled(self.next(self.sequences[pick.sequence]), math.nan) for pick in picks]

    def truncate(self, sequence: int, length: int) -> None:
        assert length <= len(self.sequences[sequence])
        del self.sequences[sequence][length:]
        self.ready.discard(sequence)
        self.events.append(("truncate", length))

    def swap_out(self, sequence: int) -> None:
        self.host[sequence] = self.sequences.pop(sequence)
        self.events.append(("out", sequence))

    def swap_in(self, sequence: int) -> None:
        self._room(len(self.host[sequence]))
        self.sequences[sequence] = self.host.pop(sequence)
        self.events.append(("in", sequence))

    def drop(self, sequence: int) -> None:
        self.sequences[sequence] = []
        self.ready.discard(sequence)
        self.events.append(("drop", sequence))

    def free(self, sequence: int) -> None:
        self.sequences.pop(sequence, None)
        self.host.pop(sequence, None)
        self.ready.discard(sequence)

    def memory(self) -> Memory:
        return Memory(sum(map(len, self.sequences.values())), sum(map(len, self.host.values())), self.limit, 1)

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
        self.sequences.clear()
        self.host.clear()

    def _room(self, tokens: int) -> None:
        if self.memory().used_tokens + tokens > self.limit:
            raise OutOfMemoryError(f"no room for {tokens} tokens")
