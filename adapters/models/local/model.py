"""A model that runs on this machine, as the proxy sees it: interrupts go into its live sequence."""

from __future__ import annotations

import asyncio
import codecs
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from asynclm.adapters.models.protocol import Abilities, Ended, ModelError, Noted, Request, StreamEvent, TextDelta
from asynclm.adapters.models.stops import Stops
from asynclm.cml.tools import ToolSpec
from asynclm.cml.transcript import as_continued
from asynclm.cml.usage import Usage

from .engine import Engine, Sampling
from .generation import Began, Broke, Full, Generation, Monitor, News, Remark, Wrote
from .loop import Batching, FullError, Load, StepLoop, StoppedError
from .monitor import Rules
from .parameters import sampling
from .settings import EngineSettings
from .shortening import shorten
from .traps import TrapHandler
from .vocabulary import Vocabulary

_MAX_RULES: Final = 16
_RESERVE: Final = 32  # tokens that must be left to write behind an interrupt
_RETRY_S: Final = 1.0
_LOAD_TIMEOUT_S: Final = 600.0


class Loaded(NamedTuple):
    """A model in memory."""

    engine: Engine
    vocabulary: Vocabulary
    traps: TrapHandler | None = None


Guide = Callable[[Request, Vocabulary], Monitor | None]


class LocalModel:
    """A model whose engine runs in this process. `load` makes it, in a thread, when it is first needed.

    `inject`: whether it takes interrupts in its live sequences, or by stopping and resuming. `guide` makes what says
    which tokens may be written, in place of the token monitor.
    """

    def __init__(
        self,
        load: Callable[[], Loaded],
        settings: EngineSettings | None = None,
        *,
        inject: bool = True,
        guide: Guide | None = None,
    ) -> None:
        self._load = load
        self._guide = guide
        self._settings = settings or EngineSettings()
        self._loading: asyncio.Task[_Running] | None = None
        self._abilities = Abilities(inject=inject, prefill=True, interleave=True)
        self._making_rules = threading.Lock()
        self._rules: OrderedDict[int, tuple[Sequence[ToolSpec], Rules]] = OrderedDict()

    def abilities(self, model: str) -> Abilities:
        """The same for every name."""
        return self._abilities

    async def prepare(self) -> None:
        """Load the model now. Raises what `load` does."""
        await self._ready()

    async def open(self, request: Request) -> LocalStream:
        """Begin a sequence. Raises `ModelError`: 400 for a prompt that is longer than the context and for what can't be
        honoured, 429 when the queue is full, 503 for an engine that is gone.
        """
        how = sampling(request.parameters)
        try:
            async with asyncio.timeout(_LOAD_TIMEOUT_S):
                running = await self._ready()
        except TimeoutError:
            raise ModelError("The model is still being loaded.", status=503, code="loading", retry_after=10) from None
        # Templates, tokenizers and grammars take milliseconds, of which other answers are to notice nothing.
        prompt, monitor = await asyncio.to_thread(self._prepared, running, request)
        return running.open(prompt, request, how, monitor)

    def load(self) -> Load | None:
        """How busy the engine is; None before it was loaded."""
        task = self._loading
        return task.result().loop.load() if task is not None and task.done() and not task.exception() else None

    async def aclose(self) -> None:
        """End all generations and free the model. One that is still being loaded is left to its thread."""
        loading = self._loading
        if loading is not None and not loading.done():
            loading.cancel()
        elif loading is not None and loading.exception() is None:
            await loading.result().loop.aclose()

    async def _ready(self) -> _Running:
        if self._loading is None or (self._loading.done() and self._loading.exception() is not None):
            self._loading = asyncio.create_task(self._start(), name="load a model")
        return await asyncio.shield(self._loading)

    async def _start(self) -> _Running:
        loaded = await asyncio.to_thread(self._load)
        context = min(loaded.engine.context, self._settings.context or loaded.engine.context)
        loop = StepLoop(loaded.engine, loaded.vocabulary.ends, _batching(self._settings), loaded.traps, context)
        loop.start()
        return _Running(loop, context, loaded.vocabulary, self._settings)

    def _prepared(self, running: _Running, request: Request) -> tuple[list[int], Monitor | None]:
        """The prompt, and what says which tokens may follow. In any thread."""
        prompt = running.prompt(request)
        if self._guide is not None:
            return prompt, self._guide(request, running.vocabulary)
        if not request.tools:
            return prompt, None
        with self._making_rules:
            rules = self._rules_of(request.tools, running.vocabulary)
        rules.prepare()
        return prompt, rules.monitor()

    def _rules_of(self, tools: Sequence[ToolSpec], vocabulary: Vocabulary) -> Rules:
        """Made once for each list of tools."""
        known = self._rules.get(id(tools))
        if known is None or known[0] is not tools:
            known = self._rules[id(tools)] = (tools, Rules(vocabulary, tools, constrain=self._settings.constrain))
            if len(self._rules) > _MAX_RULES:
                self._rules.popitem(last=False)
        self._rules.move_to_end(id(tools))
        return known[1]


