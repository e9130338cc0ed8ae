"""The step loop, on an engine without a model: whatever readers do, each token follows from what its reader knows."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from toy_engine import ToyEngine

from asynclm.adapters.models.local.costs import Costs, Curve
from asynclm.adapters.models.local.engine import Feed, Memory, OutOfMemoryError, Pick, Sampling
from asynclm.adapters.models.local.generation import Began, Broke, Full, Generation, News, Remark, Wrote
from asynclm.adapters.models.local.loop import Batching, FullError, StepLoop, StoppedError
from asynclm.adapters.models.local.traps import Choice, CostHandler, Decision

END = 0


class Reader:
    """What a stream does, without text: `view` is the sequence as the reader knows it."""

    def __init__(self, loop: StepLoop, engine: ToyEngine, prompt: list[int], max_tokens: int | None = None) -> None:
        self.loop = loop
        self.engine = engine
        self.view = list(prompt)
        self.max_tokens = max_tokens
        self.heard = 0
        self.era = 0
        self.news: deque[News] = deque()
        self.arrived = asyncio.Event()
        self.remarks: list[Remark] = []
        self.shared = 0
        self.generation = Generation(prompt, Sampling(), self._hear, max_tokens=max_tokens)
        loop.open(self.generation)

    def _hear(self, news: News) -> None:
        self.news.append(news)
        self.arrived.set()

    async def next(self) -> int | None:
        """The next token; None at the end."""
        if self.heard == self.max_tokens:
            return None
        self.loop.ask(self.generation)
        while True:
            while not self.news:
                self.arrived.clear()
                await self.arrived.wait()
            news = self.news.popleft()
            match news:
                case Wrote(sampled, end, era):
                    if era != self.era:
                        continue
                    self.heard += 1
                    assert sampled.token == self.engine.next(self.view), "not what follows from what the reader knows"
                    if end:
                        return None
                    self.view.append(sampled.token)
                    return sampled.token
                case Began(shared):
                    self.shared = shared
                case Remark():
                    self.remarks.append(news)
                case Full():
                    return None
                case Broke():
                    raise RuntimeError(news.message)

    async def read(self, count: int) -> None:
        for _ in range(count):
            assert await self.next() is not None

    def inject(self, tokens: list[int]) -> None:
        self.era += 1
        self.view.extend(tokens)
        self.loop.inject(self.generation, tokens, self.heard, self.era)

    def pause(self, expected: float | None = None) -> None:
        self.era += 1
        self.loop.pause(self.generation, self.heard, self.era, expected)

    def close(self, *, keep: bool = False) -> None:
        self.loop.close(self.generation, keep=keep)


@asynccontextmanager
async def running(engine: ToyEngine, **options: object) -> AsyncIterator[StepLoop]:
    traps = options.pop("traps", None)
    loop = StepLoop(engine, frozenset({END}), Batching(**options), traps)  # type: ignore[arg-type]
    loop.start()
    try:
        yield loop
    finally:
        await loop.aclose()


async def settled(loop: StepLoop) -> None:
    """Until the engine's thread has taken every wish."""
    done = asyncio.Event()
    events = asyncio.get_running_loop()
    loop._wish(lambda: events.call_soon_threadsafe(done.set))
    await done.wait()


async def test_tokens_come_one_for_each_question() -> None:
    engine = ToyEngine()
    async with running(engine) as loop:
        reader = Reader(loop, engine, [5, 6, 7])
        await reader.read(20)
        await settled(loop)
        assert engine.sequences[1] == reader.view
        assert reader.generation.drawn == 20


async def test_an_injection_stands_right_behind_what_its_reader_knows() -> None:
    engine = ToyEngine()
    async with running(engine) as loop:
        reader = Reader(loop, engine, [5, 6, 7])
        await reader.read(3)
        reader.inject([9, 9, 9])
        await reader.read(3)
        asking = asyncio.create_task(reader.next())
        for _ in range(20):  # so that the token is drawn, and computed, before the injection
            await asyncio.sleep(0)
            await settled(loop)
        await asking
        reader.inject([8])
        await reader.read(2)
        await settled(loop)
        assert engine.sequences[1] == reader.view


