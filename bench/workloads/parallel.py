"""The parallel cases: BFCL's questions that take several independent calls.

Their functions have no implementation, so a tool answers with a small value made of its arguments.
"""

from __future__ import annotations

import functools
import random
from typing import Any, Final

import msgspec

from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.body import parse_body
from asynclm.cml.render import render_body
from asynclm.cml.tools import CallError, ToolSpec
from asynclm.proxy.demo import bfcl

from .case import Blueprint, Case, Chain

_FILES: Final = {
    "parallel": ("parallel", "parallel_multiple"),
    "live-parallel": ("live_parallel", "live_parallel_multiple"),
}
_OMITTED: Final = ""  # how BFCL says that an argument may be left out


class Question(msgspec.Struct, frozen=True):
    """One BFCL sample: what is asked, the functions there are, and the calls that answer it, as Python calls."""

    id: str
    text: str
    toolbox: Toolbox
    calls: tuple[str, ...]


class EchoWorld:
    """Answers every call with what it was asked, and holds nothing."""

    def call(self, tool: str, arguments: dict[str, Any]) -> Any:
        """A small value made of the arguments."""
        return {"done": tool, "with": next(iter(arguments.values()), None)}

    def difference(self, truth: EchoWorld) -> str | None:
        """There is nothing to differ."""
        return None


def draw(dataset: str, count: int, seed: int, tool_ms: float) -> list[Case]:
    """Up to `count` different cases."""
    questions = _questions(dataset, tool_ms)
    drawn = random.Random(seed).sample(questions, min(count, len(questions)))
    return [_case(question, seed, tool_ms) for question in drawn]


def _case(question: Question, seed: int, tool_ms: float) -> Case:
    chains = [Chain("" if number else question.text, (call,)) for number, call in enumerate(question.calls)]
    return Case(question.id, chains, question.toolbox, EchoWorld, seed=seed, tool_ms=tool_ms)


@functools.cache
def _questions(dataset: str, tool_ms: float) -> list[Question]:
    return [question for file in _FILES[dataset] for question in _read(f"BFCL_v4_{file}.json", tool_ms)]


class _Entry(msgspec.Struct):
    id: str
    question: list[list[dict[str, str]]]
    function: list[bfcl.Doc]


class _Answer(msgspec.Struct):
    id: str
    ground_truth: list[dict[str, dict[str, list[Any]]]]


def _read(file: str, tool_ms: float) -> list[Question]:
    """The questions of a file, but for those whose own schema refuses their ground truth (3 in 440).

    Their tools declare the mean of all running times, which is what their owner would know.
    """
    data = bfcl.data_folder()
    answers = {each.id: each.ground_truth for each in bfcl.read_lines(data / "possible_answer" / file, _Answer)}
    found = []
    for entry in bfcl.read_lines(data / file, _Entry):
        toolbox = Toolbox(Blueprint(_spec(doc, tool_ms)) for doc in entry.function)
        truth = answers[entry.id]
        calls = tuple(render_body(name, _arguments(accepted)) for call in truth for name, accepted in call.items())
        try:
            for call in calls:
                toolbox.check(parse_body(call))
        except CallError:
            continue
        text = " ".join(message["content"] for message in entry.question[0])
        found.append(Question(entry.id, text, toolbox, calls))
    return found


def _spec(doc: bfcl.Doc, tool_ms: float) -> ToolSpec:
    schema = bfcl.json_schema(doc.parameters)
    return ToolSpec(name=doc.name, description=doc.description, parameters=schema, estimate_ms=tool_ms)


def _arguments(accepted: dict[str, list[Any]]) -> dict[str, Any]:
    """Of the values that BFCL accepts for each argument the first; none where it may be left out."""
    return {name: _value(values[0]) for name, values in accepted.items() if values[0] != _OMITTED}


def _value(value: Any) -> Any:
    if isinstance(value, dict):  # inside objects it lists what it accepts, too
        return _arguments(value)
    return [_value(each) for each in value] if isinstance(value, list) else value
