"""A recording, written down: the run's timeline as JSON Lines, and between its entries what it takes to serve it again.

The header is a timeline's, with the recording's own version beside it. Further kinds of lines:

| kind | data |
|---|---|
| `request` | `key` (the canonical hash), `request` (its canonical form), `tools` (versions by name), `stream` |
| `sent` | `pieces`: what the client got from that stream, each `[t, key of the delta, value]` |
| `wrote` | `pieces`: what the model wrote in that stream, blocks included, each `[t, text]` |
| `answered` | `reason`, `usage`, `extra`, `turn` (for later ones), or `error`; `lines` before it. Always the last one |

The timeline's own `text` entries are left out: they are put together from `sent` when a recording is read. A recording
without `answered` is one of a run that is under way, or whose proxy died. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec

from asynclm.cml.machine import RunError
from asynclm.cml.timeline import VERSION as TIMELINE_VERSION
from asynclm.cml.timeline import Entry, Timeline
from asynclm.cml.usage import Usage
from asynclm.proxy.conversations.stored_turns import Kept

VERSION: Final = 1
CONTENT: Final = "content"
TOOL_CALLS: Final = "tool_calls"

_LONGEST_S: Final = 1e8  # three years: nothing that is drawn or slept is longer

# Recordings come from other machines as files: their ids stand in headers, their times are slept.
Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,100}\Z")]
Second = Annotated[float, msgspec.Meta(ge=0, le=_LONGEST_S)]

encode: Final = msgspec.json.Encoder().encode


class RecordingError(ValueError):
    """A recording that can't be used, and why."""


class Header(msgspec.Struct, frozen=True):
    """The first line."""

    asynclm_timeline: int
    run: Id
    model: str
    policy: str
    created: Annotated[int, msgspec.Meta(ge=0, le=2**33)]
    asynclm_recording: int


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A delta that the client got `t` seconds into the run, by its key: "content", a name for reasoning (text), or
    "tool_calls" (`id`, `name`, `arguments`).
    """

    t: Second
    key: str
    value: Any


class Written(msgspec.Struct, frozen=True, array_like=True):
    """A piece of the model's own text."""

    t: Second
    text: str


class Question(msgspec.Struct, frozen=True):
    """What was asked."""

    key: Id
    request: dict[str, Any]
    tools: dict[str, str] = {}
    stream: bool = False


class Answered(msgspec.Struct, frozen=True, omit_defaults=True):
    """How it ended."""

    lines: int
    reason: str = ""
    usage: Usage = Usage()
    extra: dict[str, Any] = {}
    error: RunError | None = None
    turn: Kept | None = None


class Recording(msgspec.Struct):
    """One recording, read. `wrote` is by stream; `answered` is None where the run's end was not recorded."""

    timeline: Timeline
    question: Question
    sent: list[Piece] = []
    wrote: dict[int, list[Written]] = {}
    answered: Answered | None = None

    @property
    def id(self) -> str:
        """The run's id."""
        return self.timeline.run

    @property
    def said(self) -> str:
        """The text that the client got."""
        return "".join(piece.value for piece in self.sent if piece.key == CONTENT)

    @property
    def servable(self) -> bool:
        """Whether it is a whole answer."""
        return self.answered is not None and self.answered.error is None


class _ToolCall(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    name: str
    arguments: str


class _Pieces(msgspec.Struct):
    pieces: list[Piece]


class _Writtens(msgspec.Struct):
    pieces: list[Written]


class _Version(msgspec.Struct):
    asynclm_timeline: int
    asynclm_recording: int | None = None


def header(timeline: Timeline, id: str) -> bytes:
    """The first line of a recording with that id, without its end."""
    return encode(
        Header(TIMELINE_VERSION, id, timeline.model, timeline.policy, timeline.created, VERSION),
    )


def read(data: bytes) -> Recording:
    """Read a recording. Raises `RecordingError`, for one of a newer version too."""
    lines = data.splitlines()
    first = _header(lines[0] if lines else b"")
    timeline = Timeline(first.run, first.model, first.policy, first.created, [])
    question: Question | None = None
    sent: list[Piece] = []
    wrote: dict[int, list[Written]] = {}
    answered: Answered | None = None
    for number, line in enumerate(lines[1:], start=2):
        try:
            entry = msgspec.json.decode(line, type=Entry)
            if answered is not None:
                raise RecordingError("something stands behind its end")
            if not 0 <= entry.t <= _LONGEST_S:
                raise RecordingError("there is no such time")
            match entry.kind:
                case "request":
                    question = msgspec.convert(entry.data, Question)
                case "sent":
                    pieces = msgspec.convert(entry.data, _Pieces).pieces
                    for piece in pieces:
                        msgspec.convert(piece.value, _ToolCall if piece.key == TOOL_CALLS else str)
                    sent += pieces
                    _text(timeline, entry, pieces)
                case "wrote":
                    written = msgspec.convert(entry.data, _Writtens).pieces
                    wrote.setdefault(entry.stream or 0, []).extend(written)
                case "answered":
                    answered = msgspec.convert(entry.data, Answered)
                    if answered.lines != number - 1:
                        raise RecordingError(f"{answered.lines} lines stood before its end, {number - 1} are left")
                case _:
                    timeline.entries.append(entry)
        except (msgspec.DecodeError, UnicodeDecodeError, RecordingError, RecursionError) as error:
            raise RecordingError(f"the recording {first.run} is damaged in line {number}: {error}") from None
    if question is None:
        raise RecordingError(f"the recording {first.run} is damaged: it does not say what was asked")
    return Recording(timeline, question, sent, wrote, answered)


def split(data: bytes) -> list[bytes]:
    """The recordings of a file that holds several, one behind the other."""
    found: list[list[bytes]] = []
    for line in data.splitlines():
        if line.startswith(b'{"asynclm_timeline"') or not found:
            found.append([])
        if line.strip():
            found[-1].append(line)
    return [b"".join(line + b"\n" for line in lines) for lines in found if lines]


def _header(line: bytes) -> Header:
    try:
        versions = msgspec.json.decode(line, type=_Version)
        if versions.asynclm_recording is None:
            raise RecordingError("this is a timeline only: it doesn't hold what it takes to serve a run again")
        newer = versions.asynclm_recording > VERSION or versions.asynclm_timeline > TIMELINE_VERSION
        if newer:
            raise RecordingError(
                f"the recording was made by a newer asynclm (version {versions.asynclm_recording} of recordings, "
                f"{versions.asynclm_timeline} of timelines; this one reads up to {VERSION} and {TIMELINE_VERSION})"
            )
        return msgspec.json.decode(line, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordingError(f"not a recording of asynclm: {error}") from None


def _text(timeline: Timeline, entry: Entry, pieces: Iterable[Piece]) -> None:
    """The timeline's own entry for a stretch of text."""
    content = [piece for piece in pieces if piece.key == CONTENT]
    if content:
        text = "".join(piece.value for piece in content)
        timeline.add(content[-1].t, "text", stream=entry.stream, text=text)