async def test_a_token_drawn_before_an_injection_that_its_reader_made_without_it_is_taken_back() -> None:
    engine = ToyEngine()
    async with running(engine) as loop:
        reader = Reader(loop, engine, [5, 6, 7])
        await reader.read(1)
        loop.ask(reader.generation)
        while len(engine.steps) < 3:  # the token was drawn and computed; it lies unheard
            await asyncio.sleep(0.001)
        reader.inject([8, 8])
        await reader.read(2)
        await settled(loop)
        assert ("truncate", 4) in engine.events
        assert engine.sequences[1] == reader.view


async def test_an_end_that_its_reader_did_not_hear_of_is_taken_back() -> None:
    engine = ToyEngine(lambda tokens: END if len(tokens) == 4 else 1)
    async with running(engine) as loop:
        reader = Reader(loop, engine, [5, 6, 7])
        await reader.read(1)
        loop.ask(reader.generation)
        while not reader.news:
            await asyncio.sleep(0)
        reader.inject([8, 8])
        await reader.read(5)
        assert reader.view == [5, 6, 7, 1, 8, 8, 1, 1, 1, 1, 1]


async def test_a_paused_generation_writes_nothing_until_something_is_injected() -> None:
    engine = ToyEngine()
    async with running(engine) as loop:
        reader = Reader(loop, engine, [5])
        await reader.read(2)
        reader.pause()
        asking = asyncio.create_task(reader.next())
        other = Reader(loop, engine, [6])
        await other.read(10)
        assert not asking.done()
        assert reader.generation.drawn == 2
        reader.inject([7])
        assert await asking is not None


async def test_max_tokens_and_the_end_of_the_answer() -> None:
    engine = ToyEngine(lambda tokens: END if len(tokens) > 12 else 1)
    async with running(engine) as loop:
        short = Reader(loop, engine, [1], max_tokens=3)
        long = Reader(loop, engine, [1])
        await short.read(3)
        while await long.next() is not None:
            pass
        assert long.view == [1] * 13
        assert short.generation.over
        assert long.generation.over


async def test_a_sequence_ends_with_the_context() -> None:
    engine = ToyEngine(context=16)
    async with running(engine) as loop:
        reader = Reader(loop, engine, [1] * 10)
        written = 0
        while await reader.next() is not None:
            written += 1
        assert written == 6
        assert len(reader.view) == 16


async def test_many_share_a_step() -> None:
    engine = ToyEngine()
    async with running(engine) as loop:
        readers = [Reader(loop, engine, [n + 1, 2, 3]) for n in range(8)]
        await asyncio.gather(*(reader.read(50) for reader in readers))
        together = sum(len(step) for step in engine.steps) / len(engine.steps)
        assert together > 2


async def test_a_long_prompt_comes_in_chunks_and_the_others_go_on_writing() -> None:
    engine = ToyEngine(context=2000)
    engine.before = lambda: time.sleep(0.001)  # a step takes its time, as real ones do
    async with running(engine, chunk=200, busy_chunk=20) as loop:
        writer = Reader(loop, engine, [1])
        await writer.read(1)
        long = Reader(loop, engine, list(range(1, 251)) * 4)

        async def write() -> int:
            count = 0
            while not long.generation.drawn:
                await writer.next()
                count += 1
            return count

        writing = asyncio.create_task(write())
        await long.read(1)
        wrote = await writing
        chunks = [len(step[2]) for step in engine.steps if 2 in step]
        assert max(chunks) == 20  # somebody was writing all the time
        assert sum(chunks) >= 1000
        assert wrote >= 4


