"""What a run's timeline looks like side by side: lanes for its streams and its calls, made of spans and marks. Pure.

Times are seconds into the run. Streams that follow one another share a lane; those that overlap (branches) don't.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from asynclm.cml.timeline import Entry, Timeline

SpanKind = Literal["wait", "text", "ahead", "block", "paused", "queued", "running", "failed", "held"]
MarkKind = Literal["interrupt", "trap", "cached", "delivered", "rejected", "cancelled", "outside"]

_NOTES: Final[dict[object, str]] = {
    "hit": "cache hit",
    "miss": "cache miss",
    "stale": "cache hit, stale",
    "coalesced": "coalesced",
}


class Span(msgspec.Struct, frozen=True):
    """A stretch of time.

    Of a stream: `wait` (for its first token), `text`, `ahead` (it was opened ahead, and what it writes is held back),
    `block` (a call or a trap being written), `paused` (it waits at a trap for an injection). Of a call: `queued`,
    `running` or `failed` (it ran, and came back as an error), `held` (its result has not been told to the model).
    """

    start: float
    end: float
    kind: SpanKind


class Mark(msgspec.Struct, frozen=True):
    """A moment.

    Of a stream: `interrupt`, `trap`; of a call: `cached` (its result came from the store), `delivered`, `rejected`,
    `cancelled`; else `outside`.
    """

    at: float
    kind: MarkKind


class Lane(msgspec.Struct):
    """One line of the picture. `note` is how the cache of tool results served the call, where it was asked."""

    label: str
    spans: list[Span] = []
    marks: list[Mark] = []
    note: str = ""


def length(timeline: Timeline) -> float:
    """How long the run took so far, in seconds."""
    return max((entry.t for entry in timeline.entries), default=0.0)


def lanes(timeline: Timeline) -> list[Lane]:
    """The lanes of a run, streams first, then its calls in the order in which they were written."""
    end = length(timeline)
    streams: dict[int, list[Entry]] = {}
    calls: dict[int, list[Entry]] = {}
    told: dict[str, float] = {}
    outside = Lane("outside")
    for entry in timeline.entries:
        if entry.stream is not None:
            streams.setdefault(entry.stream, []).append(entry)
        if entry.call is not None:
            calls.setdefault(entry.call, []).append(entry)
        if entry.kind == "interrupt":
            for name in entry.data.get("ids", ()):
                told.setdefault(name, entry.t)
        elif entry.kind == "outside":
            outside.marks.append(Mark(entry.t, "outside"))
    found = _packed(_stream(entries, end) for _, entries in sorted(streams.items()))
    found += [_call(entries, told, end) for _, entries in sorted(calls.items())]
    if outside.marks:
        found.append(outside)
    return found


def _stream(entries: list[Entry], end: float) -> Lane:
    lane = Lane("stream")
    since: float | None = None  # where the stretch that is under way began
    doing: SpanKind = "wait"
    writes: SpanKind = "text"

    def until(t: float, kind: SpanKind) -> None:
        nonlocal since
        if since is not None:
            if t > since:
                lane.spans.append(Span(since, t, kind))
            since = t

    for number, entry in enumerate(entries):
        match entry.kind:
            case "opened":
                since = entry.t
            case "ahead":
                writes = "ahead"
            case "adopted":
                writes = "text"
                if doing == "ahead":
                    until(entry.t, "ahead")
                    doing = "text"
            case "first_token":
                until(entry.t, "wait")
                doing = writes
            case "text" | "thinking":
                until(entry.t, "text")
            case "call" | "rejected" | "forged":
                until(entry.t, "block")
            case "trap":
                until(entry.t, doing if entry.data.get("implicit") else "block")
                lane.marks.append(Mark(entry.t, "trap"))
                doing = "paused"
            case "interrupt":
                if doing != "wait":  # into the live sequence, which wrote nothing since its last entry
                    until(entry.t, "paused")
                    doing = "text"
                lane.marks.append(Mark(entry.t, "interrupt"))
            case "closed":
                # A trap that a stop sequence cut is known as one only when the stream has ended.
                trapped = any(later.kind == "trap" and not later.data.get("implicit") for later in entries[number:])
                until(entry.t, "block" if trapped else doing)
                since = None
    if since is not None:
        until(end, doing)
    return lane


def _call(entries: list[Entry], told: dict[str, float], end: float) -> Lane:
    lane = Lane("")
    since = entries[0].t
    doing: SpanKind = "queued"
    name: str | None = None
    for entry in entries:
        match entry.kind:
            case "call" | "rejected":
                name = entry.data.get("id")
                lane.label = " ".join(part for part in (name, entry.data.get("tool")) if part)
                since = entry.t
                if entry.kind == "rejected":
                    lane.marks.append(Mark(entry.t, "rejected"))
                    return lane
            case "dispatched" | "handed":
                lane.spans.append(Span(since, entry.t, "queued"))
                since, doing = entry.t, "running"
            case "result":
                served = entry.data.get("cache")
                lane.note = _NOTES.get(served, "")
                if served in ("hit", "stale"):
                    lane.spans.append(Span(since, entry.t, "queued"))
                    lane.marks.append(Mark(entry.t, "cached"))
                else:
                    lane.spans.append(Span(since, entry.t, "running" if entry.data.get("ok", True) else "failed"))
                since, doing = entry.t, "held"
            case "cancelled":
                lane.spans.append(Span(since, entry.t, doing))
                lane.marks.append(Mark(entry.t, "cancelled"))
                return lane
    if doing != "held":
        lane.spans.append(Span(since, end, doing))
    elif name in told:
        lane.spans.append(Span(since, told[name], "held"))
        lane.marks.append(Mark(told[name], "delivered"))
    return lane


def _packed(streams: Iterable[Lane]) -> list[Lane]:
    """Put each stream into the first lane that is free when it opens."""
    packed: list[Lane] = []
    ends: list[float] = []
    for stream in streams:
        start = stream.spans[0].start if stream.spans else 0.0
        row = next((row for row, end in enumerate(ends) if end <= start), len(packed))
        if row == len(packed):
            packed.append(Lane("stream" if row == 0 else f"branch {row}"))
            ends.append(0.0)
        packed[row].spans += stream.spans
        packed[row].marks += stream.marks
        ends[row] = max([ends[row], *(span.end for span in stream.spans)])
    return packed
