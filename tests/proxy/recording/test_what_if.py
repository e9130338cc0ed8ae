"""Recorded runs run again, on a virtual clock: the recorded model is the simulated one, so what it would have done is
known.
"""

import asyncio
from typing import Any

import looptime
import msgspec
import pytest

from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.adapters.tools.python import PythonTool
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.machine import POLICIES
from asynclm.cml.timeline import Timeline
from asynclm.proxy.background import Background
from asynclm.proxy.chat import parse
from asynclm.proxy.config import Config, Model, Upstream
from asynclm.proxy.executor import Executor
from asynclm.proxy.lanes import length
from asynclm.proxy.recording.canonical import asked
from asynclm.proxy.recording.recorded import Recording, RecordingError, read
from asynclm.proxy.recording.redaction import Redactor
from asynclm.proxy.recording.tape import Tape
from asynclm.proxy.recording.what_if import run_again
from asynclm.proxy.registry import Registry, new_timeline
from asynclm.proxy.runs import Runs
from asynclm.proxy.upstreams import Upstreams

TTFT_MS, TPOT_MS = 150.0, 5.0
NEAR_S = 0.04  # a trap is a few pieces, which a recording of another policy does not have

CHAINS = Task(
    (
        Node("a", 'slow(name="a", ms=800)'),
        Node("b", 'slow(name="b", ms=300)'),
        Node("c", 'slow("c", 400)', after=("a",)),
        Node("d", 'slow(name="d", ms=500)', after=("b",)),
    ),
    say="Let me look.\n",
    answer="Done:",
)
FAILING = Task(
    (
        Node("a", 'slow(name="a", ms=-1)'),
        Node("b", "slow(who=1)"),
        Node("c", "nothing()"),
        Node("d", 'slow(name="d", ms=10)', after=("a", "b", "c")),
    ),
    answer="So:",
)


async def slow(name: str, ms: int) -> str:
    """Wait for so long, then say the name."""
    if ms < 0:
        raise ValueError("in the past")
    await asyncio.sleep(ms / 1000)
    return name


class Sink:
    def __init__(self) -> None:
        self.parts: list[str] = []

    async def open(self) -> None: ...

    def text(self, text: str) -> None:
        self.parts.append(text)

    def reasoning(self, text: str, field: str) -> None: ...

    def tool_call(self, id: str, name: str, arguments: str) -> None: ...

    async def flush(self) -> None: ...


def record(
    policy: str, task: Task = CHAINS, *, inject: bool = False, said: dict[float, str] | None = None
) -> Recording:
    """Run a task as the proxy would, in no time, and read its recording."""

    async def run() -> bytes:
        upstream = Upstream(kind="simulated", ttft_ms=TTFT_MS, tpot_ms=TPOT_MS, inject=inject)
        config = Config(upstreams={"main": upstream}, models={"*": Model(upstream="main")})
        toolbox, upstreams, background = Toolbox([PythonTool(slow)]), Upstreams(config, {}), Background()
        executor = Executor(toolbox)
        runs = Runs(config, toolbox, upstreams, executor, Registry(1), background)
        chat = parse(msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": encode_task(task)}]}))
        timeline = new_timeline("run_x", "m", policy)
        loop = asyncio.get_running_loop()
        tape = Tape(timeline, asked(chat, toolbox.specs()), stream=True, redactor=Redactor(), clock=loop.time)
        driver = runs.driver(chat, upstreams.route("m"), timeline, Sink(), tape=tape)
        for after, text in (said or {}).items():
            loop.call_later(after, driver.interrupt, "user", text)
        driving = asyncio.create_task(driver.drive())
        data = b""
        while not driving.done():
            await asyncio.sleep(0.1)
            data += tape.take()
        finish = driving.result()
        tape.finish(finish.reason, finish.usage, {})
        await background.aclose()
        await executor.aclose()
        return data + tape.take()

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0.0, noop_cycles=0)) as runner:
        return read(runner.run(run()))


def facts(timeline: Timeline) -> tuple[int, list[Any], list[Any]]:
    """Streams, calls and interrupts of a run."""
    calls = [(e.data["id"], e.data["tool"], e.data["arguments"]) for e in timeline.entries if e.kind == "call"]
    told = [tuple(entry.data["ids"]) for entry in timeline.entries if entry.kind == "interrupt"]
    return sum(entry.kind == "opened" for entry in timeline.entries), calls, told


