"""What the run machine asks of its driver. Actions are carried out in the order in which they are returned."""

from __future__ import annotations

from typing import Any

import msgspec

from ..tools import ToolSpec
from ..transcript import Segment
from ..usage import Usage
from .events import RunError


class OpenStream(msgspec.Struct, frozen=True):
    """Send the client's messages plus this transcript upstream. Streams are numbered from 0."""

    stream: int
    transcript: tuple[Segment, ...]


class CloseStream(msgspec.Struct, frozen=True, gc=False):
    """Drop the stream, upstream too. Nothing it still yields is wanted, but for its usage.

    `trapped`: the model has said that it waits, so it is about to stop by itself, and its usage may still come.
    """

    stream: int
    trapped: bool = False


class PauseStream(msgspec.Struct, frozen=True, gc=False):
    """Let an injectable stream write nothing more until something is injected.

    `expected`: in how many seconds the next result is expected; None where nobody knows.
    """

    stream: int
    expected: float | None = None


class Inject(msgspec.Struct, frozen=True, gc=False):
    """Append text to an injectable stream's live sequence; the model goes on behind it."""

    stream: int
    text: str


class Execute(msgspec.Struct, frozen=True):
    """Run a call. Nobody waits for a `detached` one (it has no id): it may outlive the run."""

    call: int
    spec: ToolSpec
    arguments: dict[str, Any]
    detached: bool = False


class EmitToolCall(msgspec.Struct, frozen=True):
    """Send a call to the client, whose tool it is. What came of it is told by `Run.resume`."""

    call: int
    id: str
    spec: ToolSpec
    arguments: dict[str, Any]


class CancelCall(msgspec.Struct, frozen=True, gc=False):
    """Stop a call that was executed and has not returned."""

    call: int


class SetTimer(msgspec.Struct, frozen=True, gc=False):
    """Send `TimerFired` after so many seconds."""

    seconds: float


class EmitText(msgspec.Struct, frozen=True, gc=False):
    """Send text to the client."""

    text: str


class EmitReasoning(msgspec.Struct, frozen=True, gc=False):
    """Send reasoning to the client, under the name that the upstream gave it."""

    text: str
    field: str


class Note(msgspec.Struct, frozen=True):
    """Put an entry into the run's timeline (`cml.timeline` lists the kinds)."""

    kind: str
    stream: int | None = None
    call: int | None = None
    data: dict[str, Any] = {}


class Finish(msgspec.Struct, frozen=True):
    """The answer is over: with `reason` as its `finish_reason`, or with `error`. Always its last action.

    So is the run, unless it is parked (`reason` "tool_calls"): then no stream is open, the proxy's own calls go on, and
    `Run.resume` begins the next answer. `usage` is that of this answer.
    """

    reason: str
    usage: Usage
    error: RunError | None = None


Action = (
    OpenStream
    | CloseStream
    | PauseStream
    | Inject
    | Execute
    | EmitToolCall
    | CancelCall
    | SetTimer
    | EmitText
    | EmitReasoning
    | Note
    | Finish
)
