"""The simulated model's cheat sheet: a task is a graph of calls, carried inside the messages (paper, section 6).

The block is `<task>{JSON}</task>` in a user message, or in the text of an outside interrupt. `encode_task` writes it so
that nothing on the way changes it: it holds no control token and no backslash that `cml.tokens.escape` would touch, and
no `</task>` inside. A block written by hand, control tokens and all, survives `escape` too: what that makes of a `[` is
JSON's own escape.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

import msgspec

_OPEN: Final = "<task>"
_CLOSE: Final = "</task>"
_TOKEN_START: Final = re.compile(r"\[(?=(?:CALL|INTR|TRAP|HEAD|END)\])")
_BACKSLASH: Final = re.compile(r"\\\\(?=u005[bc])")  # an encoded backslash before what `escape` looks for


class Node(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One call of a task.

    `call` is the body as it is to be written, `f(x=1)`; `after` names the calls whose results it needs; `estimate_ms`
    is how long it is expected to run.
    """

    id: str
    call: str
    after: tuple[str, ...] = ()
    estimate_ms: float = 0.0


class Task(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What to do: `say` (text before the calls, may be empty), the calls, and the line that opens the answer.

    The answer goes on to `quote` the result of every call, unless told otherwise.
    """

    calls: tuple[Node, ...] = ()
    say: str = ""
    answer: str = "Done."
    quote: bool = True


class TaskError(ValueError):
    """A `<task>` block that can't be used; the message says where and why."""


def encode_task(task: Task) -> str:
    """The block to put into a user message. `find_tasks` gives the task back, escaped on the way or not."""
    text = msgspec.json.encode(task).decode()
    text = _BACKSLASH.sub(r"\\u005C", text)
    text = _TOKEN_START.sub(r"\\u005B", text)
    return f"{_OPEN}{text.replace('<', chr(92) + 'u003c')}{_CLOSE}"


def find_tasks(text: str, known: Collection[str] = ()) -> list[Task]:
    """Read every block in `text`. `known` are the ids of calls of earlier tasks, which `after` may name.

    Raises `TaskError` for a block that is not closed, not a task, uses an id twice, or has a call `after` one that does
    not come before it (which also keeps the graph free of cycles).
    """
    tasks: list[Task] = []
    ids = set(known)
    at = text.find(_OPEN)
    while at >= 0:
        end = text.find(_CLOSE, at)
        if end < 0:
            raise TaskError("a <task> block is not closed by </task>")
        try:
            task = msgspec.json.decode(text[at + len(_OPEN) : end].encode("utf-8", "surrogatepass"), type=Task)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise TaskError(f"a <task> block can't be read: {error}") from None
        for node in task.calls:
            if node.id in ids:
                raise TaskError(f"a <task> block uses the id {node.id!r} twice")
            for name in node.after:
                if name not in ids:
                    raise TaskError(f"in a <task> block, {node.id!r} is after {name!r}, which does not come before it")
            ids.add(node.id)
        tasks.append(task)
        at = text.find(_OPEN, end)
    return tasks
