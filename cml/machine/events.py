"""What can happen in a run: the events that the run machine takes. Each comes with the time it happened."""

from __future__ import annotations

import msgspec

from ..usage import Usage


class StreamOpened(msgspec.Struct, frozen=True, gc=False):
    """The upstream accepted the request of this stream."""

    stream: int


class TextArrived(msgspec.Struct, frozen=True, gc=False):
    """The model wrote a piece of text (about a token; the machine counts these)."""

    stream: int
    text: str


class ReasoningArrived(msgspec.Struct, frozen=True, gc=False):
    """The model reasoned, apart from its text; `field` is what the API calls it."""

    stream: int
    text: str
    field: str


class StreamEnded(msgspec.Struct, frozen=True, gc=False):
    """The model stopped writing, with OpenAI's `finish_reason`."""

    stream: int
    reason: str


class StreamFailed(msgspec.Struct, frozen=True, gc=False):
    """The stream could not be opened, broke off, or fell silent. Not retried: what was written is with the client."""

    stream: int
    error: RunError


class UsageReported(msgspec.Struct, frozen=True, gc=False):
    """The upstream said what a stream cost. May come after the stream's end, or never."""

    stream: int
    usage: Usage


class CallDispatched(msgspec.Struct, frozen=True, gc=False):
    """The tool began to run (a call may have queued behind a limit)."""

    call: int


class ResultArrived(msgspec.Struct, frozen=True, gc=False):
    """A call returned. `value` is JSON text; where not `ok`, an error value. `ms` is the running time."""

    call: int
    ok: bool
    value: str
    ms: float


class OutsideInterrupt(msgspec.Struct, frozen=True, gc=False):
    """A person or another agent has something to say to the model. `source` is an identifier."""

    source: str
    text: str


class Abandoned(msgspec.Struct, frozen=True, gc=False):
    """Nobody wants the answer any more (the client left), or the run may not go on (deadline, shutdown)."""

    error: RunError


class RunError(msgspec.Struct, frozen=True, gc=False):
    """Why a run ended without an answer, in OpenAI's error terms; `status` is the HTTP status if one can still be
    sent.
    """

    message: str
    status: int = 502
    type: str = "upstream_error"
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None


Event = (
    StreamOpened
    | TextArrived
    | ReasoningArrived
    | StreamEnded
    | StreamFailed
    | UsageReported
    | CallDispatched
    | ResultArrived
    | OutsideInterrupt
    | Abandoned
)
