"""What can happen in a run: the events that the run machine takes. Each comes with the time it happened."""

from __future__ import annotations

import enum

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
    """A call returned. `value` is JSON text; where not `ok`, an error value. `ms` is the running time.

    `cache` says how a cache served it (`hit`, `miss`, `stale`, `coalesced`), None where none was asked.
    """

    call: int
    ok: bool
    value: str
    ms: float
    cache: str | None = None


class Scheduling(enum.StrEnum):
    """When the model is to be told what comes from outside.

    `interrupt`: at the next moment outside a block. `when_idle`: when it writes nothing, because it waits or has come
    to its end; nothing it writes is broken off. `silent`: with whatever it is told next, if anything.
    """

    INTERRUPT = "interrupt"
    WHEN_IDLE = "when_idle"
    SILENT = "silent"


class OutsideInterrupt(msgspec.Struct, frozen=True, gc=False):
    """A person or another agent has something to say to the model. `source` is an identifier."""

    source: str
    text: str
    scheduling: Scheduling = Scheduling.INTERRUPT


class TimerFired(msgspec.Struct, frozen=True, gc=False):
    """The time is up that `SetTimer` asked for. Timers are not cancelled: one that comes late changes nothing."""


class Abandoned(msgspec.Struct, frozen=True, gc=False):
    """Nobody wants the answer any more (the client left), or the run may not go on (deadline, shutdown)."""

    error: RunError


class TakenOver(msgspec.Struct, frozen=True, gc=False):
    """Another run machine goes on with this parked run: what is under way is needed there."""


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
    | TimerFired
    | Abandoned
    | TakenOver
)