async def test_a_common_beginning_is_computed_once() -> None:
    engine = ToyEngine()
    system = list(range(1, 101))
    async with running(engine, busy_chunk=16, chunk=16) as loop:
        readers = [Reader(loop, engine, [*system, 200 + n]) for n in range(5)]
        await asyncio.gather(*(reader.read(3) for reader in readers))
        computed = sum(len(tokens) for step in engine.steps for tokens in step.values())
        assert computed < 100 + 5 * 10
        assert sorted(reader.shared > 84 for reader in readers) == [False, True, True, True, True]


async def test_a_conversation_goes_on_where_it_ended() -> None:
    engine = ToyEngine(lambda tokens: END if len(tokens) % 50 == 0 else 1)
    async with running(engine) as loop:
        first = Reader(loop, engine, list(range(1, 41)))
        while await first.next() is not None:
            pass
        first.close()
        second = Reader(loop, engine, [*first.view, 77, 78])
        await second.read(1)
        assert second.shared == len(first.view)
        assert loop.load().shared == len(first.view)


async def test_what_is_cut_to_be_resumed_is_kept() -> None:
    engine = ToyEngine()
    async with running(engine, kept_tokens=100) as loop:
        first = Reader(loop, engine, list(range(1, 60)))
        await first.read(5)
        first.close(keep=True)
        second = Reader(loop, engine, [*first.view, 9, 8, 7])
        await second.read(3)
        assert second.shared >= len(first.view) - 1  # what was drawn last may not have been computed
        second.close(keep=True)
        third = Reader(loop, engine, [*range(1, 102)])
        await third.read(1)
        third.close(keep=True)  # longer than what is kept
        await settled(loop)
        assert len(engine.sequences) == 1


async def test_closed_generations_leave_nothing_behind() -> None:
    engine = ToyEngine(context=2000, limit=20_000)
    async with running(engine, max_running=8, max_waiting=200, chunk=32, busy_chunk=8) as loop:
        readers = [Reader(loop, engine, [n + 1, *range(1, 150)]) for n in range(100)]
        for n, reader in enumerate(readers):
            if n % 3 == 0:
                await reader.read(n % 5)
            if n % 4 == 0:
                reader.pause()
            reader.close()
        await settled(loop)
        assert engine.memory()[:2] == (0, 0)
        assert engine.sequences == {}
        assert loop.load()[:2] == (0, 0)
        survivor = Reader(loop, engine, [1, 2, 3])
        await survivor.read(3)


async def test_the_queue_is_bounded() -> None:
    engine = ToyEngine()
    async with running(engine, max_running=2, max_waiting=1) as loop:
        readers = [Reader(loop, engine, [n]) for n in (1, 2, 3)]
        with pytest.raises(FullError):
            Reader(loop, engine, [4])
        await readers[0].read(1)
        assert readers[2].generation.drawn == 0
        readers[0].close()
        await readers[2].read(1)
        Reader(loop, engine, [5])


class Always:
    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.asked: list[tuple[int, bool]] = []

    def decide(self, tokens: int, wait: float, *, crowded: bool, must: bool) -> Decision:
        self.asked.append((tokens, must))
        if must and self.choice is Choice.KEEP:
            return Decision(Choice.SWAP, "must", {})
        return Decision(self.choice, "always", {"swap": 1.0})

    def worth(self, tokens: int, wait: float) -> float:
        return 1 / wait


