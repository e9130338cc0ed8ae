"""The driver of a run against every interleaving: it is cancelled at each of its awaits, and events come in any order.

Model and client are scripted here and yield to the event loop a number of times in place of waiting, so that a test
can stop the run at every single step; machine, executor, tools, timeline and answer are the real ones.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Sequence
from typing import Any

import pytest

from asynclm.adapters.models.protocol import (
    Abilities,
    Ended,
    ReasoningDelta,
    Request,
    StreamEvent,
    TextDelta,
)
from asynclm.adapters.tools.python import PythonTool
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.events import Interrupt
from asynclm.cml.machine import POLICIES, Run, RunError
from asynclm.cml.parser import Parser
from asynclm.cml.timeline import Timeline
from asynclm.cml.usage import Usage
from asynclm.proxy.background import Background
from asynclm.proxy.driver import Driver
from asynclm.proxy.executor import Executor
from asynclm.proxy.registry import new_timeline

CALLS = "".join(f"[CALL] {name} [HEAD] look(key='{name}') [END]\n" for name in "abc")
TRAP = "[TRAP][END]"

Batches = list[tuple[int, Sequence[StreamEvent]]]  # each after its number of ticks


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class ScriptedStream:
    """Yields batches, each after its number of ticks. An `InjectableStream` whose `waits` are for injections."""

    def __init__(self, model: ScriptedModel, batches: Batches) -> None:
        self._model = model
        self._batches = batches
        self._paused = False
        self._woken = asyncio.Event()
        self.closed = 0
        self.injected: list[str] = []

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        while True:
            if self._paused:
                self._woken.clear()
                await self._woken.wait()
                continue
            if not self._batches:
                raise StopAsyncIteration
            await ticks(self._batches[0][0])
            if self._paused:
                continue
            _, batch = self._batches.pop(0)
            self._model.usage = sum((event for event in batch if isinstance(event, Usage)), self._model.usage)
            if batch:
                return batch

    def pause(self, expected: float | None = None) -> None:
        self._paused = True

    def inject(self, text: str) -> None:
        self.injected.append(text)
        self._model.told += told(text)
        rest = [event.text for _, batch in self._batches for event in batch if isinstance(event, TextDelta)]
        if "[CALL]" not in "".join(rest):
            self._batches = self._model.writes()
        self._paused = False
        self._woken.set()

    async def aclose(self) -> None:
        self.closed += 1


class ScriptedModel:
    """Calls a, b and c; waits until it was told all three; then answers with what it was told."""

    def __init__(self, seed: int = 0, *, inject: bool = False) -> None:
        self.random = random.Random(seed)
        self.inject = inject
        self.streams: list[ScriptedStream] = []
        self.requests: list[Request] = []
        self.told: list[tuple[str, Any]] = []
        self.usage = Usage()

    def abilities(self, model: str) -> Abilities:
        return Abilities(inject=self.inject)

    async def open(self, request: Request) -> ScriptedStream:
        self.requests.append(request)
        await ticks(self.random.randint(0, 6))
        self.told = [
            each for segment in request.transcript if segment.author == "runtime" for each in told(segment.text)
        ]
        self.written = "".join(segment.text for segment in request.transcript if segment.author == "model")
        stream = ScriptedStream(self, self.writes(first=not request.transcript))
        self.streams.append(stream)
        return stream

    async def aclose(self) -> None:
        pass

    def writes(self, *, first: bool = False) -> Batches:
        results = {name: value for name, value in self.told if name in ("a", "b", "c")}
        done = len(results) == 3
        if done:
            text = f"Answer: {results['a']} {results['b']} {results['c']}."
        elif first:
            text = f"I look.\n{CALLS}{TRAP}"
        else:  # what a cut stream had not yet written is written again
            written = CALLS if self.inject else self.written
            missing = [line for line in CALLS.splitlines(True) if line.strip() not in written]
            text = f"{''.join(missing)}{TRAP}"
        return self.paced(text, ends=done or not self.inject)

    def paced(self, text: str, *, ends: bool) -> Batches:
        chance = self.random
        batches: Batches = []
        if chance.random() < 0.3:
            batches.append((chance.randint(0, 3), [ReasoningDelta("Hm.", "reasoning")]))
        while text:
            pieces: list[StreamEvent] = []
            for _ in range(1 if self.inject else chance.randint(1, 3)):
                size = chance.randint(1, 12)
                if text:
                    pieces.append(TextDelta(text[:size]))
                text = text[size:]
            batches.append((chance.randint(0, 5), pieces))
        if ends:
            usage = Usage(chance.randint(1, 99), chance.randint(1, 99))
            end: list[StreamEvent] = [Ended("stop"), usage]
            batches += [(chance.randint(0, 3), end)] if chance.random() < 0.5 else [(1, end[:1]), (2, end[1:])]
        return batches


def told(text: str) -> list[tuple[str, Any]]:
    events = Parser(interrupts=True).feed(text)
    return [(event.id, json.loads(event.value)) for event in events if isinstance(event, Interrupt)]


class Client:
    """A client that takes its time. After `leave` it takes nothing more."""

    def __init__(self, seed: int = 0, *, slow: int = 3) -> None:
        self.random = random.Random(seed)
        self.slow = slow
        self.got = ""
        self.reasoning_got = ""
        self.opened = 0
        self.flushing = 0

    async def open(self) -> None:
        self.opened += 1
        await ticks(self.random.randint(0, self.slow))

    def text(self, text: str) -> None:
        self.got += text

    def reasoning(self, text: str, field: str) -> None:
        self.reasoning_got += text

    async def flush(self) -> None:
        await ticks(self.random.randint(0, self.slow))


class Scene:
    """One run with everything that belongs to it."""

    def __init__(self, policy: str, seed: int = 0, *, inject: bool = False, model: ScriptedModel | None = None) -> None:
        chance = random.Random(seed)
        self.began: list[str] = []
        self.ended: list[str] = []

        async def look(key: str) -> str:
            """Look a thing up."""
            self.began.append(key)
            try:
                await ticks(chance.randint(0, 40))
            finally:
                self.ended.append(key)
            return f"value of {key}"

        toolbox = Toolbox([PythonTool(look)])
        self.model = model or ScriptedModel(seed, inject=inject)
        self.client = Client(seed)
        self.background = Background()
        self.executor = Executor(toolbox)
        self.timeline: Timeline = new_timeline("run", "m", policy)
        self.run = Run(toolbox, POLICIES[policy], inject=self.model.inject)
        self.driver = Driver(
            self.run,
            self.model,
            lambda action: Request(model="m", messages=[], transcript=action.transcript),
            self.executor,
            self.timeline,
            self.client,
            self.background,
            max_s=60,
        )

    def noted(self, kind: str) -> list[dict[str, Any]]:
        return [entry.data for entry in self.timeline.entries if entry.kind == kind]

    async def close(self) -> None:
        await self.background.aclose()
        await self.executor.aclose()

    def check_nothing_left(self) -> None:
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []
        assert sorted(self.began) == sorted(self.ended)
        assert [stream.closed for stream in self.model.streams] == [1] * len(self.model.streams)


@pytest.fixture
def no_faults(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


POLICY = pytest.mark.parametrize("policy", ["sync", "parallel", "immediate", "coalesce"])
INJECT = pytest.mark.parametrize("inject", [False, True], ids=["resume", "inject"])


@POLICY
@INJECT
async def test_any_pace_gives_the_same_answer(policy: str, inject: bool, no_faults: None) -> None:
    for seed in range(30):
        scene = Scene(policy, seed, inject=inject)
        finish = await scene.driver.drive()
        await scene.close()
        assert (finish.reason, finish.error) == ("stop", None), seed
        assert scene.client.got.startswith("I look.")
        assert scene.client.got.count("Answer:") == 1
        assert scene.client.got.endswith("Answer: value of a value of b value of c.")
        assert sorted(scene.began) == ["a", "b", "c"]
        assert [name for name, _ in sorted(scene.model.told)] == ["a", "b", "c"]
        if not finish.usage.estimated:
            assert finish.usage == scene.model.usage
        shown = "".join(entry["text"] for entry in scene.noted("text"))
        assert shown == scene.client.got
        scene.check_nothing_left()


@POLICY
@INJECT
async def test_cancelled_at_any_step(policy: str, inject: bool, no_faults: None) -> None:
    """The client leaves at every step of a run: nothing is left running, and the machine has been told."""
    for step in range(1, 1000, 2):
        scene = Scene(policy, 7, inject=inject)
        driving = asyncio.create_task(scene.driver.drive())
        await ticks(step)
        over = scene.run.finished
        driving.cancel()
        await asyncio.wait([driving])
        assert driving.cancelled() or over
        assert scene.run.finished
        assert len(scene.noted("finished")) == 1
        await scene.close()
        scene.check_nothing_left()
        if over:
            return
    pytest.fail("the run does not end")


@POLICY
@INJECT
async def test_abandoned_at_any_step(policy: str, inject: bool, no_faults: None) -> None:
    for step in range(1, 1000, 5):
        scene = Scene(policy, 11, inject=inject)
        driving = asyncio.create_task(scene.driver.drive())
        await ticks(step)
        over = scene.run.finished
        scene.driver.abandon(RunError("enough", 503))
        finish = await driving
        assert over == (finish.error is None)
        await scene.close()
        scene.check_nothing_left()
        if over:
            return


@POLICY
async def test_an_outside_interrupt_at_any_step(policy: str, no_faults: None) -> None:
    """Somebody speaks at every step of a run: the model is told so once, and answers as before."""
    for step in range(1, 1000, 3):
        scene = Scene(policy, 3)
        driving = asyncio.create_task(scene.driver.drive())
        await ticks(step)
        over = scene.run.finished
        scene.driver.interrupt("user", "hurry")
        finish = await driving
        assert finish.error is None
        await scene.close()
        assert scene.client.got.count("Answer:") == 1 or scene.client.got.count("Answer") == 2
        assert sorted(scene.began) == ["a", "b", "c"]
        scene.check_nothing_left()
        if over:
            return
        assert [value for name, value in scene.model.told if name == "user"] == ["hurry"]


class Timed(ScriptedModel):
    """Calls `a` and traps, with these pauses (s) before it stops and before its usage; then it answers."""

    def __init__(self, before_stop: float, before_usage: float) -> None:
        super().__init__()
        self.before_stop = before_stop
        self.before_usage = before_usage

    async def open(self, request: Request) -> ScriptedStream:
        self.requests.append(request)
        text = "Done." if request.transcript else "[CALL] a [HEAD] look(key='a') [END]\n[TRAP][END]"
        stream = TimedStream(self, [(0, [TextDelta(text)]), (0, [Ended("stop")]), (0, [Usage(7, 5)])])
        self.streams.append(stream)
        return stream


class TimedStream(ScriptedStream):
    async def __anext__(self) -> Sequence[StreamEvent]:
        model = self._model
        assert isinstance(model, Timed)
        await asyncio.sleep({3: 0, 2: model.before_stop, 1: model.before_usage, 0: 0}[len(self._batches)])
        return await super().__anext__()


@pytest.mark.looptime(start=0)
async def test_a_stream_that_does_not_stop_at_its_trap_is_dropped(no_faults: None) -> None:
    scene = Scene("coalesce", model=Timed(before_stop=3600, before_usage=0))
    driving = asyncio.create_task(scene.driver.drive())
    await asyncio.sleep(1)
    assert len(scene.model.streams) == 2  # nobody waited for it
    assert scene.model.streams[0].closed == 1
    scene.driver.abandon(RunError("enough", 503))
    await driving
    await scene.close()
    scene.check_nothing_left()


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize(("late", "estimated"), [(0.4, False), (3600.0, True)])
async def test_usage_is_waited_for_a_moment(late: float, estimated: bool, no_faults: None) -> None:
    scene = Scene("coalesce", model=Timed(before_stop=0, before_usage=late))
    finish = await scene.driver.drive()
    assert asyncio.get_running_loop().time() < 1.1
    assert (scene.client.got, finish.usage.estimated) == ("Done.", estimated)
    if not estimated:
        assert finish.usage == Usage(14, 10)
    await scene.close()
    scene.check_nothing_left()


@pytest.mark.looptime(start=0)
async def test_a_run_takes_no_longer_than_it_may(no_faults: None) -> None:
    scene = Scene("coalesce", model=Timed(before_stop=0, before_usage=0))

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    scene.client.flush = never  # type: ignore[method-assign]  # a client that stops reading
    finish = await scene.driver.drive()
    assert asyncio.get_running_loop().time() == 60
    assert finish.error is not None
    assert (finish.error.status, finish.error.code) == (504, "run_timeout")
    await scene.close()
    scene.check_nothing_left()