@pytest.mark.parametrize("inject", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_under_its_own_policy_a_run_goes_as_it_did(policy: str, inject: bool) -> None:
    recording = record(policy, inject=inject)
    again = run_again(recording, policy)
    assert again.notes == []
    streams, calls, told = facts(recording.timeline)
    assert facts(again.timeline)[0] == streams
    assert sorted(map(str, facts(again.timeline)[1])) == [
        text.replace("'slow', {", "'slow', {") for text in sorted(map(str, calls))
    ]
    assert facts(again.timeline)[2] == told
    assert length(again.timeline) == pytest.approx(length(recording.timeline), abs=NEAR_S)


@pytest.mark.parametrize("policy", POLICIES)
def test_from_what_fork_recorded_every_policy_is_foretold(policy: str) -> None:
    """Under `fork` the model is shown each result by itself, so what it needs for each call is known."""
    recording = record("fork")
    again = run_again(recording, policy)
    truth = record(policy).timeline
    assert length(again.timeline) == pytest.approx(length(truth), abs=2 * NEAR_S)
    assert facts(again.timeline)[0] == facts(truth)[0]


def test_what_the_model_was_never_shown_is_said() -> None:
    again = run_again(record("parallel"), "fork")
    assert any(
        note.startswith("a stream knew b, but not a: the recorded model was never shown that") for note in again.notes
    )
    assert "".join(again.text.split()) == 'Letmelook.Done:a="a"b="b"c="c"d="d"'


def test_from_what_sync_recorded_nothing_can_be_gained() -> None:
    """Each call had seen the result before it, so for all that is known it needed it."""
    recording = record("sync")
    again = run_again(recording, "fork")
    assert again.notes == []
    assert length(again.timeline) == pytest.approx(length(recording.timeline), abs=NEAR_S)


def test_another_speed() -> None:
    recording = record("sync")
    streams = facts(recording.timeline)[0]
    slower = run_again(recording, "sync", ttft_s=1.15)
    assert length(slower.timeline) - length(recording.timeline) == pytest.approx(streams * 1.0, abs=NEAR_S)
    pieces = sum(map(len, recording.wrote.values()))
    twice = run_again(recording, "sync", tpot_s=2 * TPOT_MS / 1000)
    assert length(twice.timeline) - length(recording.timeline) == pytest.approx(pieces * TPOT_MS / 1000, abs=2 * NEAR_S)


def test_a_live_sequence_where_there_was_none() -> None:
    recording = record("immediate")
    live = run_again(recording, "immediate", inject=True)
    assert facts(live.timeline)[0] == 1
    assert length(live.timeline) < length(recording.timeline)


@pytest.mark.parametrize("policy", ["sync", "parallel", "fork"])
def test_calls_that_were_rejected_or_failed_are_so_again(policy: str) -> None:
    recording = record("parallel", FAILING)
    again = run_again(recording, policy)
    was = [e.data["error"] for e in recording.timeline.entries if e.kind == "rejected"]
    assert was == ["invalid_arguments", "unknown_tool"]
    assert [e.data["error"] for e in again.timeline.entries if e.kind == "rejected"] == was
    results = {e.call: e.data["ok"] for e in again.timeline.entries if e.kind == "result"}
    assert sorted(results.values()) == [False, True]
    assert "in the past" in again.text


def test_outside_interrupts_come_when_they_came() -> None:
    recording = record("fork", said={0.5: "Hurry up."})
    again = run_again(recording, "parallel")
    (entry,) = [entry for entry in again.timeline.entries if entry.kind == "outside"]
    assert (entry.t, entry.data["text"]) == (0.5, "Hurry up.")


def test_a_recording_that_does_not_hang_together() -> None:
    recording = record("parallel")
    for entry in recording.timeline.entries:
        if entry.kind == "call":
            del entry.data["tool"]
    with pytest.raises(RecordingError, match="the recording run_x does not say all of its run"):
        run_again(recording, "fork")


def test_a_run_without_tools() -> None:
    recording = record("off", Task(answer="Hello."))
    again = run_again(recording, "off", ttft_s=1.0)
    assert again.text == "Hello."
    assert again.notes == []