class _Running:
    """An engine at work."""

    def __init__(self, loop: StepLoop, context: int, vocabulary: Vocabulary, settings: EngineSettings) -> None:
        self.loop = loop
        self.context = context
        self.vocabulary = vocabulary
        self.settings = settings

    def prompt(self, request: Request) -> list[int]:
        """Its tokens. Raises `ModelError` (400)."""
        try:
            prompt = self.vocabulary.chat(request.messages, as_continued(request.transcript))
        except ValueError as error:
            raise ModelError(
                f"The model's chat template can't take these messages: {error}.",
                status=400,
                type="invalid_request_error",
                param="messages",
            ) from None
        if len(prompt) >= self.context:
            raise ModelError(
                f"This model's context is {self.context} tokens; the prompt (messages, tools and instructions) is "
                f"{len(prompt)}. Send less.",
                status=400,
                type="invalid_request_error",
                code="context_length_exceeded",
                param="messages",
            )
        return prompt

    def open(self, prompt: list[int], request: Request, how: Sampling, monitor: Monitor | None) -> LocalStream:
        """Begin a sequence. Raises `ModelError` (429, 503)."""
        stream = LocalStream(self, prompt, how, monitor, request)
        try:
            self.loop.open(stream.generation)
        except FullError:
            raise ModelError(
                "The model has as many requests as it takes: try again in a moment.",
                status=429,
                type="rate_limit_error",
                code="queue_full",
                retry_after=_RETRY_S,
            ) from None
        except StoppedError as error:
            raise ModelError(f"The model can't answer: {error}.", status=503, code="engine_stopped") from None
        return stream


