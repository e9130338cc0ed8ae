"""After a swap and after a recompute the model writes what it would have written with its cache kept (greedy, fp32)."""

from __future__ import annotations

import asyncio

import pytest
from tiny_model import tiny_folder

from asynclm.adapters.models.local.engine import Memory, Sampling
from asynclm.adapters.models.local.generation import Broke, Generation, News, Remark, Wrote
from asynclm.adapters.models.local.loop import Batching, StepLoop
from asynclm.adapters.models.local.traps import Choice, CostHandler, Decision, Rule
from asynclm.adapters.models.transformers.load import Loaded, LoadOptions, load

PROMPT = [{"role": "user", "content": "Tell me, please: which animals live in the forest, and what do they eat?"}]
INTERRUPT = '\n[INTR] a [HEAD] "in the forest" [END]\n'
BEFORE = 12
AFTER = 24


class InTurn:
    """Another rule for each sequence."""

    rule: Rule = "keep"

    def decide(self, tokens: int, wait: float, *, crowded: bool, must: bool) -> Decision:
        return CostHandler(None, self.rule).decide(tokens, wait, crowded=crowded, must=must)

    def worth(self, tokens: int, wait: float) -> float:
        return 1.0


async def told(loop: StepLoop, loaded: Loaded) -> tuple[list[int], list[Remark], Memory]:
    """What is written before a trap and behind its interrupt; what was done with the cache; the memory at the trap."""
    news: asyncio.Queue[News] = asyncio.Queue()
    remarks: list[Remark] = []
    prompt = loaded.vocabulary.chat(PROMPT, "")
    generation = Generation(prompt, Sampling(temperature=0.0), news.put_nowait)

    async def heard() -> News:
        item = await news.get()
        assert not isinstance(item, Broke), item
        if isinstance(item, Remark):
            remarks.append(item)
        return item

    async def read(count: int) -> list[int]:
        written: list[int] = []
        while len(written) < count:
            loop.ask(generation)
            while not isinstance(item := await heard(), Wrote):
                pass
            written.append(item.sampled.token)
        return written

    loop.open(generation)
    try:
        written = await read(BEFORE)
        loop.pause(generation, BEFORE, 1, expected=0.5)
        while not remarks:
            await heard()
        memory = loaded.engine.memory()
        loop.inject(generation, loaded.vocabulary.encode(INTERRUPT), BEFORE, 2)
        return written + await read(AFTER), remarks, memory
    finally:
        loop.close(generation)


async def check(model: str | None) -> None:
    loaded = load(LoadOptions(model=model, device="cpu", dtype="float32", threads=1, kv_tokens=1024))
    traps = InTurn()
    loop = StepLoop(loaded.engine, frozenset(), Batching(kept_tokens=0, chunk=16), traps)
    loop.start()
    try:
        kept, said, memory = await told(loop, loaded)
        assert [remark.data["choice"] for remark in said] == ["keep"]
        assert memory.used_tokens > 0
        assert len(set(kept)) > 5, "a model that repeats one token would show nothing"
        for rule in (Choice.SWAP, Choice.RECOMPUTE):
            traps.rule = rule.value
            written, said, memory = await told(loop, loaded)
            assert [remark.kind for remark in said] == ["cache", "restored"]
            assert (said[0].data["choice"], said[1].data["by"]) == (rule, rule)
            assert memory.used_tokens == 0
            assert (memory.swapped_tokens > 0) == (rule is Choice.SWAP)
            assert written == kept
    finally:
        await loop.aclose()


async def test_on_a_tiny_model() -> None:
    await check(str(tiny_folder()))


@pytest.mark.heavy
@pytest.mark.timeout(300)
async def test_on_a_real_one() -> None:
    await check(None)
