"""Where the caches of sequences are: on the device, on the host, or nowhere; and what goes when memory runs short.

Sequences that ended are kept, as far as `kept_tokens` goes, for those that begin like them. What a sequence loses is
told to its reader (`Remark`): `cache` when it is put away, `restored` when it is there again. All of this runs in the
engine's thread.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from .engine import Engine, OutOfMemoryError
from .generation import Generation, Place, Remark
from .prefixes import shared
from .traps import Choice, TrapHandler, left

_MIN_SHARED: Final = 16  # tokens; less isn't worth a sequence of its own
_CROWDED: Final = 0.85


class Caches:
    """The caches of the generations in `running`, and of sequences that ended; `waiting` will want room, too."""

    def __init__(
        self,
        engine: Engine,
        traps: TrapHandler,
        kept_tokens: int,
        running: list[Generation],
        waiting: deque[Generation],
        remark: Callable[[Generation, Remark], None],
    ) -> None:
        self._engine = engine
        self._traps = traps
        self._most_kept = kept_tokens
        self._running = running
        self._waiting = waiting
        self._tell = remark
        self._kept: OrderedDict[int, list[int]] = OrderedDict()  # ended sequences, by number
        self._kept_tokens = 0

    # ------------------------------------------------------------------ beginning and ending

    def fitted(self, generation: Generation) -> bool:
        """Whether there is room for a sequence to be computed; those that wait make room for it."""
        while not self._fits(generation):
            if not self._evict_resting(generation):
                return False
        return True

    def _fits(self, generation: Generation) -> bool:
        memory = self._engine.memory()
        free = memory.limit_tokens - memory.used_tokens + self._kept_tokens
        return free >= generation.length or not any(other.place is Place.DEVICE for other in self._running)

    def begin(self, generation: Generation, donor: int | None, length: int) -> int:
        """Make its sequence, with the first `length` tokens taken over from `donor`. Returns how many were."""
        if donor is not None:
            try:
                generation.number = self._engine.fork(donor, length, generation.sampling)
            except OutOfMemoryError:
                length = 0
            else:
                generation.place = Place.DEVICE
                generation.tokens.extend(generation.todo[:length])
                del generation.todo[:length]
                if donor in self._kept:
                    self._kept.move_to_end(donor)
        if generation.number is None:
            generation.number = self._engine.open(generation.sampling)
        return length

    def donor(self, generation: Generation) -> tuple[int | None, int, bool]:
        """The sequence that has most in common with a prompt, how much, and whether more of it is under way."""
        prompt = generation.todo
        most = len(prompt) - 1  # the last one must be computed, for what comes behind it
        best, donor, coming = _MIN_SHARED - 1, None, 0
        for number, tokens in self._kept.items():
            length = min(shared(tokens, prompt), most)
            if length > best:
                best, donor = length, number
        for other in self._running:
            length = min(shared(other.tokens, prompt), most)
            if other.place is Place.DEVICE and length > best:
                best, donor = length, other.number
            if length == len(other.tokens) and other.todo and not other.paused:
                coming = max(coming, length + min(shared(other.todo, prompt[length:]), most - length))
        return donor, (best if donor is not None else 0), coming >= best + _MIN_SHARED

    def end(self, generation: Generation, *, keep: bool) -> None:
        """A generation has ended: keep its sequence for others, or free it."""
        if generation.number is None:
            return
        if keep and generation.place is Place.DEVICE and len(generation.tokens) <= self._most_kept:
            self._keep(generation.number, generation.tokens)
        else:
            self._engine.free(generation.number)

    def _keep(self, number: int, tokens: list[int]) -> None:
        for other, older in list(self._kept.items()):
            if tokens[: len(older)] == older:
                self._forget(other)
        self._kept[number] = tokens
        self._kept_tokens += len(tokens)
        while self._kept_tokens > self._most_kept:
            self._forget(next(iter(self._kept)))

    def _forget(self, number: int) -> None:
        self._kept_tokens -= len(self._kept.pop(number))
        self._engine.free(number)

    # ------------------------------------------------------------------ memory

    def rest(self) -> None:
        """Decide what becomes of the caches of those that have begun to wait."""
        for generation in self._running:
            if generation.paused and not generation.settled and not generation.todo:
                generation.settled = True
                self._put_away(generation, must=False)

    def _put_away(self, generation: Generation, *, must: bool) -> None:
        if generation.place is not Place.DEVICE:
            return
        tokens, wait = len(generation.tokens), _left(generation)
        choice, why, costs = self._traps.decide(tokens, wait, crowded=self._is_crowded(), must=must)
        began = time.perf_counter()
        if choice is Choice.SWAP and not self._swap_out(generation):
            choice, why = Choice.RECOMPUTE, f"{why}, and the host has no room"
        if choice is Choice.RECOMPUTE:
            self._drop(generation)
        data = {"choice": choice.value, "why": why, "wait_ms": round(wait * 1000, 3), "costs_ms": costs}
        self._remark(generation, "cache", tokens, began, **data)

    def _is_crowded(self) -> bool:
        """Whether the memory is nearly full once all is computed that is to be, of those that queue, too."""
        memory = self._engine.memory()
        wanted = sum(len(other.todo) for other in (*self._waiting, *self._running) if not other.paused)
        return memory.used_tokens - self._kept_tokens + wanted > _CROWDED * memory.limit_tokens

    def _swap_out(self, generation: Generation) -> bool:
        """False if there is no room: the host holds as much as the device does, at the most."""
        memory = self._engine.memory()
        if memory.swapped_tokens + len(generation.tokens) > memory.limit_tokens:
            return False
        try:
            self._engine.swap_out(number_of(generation))
        except OutOfMemoryError:
            return False
        self._engine.synchronize()  # so that what it took is known
        generation.place = Place.HOST
        return True

    def _drop(self, generation: Generation) -> None:
        self._engine.drop(number_of(generation))
        generation.place = Place.NOWHERE
        generation.lost, generation.regaining = generation.lost + len(generation.tokens), None
        generation.todo[:0] = generation.tokens
        generation.tokens.clear()
        generation.ready = False

    def back(self, generation: Generation) -> bool:
        """See that a sequence can be fed: bring it back from the host, or wait until it may be computed again."""
        if generation.place is Place.NOWHERE:
            return not generation.paused and self.fitted(generation)
        if generation.place is Place.HOST:
            began = time.perf_counter()
            while True:
                try:
                    self._engine.swap_in(number_of(generation))
                    break
                except OutOfMemoryError:
                    if not self._evict(generation):
                        return False
            self._engine.synchronize()
            generation.place = Place.DEVICE
            self._remark(generation, "restored", len(generation.tokens), began, by=Choice.SWAP.value)
        return True

    def regain(self, generation: Generation, tokens: int, began: float) -> None:
        """So many tokens of a sequence that was dropped are there again."""
        if generation.regaining is None:
            generation.regaining = began
        generation.lost = max(generation.lost - tokens, 0) if generation.todo else 0
        if not generation.lost:
            self._engine.synchronize()
            tokens = len(generation.tokens)
            self._remark(generation, "restored", tokens, generation.regaining, by=Choice.RECOMPUTE.value)

    def make_room(self, youngest: Generation) -> bool:
        """A pass doesn't fit: put something away, if need be the youngest in it. False if even alone it doesn't fit."""
        if self._evict():
            return True
        if not any(other is not youngest and other.place is Place.DEVICE for other in self._running):
            return False
        if youngest.place is Place.DEVICE:
            began, tokens = time.perf_counter(), len(youngest.tokens)
            self._drop(youngest)
            data = {"choice": Choice.RECOMPUTE.value, "why": "older ones need its memory"}
            self._remark(youngest, "cache", tokens, began, **data)
        return True

    def _evict(self, but: Generation | None = None) -> bool:
        """Free the memory that is worth least: of sequences that ended, then of those that wait."""
        if self._kept:
            self._forget(next(iter(self._kept)))
            return True
        return self._evict_resting(but)

    def _evict_resting(self, but: Generation | None) -> bool:
        resting = [g for g in self._running if g.paused and g.place is Place.DEVICE and not g.todo and g is not but]
        if not resting:
            return False
        self._put_away(min(resting, key=self._worth), must=True)
        return True

    def _worth(self, generation: Generation) -> float:
        return self._traps.worth(len(generation.tokens), _left(generation))

    def _remark(self, generation: Generation, kind: str, tokens: int, began: float, **data: object) -> None:
        took = round((time.perf_counter() - began) * 1000, 3)
        self._tell(generation, Remark(kind, {"tokens": tokens, "ms": took, **data}))


def number_of(generation: Generation) -> int:
    """The engine's number of the sequence of a generation that runs."""
    assert generation.number is not None, "a generation that runs has its sequence"
    return generation.number


def _left(generation: Generation) -> float:
    """How much longer a generation is expected to wait (s)."""
    return left(generation.expected, time.monotonic() - generation.since)