class LocalStream:
    """One live sequence, a token a batch (an `InjectableStream`)."""

    def __init__(
        self, running: _Running, prompt: list[int], how: Sampling, monitor: Monitor | None, request: Request
    ) -> None:
        self._running = running
        self._loop = running.loop
        self._vocabulary = running.vocabulary
        self.generation = Generation(prompt, how, self._hear, max_tokens=request.max_tokens, monitor=monitor)
        self._left = request.max_tokens
        self._prompt_tokens = len(prompt)
        self._written = 0
        self._cached = 0
        self._news: deque[News] = deque()
        self._arrived = asyncio.Event()
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial = False  # a character's first bytes are there, its last aren't
        self._delayed: list[Callable[[], None]] = []  # what is to happen behind that character
        self._stops = Stops(request.stop)
        self._asked = False  # for a token, which wasn't heard yet
        self._era = 0
        self._failure: ModelError | None = None
        self._over = False
        self._closed = False
        self._keep = False

    def __aiter__(self) -> LocalStream:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        if self._over:
            raise StopAsyncIteration
        self._ask()
        while True:
            while not self._news and not self._closed and self._failure is None:
                self._arrived.clear()
                await self._arrived.wait()
            if self._closed:
                raise StopAsyncIteration
            if self._failure is not None:
                self._over = True
                raise self._failure
            events = self._take(self._news.popleft())
            if events:
                return events

    def pause(self, expected: float | None = None) -> None:
        """Write nothing more until something is injected; a character that was begun is completed."""
        if self._partial:
            self._delayed.append(lambda: self.pause(expected))
            return
        self._loop.pause(self.generation, self._written, self._new_era(), expected)

    def inject(self, text: str) -> None:
        """Append interrupts; the model goes on behind them.

        Where they are too long for what is left of the context they are cut down, or the stream fails: see
        `EngineSettings.overflow`.
        """
        if self._partial:  # between two bytes of a character is no place for it
            self._delayed.append(lambda: self.inject(text))
            return
        encode = self._vocabulary.encode
        tokens = encode(f"\n{text}\n")
        room = self._running.context - self._prompt_tokens - self._written - _RESERVE
        if len(tokens) > room:
            shorter = None
            if self._running.settings.overflow == "shorten":
                shorter = shorten(text, lambda shorter: len(encode(f"\n{shorter}\n")) <= room)
            if shorter is None:
                message = f"A result of {len(tokens)} tokens doesn't fit: the context has room for {max(room, 0)} more."
                self._failure = ModelError(message, status=400, code="context_length_exceeded")
                self._arrived.set()
                return
            cut = encode(f"\n{shorter}\n")
            self._news.append(Remark("shortened", {"tokens": len(tokens), "to": len(cut)}))
            self._arrived.set()
            tokens = cut
        self._prompt_tokens += len(tokens)
        self._loop.inject(self.generation, tokens, self._written, self._new_era())

    def keep(self) -> None:
        """It is closed next; its cache is left to a prompt that begins like it."""
        self._keep = True

    async def aclose(self) -> None:
        """End the sequence; its cache is freed before the next step, unless it may be kept."""
        if not self._closed:
            self._closed = self._over = True
            self._loop.close(self.generation, keep=self._keep)
            self._arrived.set()

    def _hear(self, news: News) -> None:
        self._news.append(news)
        self._arrived.set()

    def _new_era(self) -> int:
        """What was written but not read yet is not to be: see `StepLoop.pause`."""
        self._era += 1
        return self._era

    def _take(self, news: News) -> list[StreamEvent]:
        match news:
            case Wrote(sampled, end, era):
                return self._take_token(sampled.token, end=end) if era == self._era else []
            case Began(shared):
                self._cached = shared
                return []
            case Remark(kind, data):
                return [Noted(kind, data)]
            case Full():
                return self._end("length")
            case Broke(message, status, code):
                self._over = True
                raise ModelError(f"The model broke off: {message}.", status=status, code=code)

    def _take_token(self, token: int, *, end: bool) -> list[StreamEvent]:
        self._asked = False
        self._written += 1
        if end and self._delayed:  # it breaks off in the middle of a character: not before it was told what waits
            self._written -= 1
            self._asked = True
            self._bytes.reset()
            self._partial = False
            self._catch_up()
            return []
        if end:
            return self._end("stop")
        piece = self._vocabulary.pieces[token]
        text = self._bytes.decode(piece)
        self._partial = self._bytes.getstate()[0] != b""
        shown = self._stops.feed(text)
        if self._stops.hit:
            return self._end("stop", shown)
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                return self._end("length", shown)
        if self._delayed and not self._partial:
            self._catch_up()
        if shown:
            return [TextDelta(shown)]
        self._ask()
        return []

    def _catch_up(self) -> None:
        delayed, self._delayed = self._delayed, []
        for each in delayed:
            each()

    def _ask(self) -> None:
        """Once for each token. To ask again, behind a remark, would say that one was heard that may be on its way."""
        if not self._asked:
            self._asked = True
            self._loop.ask(self.generation)

    def _end(self, reason: str, text: str = "") -> list[StreamEvent]:
        self._over = True
        if not self._stops.hit:
            text += self._stops.flush() + self._bytes.decode(b"", True)
        usage = Usage(self._prompt_tokens, self._written, cached_tokens=self._cached)
        ended: list[StreamEvent] = [Ended(reason), usage]
        return [TextDelta(text), *ended] if text else ended


def _batching(settings: EngineSettings) -> Batching:
    return Batching(**{name: getattr(settings, name) for name in Batching.__struct_fields__})
