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
from toy_engine import Next, ToyEngine

from asynclm.adapters.models.local.model import Loaded, LocalModel, LocalStream
from asynclm.adapters.models.local.settings import EngineSettings
from asynclm.adapters.models.local.traps import CostHandler, Rule
from asynclm.adapters.models.protocol import Ended, ModelError, Noted, Request, TextDelta

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


async def settled(model: LocalModel) -> None:
    """Until the engine's thread has taken every wish, and told what came of them."""
    assert model._loading is not None
    loop = model._loading.result().loop
    events = asyncio.get_running_loop()
    for _ in range(2):
        done = asyncio.Event()
        loop._wish(lambda done=done: events.call_soon_threadsafe(done.set))
        await done.wait()


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
        view = "Hello"

        async def read() -> None:
            nonlocal view
            for event in await anext(batches):
                if isinstance(event, TextDelta):
                    view += event.text
                    if dice.random() < 0.3:
                        stream.pause(0.01)
                        asyncio.get_running_loop().call_later(0.002, tell)
                        for _ in range(dice.randrange(4)):  # and when it goes on, once more
                            asyncio.get_running_loop().call_later(0.002 + dice.random() * 0.002, tell)

        def tell() -> None:
            nonlocal view
            view += "\n<told>\n"
            stream.inject("<told>")

        for _ in range(150):
            await read()
        await settled(model)
        sequence = bytes([*stream.generation.tokens, *stream.generation.todo])
        heard = view.encode()
        # At most one token more was drawn; nobody has heard it, and an injection would take it back.
        assert sequence[: len(heard)] == heard
        assert len(sequence) <= len(heard) + 1
        await stream.aclose()