@pytest.mark.parametrize("choice", list(Choice))
async def test_at_a_trap_the_cache_may_go_and_come_back(choice: Choice) -> None:
    engine = ToyEngine()
    async with running(engine, traps=Always(choice)) as loop:
        reader = Reader(loop, engine, [1, 2, 3])
        await reader.read(5)
        reader.pause(expected=1.0)
        asking = asyncio.create_task(reader.next())
        while not reader.remarks:
            await asyncio.sleep(0)
        left = engine.memory()
        assert (left.used_tokens, left.swapped_tokens) == {
            Choice.KEEP: (8, 0),
            Choice.SWAP: (0, 8),
            Choice.RECOMPUTE: (0, 0),
        }[choice]
        reader.inject([9])
        await asking
        await reader.read(5)
        await settled(loop)
        assert engine.sequences[1] == reader.view
        chosen = reader.remarks[0]
        assert chosen.kind == "cache"
        assert chosen.data.pop("ms") >= 0
        assert 0 < chosen.data.pop("wait_ms") <= 1000
        assert chosen.data == {"choice": choice, "why": "always", "tokens": 8, "costs_ms": {"swap": 1.0}}
        back = [(remark.kind, remark.data["by"], remark.data["tokens"]) for remark in reader.remarks[1:]]
        assert back == ([] if choice is Choice.KEEP else [("restored", choice, 8 if choice is Choice.SWAP else 9)])


async def test_those_that_wait_make_room_for_those_that_write() -> None:
    engine = ToyEngine(limit=100)
    async with running(engine, traps=Always(Choice.KEEP)) as loop:
        waiting = Reader(loop, engine, list(range(1, 61)))
        await waiting.read(1)
        waiting.pause(expected=9.0)
        asking = asyncio.create_task(waiting.next())
        writer = Reader(loop, engine, list(range(101, 151)))
        await writer.read(40)
        assert engine.memory().swapped_tokens == 61
        writer.close()
        waiting.inject([7])
        await asking
        await waiting.read(20)


async def test_under_pressure_the_cache_that_is_worth_least_goes_first() -> None:
    engine = ToyEngine(limit=100)
    costs = Costs(swap=Curve(each=0.1), recompute=Curve(each=1.0))
    async with running(engine, traps=CostHandler(costs)) as loop:
        soon, late = Reader(loop, engine, list(range(1, 31))), Reader(loop, engine, list(range(101, 131)))
        for reader, expected in ((soon, 0.5), (late, 50.0)):
            await reader.read(1)
            reader.pause(expected)
            while not reader.news:
                await asyncio.sleep(0)
        assert [reader.news[-1].data["choice"] for reader in (soon, late)] == ["keep", "keep"]  # type: ignore[union-attr]
        writer = Reader(loop, engine, list(range(201, 241)))
        await writer.read(20)
        gone = late.news[-1]
        assert isinstance(gone, Remark)
        assert gone.data["choice"] == "swap"
        assert gone.data["why"] == "its memory is needed"
        assert gone.data["costs_ms"] == {"swap": pytest.approx(3.1), "recompute": pytest.approx(31.0)}
        assert engine.memory().swapped_tokens == 31
        assert len(engine.sequences[1]) == 31, "the other one stays"


async def test_a_cache_goes_at_once_where_those_that_queue_would_fill_the_memory() -> None:
    engine = ToyEngine(limit=100)
    costs = Costs(swap=Curve(each=1.0), recompute=Curve(each=0.1))
    async with running(engine, traps=CostHandler(costs), max_running=2) as loop:
        reader, writer = Reader(loop, engine, list(range(1, 31))), Reader(loop, engine, list(range(51, 81)))
        await reader.read(1)
        await writer.read(1)
        queued = Reader(loop, engine, list(range(101, 131)))
        reader.pause(5.0)
        await queued.read(1)
        assert engine.memory().swapped_tokens == 0
        assert ("drop", 1) in engine.events
        remark = reader.news[-1]
        assert isinstance(remark, Remark)
        assert remark.data["why"] in ("the cheapest way for such a wait", "its memory is needed")


