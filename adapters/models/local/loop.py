"""The step loop: many generations on one engine, a token a step each (continuous batching).

Theory of operation. One thread owns the engine. A step:

1. take the readers' wishes: open, ask for a token, inject, pause, close;
2. draw the next token of each generation whose reader has asked for one;
3. send the tokens to the event loop, all in one call;
4. compute, in one forward pass: the tokens just drawn, what was injected, and a share of the prompts that wait.

A reader asks for the next token when it has dealt with the last one, which it does while the forward pass of that
token runs. So the work on the host hides behind the device's, and yet an injection is exact: the pass of token k is
needed whatever comes next; if an interrupt is to go in behind k, its tokens are fed in place of drawing k+1. Nothing
that was computed is computed again.

Prompts are computed in chunks, so that a long one doesn't hold up the tokens of the others. A prompt that begins like
a sequence that is there takes its beginning over; one that begins like a prompt under way waits for it.

Where memory runs out, sequences that ended go first, then those that wait at a trap (those that are worth least before
the others, see `traps`), then the youngest: it is computed again when there is room. One that doesn't fit alone fails.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from .caches import Caches, number_of
from .engine import Engine, Feed, OutOfMemoryError, Pick, Sampled
from .generation import Began, Broke, Full, Generation, News, Place, Wrote
from .traps import CostHandler, TrapHandler

_log = logging.getLogger(__name__)

_GRACE_S: Final = 0.001


class Batching(msgspec.Struct, frozen=True, kw_only=True):
    """How generations share the engine.

    `max_running`: sequences at once; `max_waiting`: further ones that may queue. `chunk` and `busy_chunk`: tokens of
    prompts in one pass, while nobody writes and while somebody does. `kept_tokens`: of sequences that have ended,
    kept for those that begin like them.
    """

    max_running: int = 16
    max_waiting: int = 64
    chunk: int = 512
    busy_chunk: int = 64
    kept_tokens: int = 16_384


class Load(NamedTuple):
    """How busy the loop is: generations that run, and that wait for their turn; steps and tokens so far."""

    running: int
    waiting: int
    steps: int
    drawn: int
    computed: int
    shared: int


class FullError(Exception):
    """The queue is full."""


class StoppedError(Exception):
    """The engine has broken down or was closed."""


class StepLoop:
    """Runs generations on an engine, in a thread of its own.

    The methods are for the event loop's thread and never block. `ends` are the tokens that end an answer; `context`
    bounds a sequence (tokens; None: the engine's own bound). The engine is closed with the loop.
    """

    def __init__(
        self,
        engine: Engine,
        ends: frozenset[int],
        batching: Batching | None = None,
        traps: TrapHandler | None = None,
        context: int | None = None,
    ) -> None:
        self._engine = engine
        self._context = context or engine.context
        self._ends = ends
        self._batching = batching or Batching()
        self._wishes: deque[tuple[Generation | None, Callable[[], None]]] = deque()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._broken: str | None = None
        self._open = 0  # generations that the readers hold; counted in the event loop's thread
        # From here on: the engine's thread only.
        self._stopping = False
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._news: list[tuple[Generation, News]] = []
        self._caches = Caches(
            engine,
            traps or CostHandler(),
            self._batching.kept_tokens,
            self._running,
            self._waiting,
            lambda generation, remark: self._news.append((generation, remark)),
        )
        self._steps = 0
        self._drawn = 0
        self._computed = 0
        self._shared = 0

    # ------------------------------------------------------------------ for the event loop's thread

    def start(self) -> None:
        """Start the thread; what happens is told to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._thread.start()

    def load(self) -> Load:
        """How busy it is, about."""
        return Load(len(self._running), len(self._waiting), self._steps, self._drawn, self._computed, self._shared)

    def open(self, generation: Generation) -> None:
        """Begin, when there is room. Raises `FullError`, and `StoppedError`."""
        if self._broken is not None:
            raise StoppedError(self._broken)
        if self._open >= self._batching.max_running + self._batching.max_waiting:
            raise FullError
        self._open += 1
        self._wish(lambda: self._waiting.append(generation), generation)
        if self._broken is not None:  # just now: the thread may not have seen the wish any more
            raise StoppedError(self._broken)

    def ask(self, generation: Generation) -> None:
        """Draw the next token of a generation: the reader has dealt with the last one."""

        def ask() -> None:
            self._settle(generation, generation.drawn)
            generation.asked = True

        self._wish(ask, generation)

    def pause(self, generation: Generation, heard: int, era: int, expected: float | None = None) -> None:
        """Write nothing more, until something is injected, which is expected in so many seconds.

        `heard` is how many tokens the reader knows of: one more that was drawn meanwhile is taken back. `era` goes with
        each token that is drawn from now on.
        """

        def pause() -> None:
            self._settle(generation, heard)
            generation.era = era
            generation.paused, generation.settled = True, False
            generation.expected, generation.since = expected, time.monotonic()

        self._wish(pause, generation)

    def inject(self, generation: Generation, tokens: Sequence[int], heard: int, era: int) -> None:
        """Append tokens behind the last one that the reader knows of (see `pause`); the model goes on behind them."""

        def inject() -> None:
            if generation.closed:
                return
            self._settle(generation, heard)
            generation.era = era
            generation.paused = generation.ready = False
            generation.todo.extend(tokens)
            if generation.monitor is not None:
                generation.monitor.told(tokens)

        self._wish(inject, generation)

    def close(self, generation: Generation, *, keep: bool = False) -> None:
        """End a generation. Its cache is freed before the next step; unless the answer came to its end, or with `keep`:
        then it stays for those that begin like it, as long as nobody needs the memory. Once for each that was opened.
        """
        self._open -= 1
        self._wish(lambda: self._end(generation, keep=keep or generation.over), generation)

    async def aclose(self) -> None:
        """Stop the thread; generations that are open break off."""
        self._broken = self._broken or "the engine was closed"

        def stop() -> None:
            self._stopping = True

        self._wish(stop)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _wish(self, wish: Callable[[], None], generation: Generation | None = None) -> None:
        self._wishes.append((generation, wish))
        self._woken.set()

    # ------------------------------------------------------------------ the engine's thread

    def _main(self) -> None:
        try:
            while not self._stopping:
                self._drain()
                if not self._step() and not self._stopping:
                    self._woken.wait()
        except BaseException as error:
            _log.exception("the engine broke down")
            self._broken = f"the engine broke down ({type(error).__name__}); its log says more"
        finally:
            self._broken = self._broken or "the engine was closed"
            unseen = [generation for generation, _ in self._wishes if generation is not None]
            for generation in dict.fromkeys([*self._running, *self._waiting, *unseen]):
                self._news.append((generation, Broke(self._broken, 503)))
            self._tell()
            self._running.clear()
            self._waiting.clear()
            self._engine.close()

    def _drain(self) -> None:
        self._woken.clear()
        while self._wishes:
            generation, wish = self._wishes.popleft()
            try:
                wish()
            except Exception as error:
                if generation is None:
                    raise
                self._fault(generation, error)

    def _step(self) -> bool:
        """One step. False if there was nothing to do."""
        drew = self._draw()
        self._tell()
        self._admit()
        self._caches.rest()
        feeds = self._feeds()
        computed = self._compute(feeds)
        if computed:
            self._steps += 1
            self._drain()
            self._linger()
        self._tell()
        return bool(drew or computed)

    # ------------------------------------------------------------------ drawing

    def _draw(self) -> int:
        writing = []
        for generation in self._running[:]:
            if generation.ready and generation.asked and not generation.paused:
                if len(generation.tokens) < self._context:
                    writing.append(generation)
                else:
                    self._news.append((generation, Full()))
                    generation.asked, generation.over = False, True
        if not writing:
            return 0
        for generation, sampled in self._sampled(writing):
            generation.asked = generation.ready = False
            token = sampled.token
            if token < 0:
                self._fail(generation, Broke(sampled.error or "the model computed no number for the next token"))
                continue
            self._drawn += 1
            generation.drawn += 1
            generation.last = token
            generation.wrote = True
            if generation.left is not None:
                generation.left -= 1
            end = token in self._ends
            generation.over = end or generation.left == 0
            if not generation.over:
                generation.todo.append(token)
            self._news.append((generation, Wrote(sampled, end, generation.era)))
        return len(writing)

    def _sampled(self, writing: list[Generation]) -> list[tuple[Generation, Sampled]]:
        """Tokens for those that can be given one; the others fail, each by itself."""
        picks: list[tuple[Generation, Pick]] = []
        for generation in writing:
            try:
                mask = None if generation.monitor is None else generation.monitor.mask()
            except Exception as error:
                self._fault(generation, error)
            else:
                picks.append((generation, Pick(number_of(generation), mask)))
        if not picks:
            return []
        try:
            sampled = self._engine.sample([pick for _, pick in picks])
            return [(generation, each) for (generation, _), each in zip(picks, sampled, strict=True)]
        except Exception as error:
            if len(picks) == 1:
                self._fault(picks[0][0], error)
                return []
        _log.warning("drawing %d tokens failed: they are drawn one by one", len(picks))
        return [each for generation, _ in picks for each in self._sampled([generation])]

    def _settle(self, generation: Generation, heard: int) -> None:
        """The reader knows of so many tokens: the last one counts, or is taken back if it isn't among them."""
        last, generation.last = generation.last, None
        if last is None or generation.closed:
            return
        if generation.drawn <= heard:
            if generation.monitor is not None:
                generation.monitor.take(last)
            return
        generation.drawn -= 1
        if generation.left is not None:
            generation.left += 1
        generation.asked, generation.ready = True, False  # the reader still waits for one
        if generation.over:
            generation.over = False
        elif generation.todo:
            generation.todo.pop()
        else:
            generation.tokens.pop()
            if generation.place is Place.DEVICE:
                self._engine.truncate(number_of(generation), len(generation.tokens))

    def _tell(self) -> None:
        if not self._news:
            return
        news, self._news = self._news, []

        def deliver() -> None:
            for generation, item in news:
                generation.hear(item)

        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the event loop is gone, and the readers with it
            self._stopping = True

    def _linger(self) -> None:
        """Give those a moment whose reader is just about to ask: a batch of many costs no more than one of few."""
        asked = False
        late = False
        for generation in self._running:
            if generation.ready and not generation.paused:
                asked |= generation.asked
                late |= not generation.asked
        if asked and late:
            self._woken.wait(_GRACE_S)
            self._drain()

    # ------------------------------------------------------------------ beginning and ending

    def _admit(self) -> None:
        """Begin what waits, in order, as far as there is room."""
        for generation in list(self._waiting):
            active = sum(not other.paused for other in self._running)
            if active >= self._batching.max_running or not self._caches.fitted(generation):
                return
            donor, length, coming = self._caches.donor(generation)
            if coming:
                continue  # what it has in common with another is being computed
            self._waiting.remove(generation)
            self._running.append(generation)
            length = self._caches.begin(generation, donor, length)
            self._shared += length
            self._news.append((generation, Began(length)))

    def _end(self, generation: Generation, *, keep: bool) -> None:
        if generation.closed:
            return
        generation.closed = True
        if generation in self._waiting:
            self._waiting.remove(generation)
            return
        if generation in self._running:
            self._running.remove(generation)
            self._caches.end(generation, keep=keep)

    def _fail(self, generation: Generation, why: Broke) -> None:
        self._news.append((generation, why))
        self._end(generation, keep=False)

    def _fault(self, generation: Generation, error: Exception) -> None:
        """Something broke down that has to do with one generation: the others go on."""
        _log.error("a generation broke down", exc_info=error)
        self._fail(generation, Broke(f"the engine failed: {type(error).__name__}"))

    # ------------------------------------------------------------------ computing

    def _feeds(self) -> list[tuple[Generation, Feed]]:
        feeds: list[tuple[Generation, Feed]] = []
        long: list[Generation] = []
        busy = False
        for generation in self._running:
            if not generation.todo:
                busy |= generation.ready and not generation.paused
            elif generation.wrote and len(generation.todo) <= self._batching.busy_chunk:
                busy = True
                if self._caches.back(generation):
                    feeds.append(self._feed(generation, len(generation.todo)))
            else:
                long.append(generation)
        budget = self._batching.busy_chunk if busy else self._batching.chunk
        for generation in long:
            if budget <= 0:
                break
            if self._caches.back(generation):
                share = min(budget, len(generation.todo))
                budget -= share
                feeds.append(self._feed(generation, share))
        return feeds

    def _feed(self, generation: Generation, share: int) -> tuple[Generation, Feed]:
        tokens = generation.todo[:share]
        return generation, Feed(number_of(generation), tokens, share == len(generation.todo))

    def _compute(self, feeds: list[tuple[Generation, Feed]]) -> bool:
        """Whether anything has changed by it."""
        began = time.perf_counter()
        feeds, changed = self._forward(feeds)
        for generation, feed in feeds:
            self._computed += len(feed.tokens)
            generation.place = Place.DEVICE
            generation.tokens.extend(feed.tokens)
            del generation.todo[: len(feed.tokens)]
            generation.ready = feed.logits
            if generation.lost:
                self._caches.regain(generation, len(feed.tokens), began)
        return changed

    def _forward(self, feeds: list[tuple[Generation, Feed]]) -> tuple[list[tuple[Generation, Feed]], bool]:
        """The feeds that were computed, and whether anything has changed at all."""
        changed = False
        while feeds:
            try:
                self._engine.forward([feed for _, feed in feeds])
                return feeds, True
            except OutOfMemoryError as error:
                if self._caches.evict():
                    changed = True
                    continue
                youngest, _ = feeds.pop()
                if self._caches.fits_alone(youngest):
                    changed |= self._caches.step_back(youngest)
                else:
                    why = f"the sequence doesn't fit into the model's memory: {error}"
                    self._fail(youngest, Broke(why, 507, "out_of_memory"))
                    changed = True
            except Exception as error:
                if len(feeds) == 1:
                    self._fault(feeds[0][0], error)
                    return [], True
                _log.warning("a pass of %d sequences failed: they are computed one by one", len(feeds))
                done = [self._forward([feed]) for feed in feeds]
                return [feed for computed, _ in done for feed in computed], True
        return [], changed
