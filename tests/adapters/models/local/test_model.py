"""A local model's streams, on an engine without a model whose tokens are bytes: what the reader has heard and told is
what stands in the sequence.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from toy_engine import ToyEngine

from asynclm.adapters.models.local.model import Loaded, LocalModel
from asynclm.adapters.models.local.settings import EngineSettings
from asynclm.adapters.models.local.traps import CostHandler, Rule
from asynclm.adapters.models.protocol import ModelError, Request, TextDelta

END = 0


class Bytes:
    """A vocabulary of bytes; 0 ends an answer."""

    pieces: Sequence[bytes] = [b"", *(bytes([n]) for n in range(1, 256))]
    ends = frozenset([END])

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def chat(self, messages: Sequence[dict[str, Any]], answer: str) -> list[int]:
        return self.encode("".join(str(message["content"]) for message in messages) + answer)


@asynccontextmanager
async def model_on(
    engine: ToyEngine,
    rule: Rule = "auto",
    settings: EngineSettings | None = None,
    guide: Callable[..., Any] | None = None,
) -> AsyncIterator[LocalModel]:
    model = LocalModel(lambda: Loaded(engine, Bytes(), CostHandler(None, rule)), settings, guide=guide)
    try:
        yield model
    finally:
        await model.aclose()


def asking(text: str = "Hello", **options: Any) -> Request:
    return Request(model="", messages=[{"role": "user", "content": text}], **options)


async def looked_at(model: LocalModel, look: Callable[[], Any]) -> Any:
    """What `look` finds in the engine's thread, once it has taken every wish."""
    assert model._loading is not None
    found = asyncio.get_running_loop().create_future()
    events = asyncio.get_running_loop()
    model._loading.result().loop._wish(lambda: events.call_soon_threadsafe(found.set_result, look()))
    return await found


def letters(tokens: Sequence[int]) -> int:
    """A letter that follows from all that is there."""
    return 97 + random.Random(repr(list(tokens))).randrange(26)


@pytest.mark.parametrize("rule", ["auto", "swap", "recompute"])
@pytest.mark.parametrize("seed", range(10))
async def test_what_was_heard_and_told_is_what_stands_in_the_sequence(rule: Rule, seed: int) -> None:
    """Whatever is noted in between, of caches that come and go."""
    dice = random.Random(seed)
    engine = ToyEngine(letters, context=4000, limit=20_000)
    async with model_on(engine, rule, EngineSettings(kept_tokens=0)) as model:
        stream = await model.open(asking())
        batches = aiter(stream)
        view, coming = "Hello", 0

        async def read() -> None:
            nonlocal view
            for event in await anext(batches):
                if isinstance(event, TextDelta):
                    view += event.text
                    if dice.random() < 0.3:
                        stream.pause(0.01)
                        later(0.002)
                        for _ in range(dice.randrange(4)):  # and when it goes on, once more
                            later(0.002 + dice.random() * 0.002)

        def later(seconds: float) -> None:
            nonlocal coming
            coming += 1
            asyncio.get_running_loop().call_later(seconds, tell)

        def tell() -> None:
            nonlocal view, coming
            coming -= 1
            view += "\n<told>\n"
            stream.inject("<told>")

        for _ in range(150):
            await read()
        while coming:
            await asyncio.sleep(0.001)
        it = stream.generation
        sequence = await looked_at(model, lambda: bytes([*it.tokens, *it.todo]))
        heard = view.encode()
        # At most one token more was drawn; nobody has heard it, and an injection would take it back.
        assert sequence[: len(heard)] == heard
        assert len(sequence) <= len(heard) + 1
        await stream.aclose()


class Faulty:
    """A monitor that breaks down at its third token, in one of its methods."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.count = 0

    def _may_fail(self, method: str) -> None:
        self.count += method == self.method
        if self.count == 3:
            raise ZeroDivisionError

    def take(self, token: int) -> None:
        self._may_fail("take")

    def told(self, tokens: Sequence[int]) -> None:
        self._may_fail("told")

    def mask(self) -> None:
        self._may_fail("mask")


@pytest.mark.parametrize("method", ["take", "told", "mask"])
async def test_a_monitor_that_breaks_down_ends_its_own_run_only(method: str) -> None:
    def guide(request: Request, vocabulary: Any) -> Faulty | None:
        return Faulty(method) if request.parameters.get("seed") == 1 else None

    async with model_on(ToyEngine(letters), guide=guide) as model:
        bad, good = await model.open(asking(parameters={"seed": 1})), await model.open(asking())
        for _ in range(2):
            await anext(bad)
            await anext(good)
        with pytest.raises(ModelError, match="ZeroDivisionError") as failed:
            for _ in range(3):
                bad.inject("x")
                await anext(bad)
        assert failed.value.status == 500
        for _ in range(5):
            await anext(good)
        await bad.aclose()
        again = await model.open(asking())
        await anext(again)


def behind(prompt: int, text: bytes) -> Callable[[Sequence[int]], int]:
    """The model writes these bytes behind a prompt of so many, then letters, whatever it is told in between."""

    def next(tokens: Sequence[int]) -> int:
        written = bytes(tokens[prompt:]).replace(b"\n<told>\n", b"")
        return text[len(written)] if len(written) < len(text) else letters(tokens)

    return next


async def test_nothing_comes_between_the_bytes_of_a_character_and_no_pause_is_forgotten() -> None:
    engine = ToyEngine(behind(5, "a\u00e9b".encode()))
    async with model_on(engine) as model:
        stream = await model.open(asking())
        heard = [event for _ in range(1) for event in await anext(stream)]
        waiting = asyncio.ensure_future(anext(stream))
        while not stream._partial:
            await asyncio.sleep(0)
        stream.pause(1.0)  # as where a policy stops the stream for what somebody says
        stream.inject("<told>")
        async with asyncio.timeout(10):
            heard += await waiting
            heard += await anext(stream)
        assert heard == [TextDelta("a"), TextDelta("\u00e9"), TextDelta("b")]
        it = stream.generation
        found = await looked_at(model, lambda: bytes([*it.tokens, *it.todo]))
        assert found.startswith("Helloa\u00e9\n<told>\nb".encode())


async def test_an_answer_that_ends_in_the_middle_of_a_character_does_not_swallow_what_waits_for_it() -> None:
    engine = ToyEngine(
        lambda tokens: letters(tokens) if b"told" in bytes(tokens) else 0xC3 if tokens[-1] == 111 else END
    )
    async with model_on(engine) as model:
        stream = await model.open(asking())
        waiting = asyncio.ensure_future(anext(stream))
        while not stream._partial:
            await asyncio.sleep(0)
        stream.inject("<told>")
        (delta,) = await waiting
        assert isinstance(delta, TextDelta)
        assert delta.text.isalpha()