@pytest.mark.parametrize("refusing", [False, True])
async def test_what_the_host_has_no_room_for_is_computed_again(refusing: bool) -> None:
    class Host(ToyEngine):
        def swap_out(self, sequence: int) -> None:
            if refusing:
                raise OutOfMemoryError("no pinned memory")
            super().swap_out(sequence)

    engine = Host(limit=100)
    if not refusing:
        engine.host[999] = [1] * 95  # others
    async with running(engine, traps=Always(Choice.SWAP)) as loop:
        reader = Reader(loop, engine, [1, 2, 3])
        await reader.read(5)
        reader.pause(expected=1.0)
        asking = asyncio.create_task(reader.next())
        while not reader.remarks:
            await asyncio.sleep(0)
        reader.inject([9])
        await asking
        await reader.read(5)
        await settled(loop)
        assert engine.sequences[1] == reader.view
        assert [(remark.kind, remark.data["tokens"]) for remark in reader.remarks] == [("cache", 8), ("restored", 9)]
        assert reader.remarks[0].data["choice"] == "recompute"
        assert reader.remarks[0].data["why"].endswith("the host has no room")


async def test_what_is_lost_twice_is_told_of_once_it_is_all_there_again() -> None:
    engine = ToyEngine(limit=100, context=200)
    async with running(engine, chunk=8, busy_chunk=8) as loop:
        older = Reader(loop, engine, list(range(1, 41)))
        younger = Reader(loop, engine, list(range(101, 141)))
        await older.read(1)
        await younger.read(1)
        more = asyncio.create_task(younger.read(40))
        await older.read(50)
        older.close()
        await more
        kinds = [remark.kind for remark in younger.remarks]
        assert kinds[0] == "cache"
        assert kinds[-1] == "restored"
        assert "restored" not in kinds[:-1] or kinds == ["cache", "restored"] * (len(kinds) // 2)
        assert younger.remarks[-1].data["tokens"] >= 41


async def test_where_two_do_not_fit_the_younger_is_computed_again_later() -> None:
    engine = ToyEngine(limit=100, context=200)
    async with running(engine) as loop:
        older = Reader(loop, engine, list(range(1, 41)))
        younger = Reader(loop, engine, list(range(101, 131)))
        await older.read(1)
        await younger.read(1)
        more = asyncio.create_task(younger.read(30))
        await older.read(50)
        older.close()
        await more
        await settled(loop)
        (preempted, back) = younger.remarks
        assert (preempted.kind, preempted.data["choice"]) == ("cache", "recompute")
        assert (back.kind, back.data["by"]) == ("restored", "recompute")
        assert engine.sequences[2] == younger.view


async def test_what_does_not_fit_alone_fails_and_the_others_go_on() -> None:
    engine = ToyEngine(limit=50, context=200)
    async with running(engine) as loop:
        big = Reader(loop, engine, [1] * 80)
        with pytest.raises(RuntimeError, match="fit"):
            await big.next()
        big.close()
        small = Reader(loop, engine, [2] * 20)
        await small.read(10)


async def test_a_step_that_fails_takes_its_own_with_it() -> None:
    engine = ToyEngine()
    async with running(engine) as loop:
        reader = Reader(loop, engine, [1])
        await reader.read(2)

        def fail() -> None:
            raise ZeroDivisionError

        engine.before = fail
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            await reader.read(5)
        reader.close()
        engine.before = lambda: None
        other = Reader(loop, engine, [2])
        await other.read(3)


async def test_a_distribution_that_is_none_ends_that_generation_only() -> None:
    engine = ToyEngine(lambda tokens: -1 if tokens[0] == 66 else 1)
    async with running(engine) as loop:
        good, bad = Reader(loop, engine, [1]), Reader(loop, engine, [66])
        with pytest.raises(RuntimeError, match="no number"):
            await bad.next()
        await good.read(10)


async def test_readers_are_told_when_the_engine_is_closed() -> None:
    engine = ToyEngine()
    async with running(engine) as loop:
        reader = Reader(loop, engine, [1])
        await reader.read(1)
        reader.pause()
        asking = asyncio.create_task(reader.next())
        await loop.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await asking
        with pytest.raises(StoppedError):
            Reader(loop, engine, [1])
    assert engine.closed


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_readers_do_each_token_follows_from_what_its_reader_knows(seed: int) -> None:
    dice = random.Random(seed)
    engine = ToyEngine(context=160, limit=dice.choice((250, 500, 5000)))
    traps = Always(dice.choice(list(Choice)))
    common = list(range(1, 40))

    async def life(loop: StepLoop, dice: random.Random) -> None:
        prompt = common[: dice.randrange(40)] + [dice.randrange(1, 256) for _ in range(dice.randrange(1, 30))]
        reader = Reader(loop, engine, prompt, dice.choice((None, 30)))
        asking: asyncio.Task[int | None] | None = None
        for _ in range(dice.randrange(5, 60)):
            deed = dice.random()
            if len(reader.view) > 130:
                break
            if deed < 0.7:
                if asking is None:
                    asking = asyncio.create_task(reader.next())
                if dice.random() < 0.8:
                    if await asking is None:
                        break
                    asking = None
            elif deed < 0.85:
                reader.inject([dice.randrange(1, 256) for _ in range(dice.randrange(1, 6))])
            elif deed < 0.95:
                reader.pause(dice.choice((None, 0.001, 1.0)))
                await asyncio.sleep(0 if dice.random() < 0.5 else 0.002)
                reader.inject([dice.randrange(1, 256)])
            else:
                await asyncio.sleep(0)
            if asking is not None and asking.done():
                if asking.result() is None:
                    break
                asking = None
        if asking is not None:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        reader.close()

    async with running(engine, traps=traps, max_running=5, chunk=40, busy_chunk=8, kept_tokens=100) as loop:
        await asyncio.gather(*(life(loop, random.Random(seed * 100 + n)) for n in range(20)))
        await settled(loop)
        assert engine.host == {}
        assert engine.memory().used_tokens <= 100
        assert loop.load()[:2] == (0, 0)


async def test_a_prompt_alone_takes_the_memory_of_sequences_that_ended() -> None:
    engine = ToyEngine(limit=64)
    async with running(engine, kept_tokens=64, chunk=16) as loop:
        ended = Reader(loop, engine, [5] * 40, max_tokens=5)
        while await ended.next() is not None:
            pass
        ended.close()
        await settled(loop)
        assert engine.memory().used_tokens == 44
        other = Reader(loop, engine, [6] * 50, max_tokens=5)
        async with asyncio.timeout(10):
            while await other.next() is not None:
                pass
        assert other.heard == 5


@pytest.mark.parametrize("method", ["sample", "forward"])
async def test_a_sequence_that_the_engine_can_not_take_fails_alone(method: str) -> None:
    engine = ToyEngine()
    whole = getattr(engine, method)

    def picky(items: Sequence[Pick | Feed]) -> object:
        if any(item.sequence == 2 and engine.length(2) > 5 for item in items):
            raise ValueError("the second one")
        return whole(items)

    vars(engine)[method] = picky
    async with running(engine) as loop:
        readers = [Reader(loop, engine, [n, n + 1]) for n in (5, 50, 90)]
        first, second, third = (asyncio.create_task(reader.read(30)) for reader in readers)
        with pytest.raises(RuntimeError, match="ValueError"):
            await second
        await asyncio.gather(first, third)
        assert len(readers[1].view) < 8


async def test_whoever_came_just_before_the_engine_broke_down_is_told() -> None:
    engine = ToyEngine()
    late: list[Reader] = []

    def memory() -> Memory:
        late.append(Reader(loop, engine, [7]))  # too late to be seen by the thread that is about to end
        raise SystemError

    async with running(engine) as loop:
        reader = Reader(loop, engine, [5, 6, 7])
        await reader.read(1)
        vars(engine)["memory"] = memory
        other = Reader(loop, engine, [5, 6, 7])
        told = [reader, other]
        for each in told:
            with pytest.raises(RuntimeError, match="SystemError"):
                while True:
                    await each.next()
            told += late
            late.clear()
        assert len(told) >= 3  # the memory may be looked at more than once
