import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from asynclm.adapters.models.protocol import Ended, InjectableStream, Model, ModelError, Request, StreamEvent, TextDelta
from asynclm.adapters.models.simulated.model import SimulatedModel
from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.cml.render import render_interrupt
from asynclm.cml.transcript import Segment
from asynclm.cml.usage import Usage

pytestmark = pytest.mark.looptime  # the loop's clock is virtual: times below are exact and cost nothing

TASK = Task((Node("a", "f()", (), 1), Node("b", "g()", ("a",), 1)))
USER = {"role": "user", "content": encode_task(TASK)}


def request(*transcript: Segment, **options: Any) -> Request:
    return Request(model="any", messages=[USER], transcript=transcript, **options)


def text_of(events: Sequence[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_tokens_come_at_their_times_without_drift() -> None:
    model: Model = SimulatedModel(ttft_ms=150, tpot_ms=7)
    start = asyncio.get_running_loop().time()
    stream = await model.open(request())
    times: list[float] = []
    events: list[StreamEvent] = []
    async for batch in stream:
        times.append(asyncio.get_running_loop().time() - start)
        events += batch
        await asyncio.sleep(0.004)  # a reader that takes its time, though less than the model
    assert times == pytest.approx([0.150 + 0.007 * n for n in range(len(times))])
    assert text_of(events) == "[CALL] a [HEAD] f() [END]\n[TRAP][END]"
    prompt_tokens = -(-len(USER["content"]) // 4)
    assert events[-2:] == [Ended("stop"), Usage(prompt_tokens, len(times))]


async def test_a_slow_reader_finds_what_was_written_meanwhile() -> None:
    stream = await SimulatedModel(ttft_ms=100, tpot_ms=10).open(request())
    await asyncio.sleep(1)
    start = asyncio.get_running_loop().time()
    assert text_of([event async for batch in stream for event in batch]).endswith("[TRAP][END]")
    assert asyncio.get_running_loop().time() == start


async def test_a_resume_is_a_new_stream_on_the_transcript() -> None:
    model = SimulatedModel()
    assert model.abilities("any").interleave
    assert not model.abilities("any").inject
    transcript = [
        Segment("model", "[CALL] a [HEAD] f() [END]\n[TRAP][END]"),
        Segment("runtime", render_interrupt("a", "1")),
        Segment("model", "[CALL] b [HEAD] g() [END]\n[TRAP][END]"),
        Segment("runtime", render_interrupt("b", '{"x": 2}')),
    ]
    stream = await model.open(request(*transcript))
    assert text_of([event async for batch in stream for event in batch]) == 'Done.\na = 1\nb = {"x": 2}'


async def test_bounds_and_stop_sequences() -> None:
    stream = await SimulatedModel().open(request(max_tokens=2))
    events = [event async for batch in stream for event in batch]
    assert text_of(events) == "[CALL] a"
    assert Ended("length") in events
    stream = await SimulatedModel().open(request(stop=("][END]",)))
    events = [event async for batch in stream for event in batch]
    assert text_of(events) == "[CALL] a [HEAD] f() [END]\n[TRAP"
    assert Ended("stop") in events


async def test_a_bad_task_is_refused() -> None:
    bad = Request(model="any", messages=[{"role": "user", "content": "<task>{</task>"}])
    with pytest.raises(ModelError, match="can't be read") as caught:
        await SimulatedModel().open(bad)
    assert (caught.value.status, caught.value.type) == (400, "invalid_request_error")


async def read_until_trap(stream: InjectableStream) -> str:
    text = ""
    async for batch in stream:
        text += text_of(batch)
        if text.endswith("[TRAP][END]"):
            break
    return text


async def test_live_it_waits_at_a_trap_until_injected() -> None:
    model = SimulatedModel(ttft_ms=150, tpot_ms=5, inject=True)
    assert model.abilities("any").inject
    stream: InjectableStream = await model.open(request())
    assert await read_until_trap(stream) == "[CALL] a [HEAD] f() [END]\n[TRAP][END]"
    loop = asyncio.get_running_loop()
    injected = loop.time() + 3
    loop.call_at(injected, stream.inject, render_interrupt("a", "1"))
    assert text_of(await anext(aiter(stream))).startswith("\n")
    assert loop.time() == pytest.approx(injected + 0.005)
    await read_until_trap(stream)
    stream.inject(render_interrupt("b", "2"))
    events = [event async for batch in stream for event in batch]
    assert text_of(events) == "\nDone.\na = 1\nb = 2"
    assert Ended("stop") in events
    interrupts = len(render_interrupt("a", "1"))
    usage = events[-1]
    assert isinstance(usage, Usage)
    assert usage.prompt_tokens == -(-len(USER["content"]) // 4) + 2 * -(-interrupts // 4)


async def test_live_it_honours_a_pause_at_once() -> None:
    stream = await SimulatedModel(inject=True).open(request())
    text = ""
    while not text.endswith("f() [END]"):
        text += text_of(await anext(stream))
    stream.pause()
    loop = asyncio.get_running_loop()
    later = loop.time() + 2
    loop.call_at(later, stream.inject, render_interrupt("a", "1"))
    text = await read_until_trap(stream)
    assert loop.time() > later
    assert text == "\n[CALL] b [HEAD] g() [END]\n[TRAP][END]"


async def test_live_it_does_not_work_ahead_of_a_slow_reader() -> None:
    stream = await SimulatedModel(ttft_ms=100, tpot_ms=10, inject=True).open(request())
    await anext(stream)
    await asyncio.sleep(1)
    loop = asyncio.get_running_loop()
    start = loop.time()
    for _ in range(4):
        await anext(stream)
    assert loop.time() == pytest.approx(start + 0.030)


@pytest.mark.parametrize("inject", [True, False])
@pytest.mark.parametrize("after_tokens", [0, 3, 8])
async def test_closing_ends_a_reader_wherever_it_waits(inject: bool, after_tokens: int) -> None:
    stream = await SimulatedModel(inject=inject).open(request())
    for _ in range(after_tokens):
        await anext(stream)
    reader = asyncio.create_task(_drain(stream))
    await asyncio.sleep(0.001)
    await stream.aclose()
    await stream.aclose()
    assert len(await reader) <= 1


async def _drain(stream: Any) -> list[Any]:
    return [batch async for batch in stream]


async def test_cancelling_the_reader_at_a_trap_goes_through() -> None:
    stream = await SimulatedModel(inject=True).open(request())
    await read_until_trap(stream)
    reader = asyncio.create_task(_drain(stream))
    await asyncio.sleep(1)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def test_only_a_live_stream_takes_injection() -> None:
    stream = await SimulatedModel().open(request())
    with pytest.raises(RuntimeError, match="inject=True"):
        stream.inject(render_interrupt("a", json.dumps(1)))
