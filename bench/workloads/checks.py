"""What is wrong with a run: the checks behind the column "right"."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from asynclm.cml.events import Interrupt
from asynclm.cml.machine.calls import USER
from asynclm.cml.parser import Parser
from asynclm.cml.timeline import Timeline

from .case import ANSWER, as_json
from .workshop import Workshop


class Ran(msgspec.Struct, frozen=True):
    """A request and how it ended, as its client saw it; and the run's timeline.

    `began_s` is when it was sent, on a clock that the requests of a case share; `total_s` how long it took to its last
    byte. `said` are the outside interrupts that it took, a further task each.
    """

    began_s: float
    total_s: float
    answer: str
    finish_reason: str | None
    timeline: Timeline
    said: tuple[str, ...] = ()


def problems(workshop: Workshop, runs: Sequence[Ran]) -> list[str]:
    """What is wrong, in words; empty where all is right. `runs` are those that together did the workshop's case.

    Every call of the ground truth was executed exactly once, with its arguments and after the one before it in its
    chain, and nothing else was; each returned what it returns in a world of its own, and the model was told exactly
    that, exactly once; the world ended as it should; each answer is complete, and the very text that was wanted.
    """
    return [*_executed(workshop), *_told(workshop, runs), *_answered(runs)]


def _executed(workshop: Workshop) -> Iterator[str]:
    truth, values = workshop.case.truth
    steps: collections.Counter[int] = collections.Counter()
    for done in workshop.done:
        call = done.expected
        if call is None:
            yield f"{_shown(done.tool, done.arguments)} was executed, which nobody asked for or once too often"
            continue
        if call.step != steps[call.chain]:
            yield f"{call.id} was executed as number {steps[call.chain] + 1} of its chain"
        steps[call.chain] += 1
        if done.value != values[call.id]:
            yield f"{call.id} returned {done.value}, not {values[call.id]}"
    executed = {done.expected.id for done in workshop.done if done.expected is not None}
    for call in workshop.case.calls:
        if call.id not in executed:
            yield f"{call.id} was not executed: {_shown(call.tool, call.arguments)}"
    difference = workshop.world.difference(truth)
    if difference is not None:
        yield f"the end state is wrong: {difference}"


def _told(workshop: Workshop, runs: Sequence[Ran]) -> Iterator[str]:
    """What the model was told, over all runs."""
    _, values = workshop.case.truth
    told: dict[str, list[Any]] = collections.defaultdict(list)
    for run in runs:
        # A branch that was given up before its first token has told nobody anything.
        given_up = {entry.stream for entry in run.timeline.entries if entry.kind == "merged"}
        for entry in run.timeline.entries:
            if entry.kind == "interrupt" and entry.stream not in given_up:
                for interrupt in _interrupts(entry.data["text"]):
                    told[interrupt.id].append(msgspec.json.decode(interrupt.value))
    for id, value in values.items():
        got = told.pop(id, [])
        if got != [value]:
            yield f"of {id} the model was told {got}, not once {value}"
    said = [text for run in runs for text in run.said]
    if (heard := told.pop(USER, [])) != said:
        yield f"{len(said)} further tasks were sent, and the model was told {len(heard)} of them"
    for id, got in told.items():
        yield f"the model was told of {id}, which is no call: {got}"


def _answered(runs: Sequence[Ran]) -> Iterator[str]:
    for run in runs:
        lines = [line.strip() for line in run.answer.splitlines() if line.strip()]
        times = 1 + len(run.said)
        if lines != [ANSWER] * times:
            yield f"the answer is {run.answer!r}, not {ANSWER!r}" + (f" {times} times" if times > 1 else "")
        if run.finish_reason != "stop":
            yield f"finish_reason is {run.finish_reason!r}, not 'stop'"


def _interrupts(text: str) -> list[Interrupt]:
    parser = Parser(interrupts=True)
    return [event for event in [*parser.feed(text), *parser.finish()] if isinstance(event, Interrupt)]


def _shown(tool: str, arguments: dict[str, Any]) -> str:
    return f"{tool}({', '.join(f'{name}={as_json(value)!r}' for name, value in arguments.items())})"
