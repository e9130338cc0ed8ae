"""What an ideal CML-speaking model with a cheat sheet writes next (paper, sections 4 and 6). Pure and stateless.

`read` goes through a request's messages and learns which calls were written and which interrupts arrived.
`Progress.next` then decides, Longest-Processing-Time-first: of the calls that are ready, the one with the longest
estimate; a trap when nothing is ready but something is pending; the answer, which quotes every result if the task
says so, when all have arrived.

Text (a task's `say`, its answer) that was cut off is continued where it stopped. White space is not counted there,
because a transcript may gain or lose some at the seams.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import msgspec

from asynclm.cml.events import Call, Interrupt, Text, Thinking
from asynclm.cml.parser import Parser
from asynclm.cml.render import render_call, render_trap

from .task import Node, Task, TaskError, find_tasks

GREETING: Final = "This is asynclm's simulated model. Put a <task> block into your message and it will work on that."


class Step(msgspec.Struct, frozen=True):
    """What to write next; `id` names the call."""

    kind: Literal["text", "call", "trap"]
    text: str
    id: str | None = None


class _Work:
    """A task, and how much of its text was written (characters that aren't white space)."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.said = 0
        self.answer: str | None = None  # composed when it is begun
        self.answered = 0

    @property
    def rest(self) -> str:
        """What is still to be written of the text that is under way."""
        return _rest(self.task.say, self.said) if self.answer is None else _rest(self.answer, self.answered)

    def count(self, characters: int) -> None:
        if self.answer is None:
            self.said += characters
        else:
            self.answered += characters


class Progress:
    """Where the simulated model stands in its tasks."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._work = [_Work(task) for task in tasks]
        self._nodes: dict[str, Node] = {node.id: node for work in self._work for node in work.task.calls}
        self._written: set[str] = set()
        self._arrived: dict[str, str] = {}

    def wrote(self, text: str) -> None:
        """The model wrote `text`. Interrupts in it (a prefilled turn) count, a block cut off at its end does not."""
        self._read(text, model=True)

    def told(self, text: str) -> None:
        """The runtime put `text`, interrupt blocks, behind what was written."""
        self._read(text, model=False)

    def next(self) -> Step | None:
        """What the model writes now; None when it is done. Tell of it by `wrote` or `finished` before asking again."""
        work = self._speaking()
        if work is not None:
            return Step("text", work.rest)
        ready = [node for node in self._nodes.values() if node.id not in self._written and self._is_ready(node)]
        if ready:
            node = max(ready, key=lambda node: node.estimate_ms)  # the first of equals
            return Step("call", render_call(node.id, node.call), node.id)
        if self._written - self._arrived.keys():
            return Step("trap", render_trap())
        for work in self._work:
            if work.answer is None:
                work.answer = self._compose(work.task)
                if work.rest:
                    return Step("text", work.answer)
        return None

    def finished(self, step: Step) -> None:
        """The step that `next` gave was written to its end, whatever `wrote` has been told of it."""
        if step.id is not None:
            self._written.add(step.id)
        elif step.kind == "text":
            work = self._speaking()
            if work is not None:
                work.count(_length(work.rest))

    def _read(self, text: str, *, model: bool) -> None:
        parser = Parser(interrupts=True)
        for event in [*parser.feed(text), *parser.finish()]:
            if isinstance(event, Interrupt):
                self._arrive(event)
            elif not model:
                continue
            elif isinstance(event, Call):
                if event.problem is None and event.id in self._nodes:
                    self._written.add(event.id)
            elif isinstance(event, Text | Thinking):
                self._heard(event.text)

    def _arrive(self, event: Interrupt) -> None:
        if event.id in self._nodes:
            # A block that was cut, and so never counted as written, may still come back as an error value.
            self._written.add(event.id)
            self._arrived.setdefault(event.id, event.value)
            return
        try:
            value = msgspec.json.decode(event.value)
            tasks = find_tasks(value, self._nodes) if isinstance(value, str) else []
        except (msgspec.DecodeError, TaskError):
            return  # someone else's interrupt
        for task in tasks:
            self._work.append(_Work(task))
            self._nodes.update({node.id: node for node in task.calls})

    def _heard(self, text: str) -> None:
        """Count text as far as it is what the model would have written."""
        heard = "".join(text.split())
        while heard:
            work = self._speaking()
            if work is None:
                step = self.next()
                if (step is None or step.kind != "text") and not self._answered(heard):
                    return
                continue
            same = _common("".join(work.rest.split()), heard)
            if not same:
                return
            work.count(same)
            heard = heard[same:]

    def _answered(self, heard: str) -> bool:
        """Whether `heard` begins a task's answer, given by a branch that did not know of a further task."""
        for work in self._work:
            if work.answer is None and all(node.id in self._arrived for node in work.task.calls):
                answer = self._compose(work.task)
                if _common("".join(answer.split()), heard):
                    work.answer = answer
                    return True
        return False

    def _speaking(self) -> _Work | None:
        """The task whose text is under way: an answer that was begun comes before anything else."""
        for work in self._work:
            if work.answered and work.rest:
                return work
        for work in self._work:
            if work.rest:
                return work
        return None

    def _is_ready(self, node: Node) -> bool:
        return self._arrived.keys() >= set(node.after)

    def _compose(self, task: Task) -> str:
        lines = [task.answer] if task.answer else []
        if task.quote:
            lines += [f"{node.id} = {self._arrived[node.id]}" for node in task.calls]
        return "\n".join(lines)


def read(messages: Sequence[dict[str, Any]]) -> Progress:
    """Where a model that is given these OpenAI-shaped messages stands.

    The run begins at the last user message that is not interrupts; what came before it is the conversation's past, and
    was answered. Raises `TaskError` for a task that can't be used.
    """
    texts = [(message.get("role"), text_of(message)) for message in messages]
    start = len(texts)
    while start > 0 and not (texts[start - 1][0] == "user" and not _is_interrupts(texts[start - 1][1])):
        start -= 1
    first = start
    while first > 0 and texts[first - 1][0] in ("user", "system", "developer"):
        first -= 1
    tasks: list[Task] = []
    for role, text in texts[first:start]:
        if role == "user" and not _is_interrupts(text):
            tasks += find_tasks(text, {node.id for task in tasks for node in task.calls})
    progress = Progress(tasks or [Task(answer=GREETING)])
    for role, text in texts[start:]:
        if role == "assistant":
            progress.wrote(text)
        elif role == "user":
            progress.told(text)
    return progress


def text_of(message: dict[str, Any]) -> str:
    """The text of a message whose content is a string, a list of parts, or missing."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""


def _is_interrupts(text: str) -> bool:
    parser = Parser(interrupts=True)
    return any(isinstance(event, Interrupt) for event in [*parser.feed(text), *parser.finish()])


def _rest(text: str, count: int) -> str:
    """What follows the first `count` characters of `text` that aren't white space."""
    if not count:
        return text if text.strip() else ""
    for at, char in enumerate(text):
        if not char.isspace():
            count -= 1
            if not count:
                return text[at + 1 :] if text[at + 1 :].strip() else ""
    return ""


def _length(text: str) -> int:
    return sum(map(len, text.split()))


def _common(one: str, other: str) -> int:
    """How many leading characters two strings share."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
