"""A recorded run, run again under another policy or at another speed: the present run machine and driver, the recorded
model and tools (`script.py` says what that means), and a virtual clock.
"""

from __future__ import annotations

import asyncio
from typing import Final

import looptime
import msgspec

from asynclm.adapters.models.protocol import Request
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.machine import POLICIES, Limits, Run
from asynclm.cml.machine.actions import OpenStream
from asynclm.cml.machine.costs import Costs, Speed
from asynclm.cml.timeline import Timeline
from asynclm.proxy.background import Background
from asynclm.proxy.driver import Driver
from asynclm.proxy.executor import Executor
from asynclm.proxy.recording.model import RecordedModel, RecordedTools
from asynclm.proxy.recording.recorded import Recording, RecordingError
from asynclm.proxy.recording.script import Script, State, script
from asynclm.proxy.registry import new_timeline

_LONG_S: Final = 86_400.0
_LONG_BYTES: Final = 2**40
_OFF: Final = "off"


class Replayed(msgspec.Struct):
    """What came of it. `notes` say, in words, where the model would have been shown what it was not when recorded."""

    timeline: Timeline
    text: str
    notes: list[str]


class _Sink:
    def __init__(self) -> None:
        self.parts: list[str] = []

    async def open(self) -> None:
        pass

    def text(self, text: str) -> None:
        self.parts.append(text)

    def reasoning(self, text: str, field: str) -> None:
        pass

    def tool_call(self, id: str, name: str, arguments: str) -> None:
        pass

    async def flush(self) -> None:
        pass


def run_again(
    recording: Recording,
    policy: str,
    *,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    inject: bool | None = None,
    limits: Limits | None = None,
) -> Replayed:
    """Run a recording under a policy, in a loop of its own. What is not given is as it was recorded (the time to the
    first token: the median of those recorded). Raises `RecordingError` for one that doesn't hang together.
    """
    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0.0, noop_cycles=0)) as runner:
        return runner.run(_run(recording, policy, ttft_s, tpot_s, inject, limits))


async def _run(
    recording: Recording,
    policy: str,
    ttft_s: float | None,
    tpot_s: float | None,
    inject: bool | None,
    limits: Limits | None,
) -> Replayed:
    try:
        plot = script(recording)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"the recording {recording.id} does not say all of its run: {error!r}") from None
    live = plot.inject if inject is None else inject
    model = RecordedModel(plot, inject=live, ttft_s=ttft_s, tpot_s=tpot_s)
    tools = RecordedTools(plot)
    timeline = new_timeline(recording.id, recording.timeline.model, policy)
    executor = Executor(
        Toolbox(tools.tools()),
        max_concurrency=1_000_000,
        default_timeout_s=_LONG_S,
        queue_timeout_s=_LONG_S,
        max_result_bytes=_LONG_BYTES,
    )
    background = Background()
    sink = _Sink()
    question = recording.question.request
    stop = question.get("stop", [])
    run = Run(
        None if policy == _OFF else tools,
        POLICIES["auto" if policy == _OFF else policy],
        inject=live,
        limits=limits,
        stop=tuple(stop) if isinstance(stop, list) else (),
        max_tokens=question.get("max_tokens"),
        prompt_chars=len(msgspec.json.encode(question)),
        costs=Costs(Speed(model.ttft_s, plot.tpot_s if tpot_s is None else tpot_s)),
    )

    def prepare(action: OpenStream) -> Request:
        return Request(model=timeline.model, messages=[], transcript=action.transcript)

    driver = Driver(run, model, prepare, executor, timeline, sink, background, max_s=_LONG_S)
    loop = asyncio.get_running_loop()
    timers = [loop.call_later(said.t, driver.interrupt, said.source, said.text, said.scheduling) for said in plot.said]
    try:
        await driver.drive()
    finally:
        for timer in timers:
            timer.cancel()
        await background.aclose()
        await executor.aclose()
    text = "".join(sink.parts)
    return Replayed(timeline, text, _notes(plot, model, text, recording))


def _notes(plot: Script, model: RecordedModel, text: str, recording: Recording) -> list[str]:
    notes = [_strange(state, plot.states) for state in dict.fromkeys(model.told) if state not in plot.states]
    if model.forced:
        notes.append(
            f"{model.forced} times the model went on with what it wrote next, though it had been told less than when "
            "it wrote that"
        )
    if "".join(text.split()) != "".join(recording.said.split()):
        notes.append("the answer's text is not the recorded one")
    return notes


def _strange(state: State, states: set[State]) -> str:
    """A state that was never recorded, beside the least of those that hold all of it."""
    knew = _listed(state)
    wider = [each for each in states if each > state]
    if not wider:
        return f"a stream knew {knew}: never all of it when recorded; it goes on with what was written for a part of it"
    missing = min(wider, key=len) - state
    return (
        f"a stream knew {knew}, but not {_listed(missing)}: the recorded model was never shown that, and is taken to "
        "write what it wrote for as much as it knew"
    )


def _listed(state: State) -> str:
    return ", ".join(sorted(state)) or "nothing"
