"""What a recorded model would write: the recorded transcript as a script of blocks. Pure.

A recorded model can't be asked anything. So this is what is assumed: a stretch of text, or a call, was written because
of what the model had been told by then, all of it. Wherever a model of the replayed run stands, it writes the next of
the blocks (in the recorded order) for which it has been told everything that it had been told when it wrote them; when
there is none and results are outstanding, it waits. If nothing is outstanding, it goes on with the rest all the same.

So a call that was written after another one's result is taken to need it. A recording of a policy that shows the model
each result by itself (`fork`, `auto`) leaves others more freedom than one of `sync`, under which every call has seen
all results before it.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from asynclm.cml import events as cml
from asynclm.cml.machine.calls import RUNTIME
from asynclm.cml.machine.events import Scheduling
from asynclm.cml.machine.stream import Stream
from asynclm.cml.render import render_body, render_call, render_trap
from asynclm.cml.timeline import Entry
from asynclm.proxy.recording.recorded import Recording, Written

_TTFT_S: Final = 0.15  # where no stream's was recorded

State = frozenset[str]


class Beat(msgspec.Struct, frozen=True):
    """A piece of text, written `gap` seconds after the one before."""

    gap: float
    text: str


class Block(msgspec.Struct, frozen=True):
    """A stretch of text (`id` and `body` None) or a call; written by a model that had been told `needs`."""

    beats: tuple[Beat, ...]
    needs: State
    id: str | None = None
    body: str | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(beat.text for beat in self.beats)


class Outcome(msgspec.Struct, frozen=True):
    """What came of a call: JSON text, an error value where not `ok`, after so many seconds."""

    ok: bool
    value: str
    seconds: float


class Made(msgspec.Struct, frozen=True):
    """An accepted call."""

    tool: str
    arguments: dict[str, Any]
    outcome: Outcome


class Said(msgspec.Struct, frozen=True):
    """An outside interrupt, `t` seconds into the run."""

    t: float
    source: str
    text: str
    scheduling: Scheduling


class Script(msgspec.Struct):
    """A recorded run, taken apart. `states` is what the model was told, each time that it was told something."""

    blocks: list[Block]
    traps: dict[State, str]
    states: set[State]
    calls: list[Made]
    rejected: list[tuple[str, str]]
    said: list[Said]
    reason: str
    inject: bool
    ttft_s: float
    tpot_s: float


class Names:
    """The names of what was told so far: an id that comes again is another name."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def name(self, id: str) -> str:
        """What this one is called."""
        self._counts[id] += 1
        return id if self._counts[id] == 1 else f"{id}#{self._counts[id]}"


def script(recording: Recording) -> Script:
    """Take a recording apart."""
    entries = recording.timeline.entries
    told, states, order, inject = _streams(entries)
    calls: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.kind in ("call", "rejected"):
            calls.setdefault(entry.stream or 0, []).append(entry)
    times = {(entry.kind, entry.stream): entry.t for entry in entries if entry.kind in ("opened", "first_token")}
    cut = {entry.stream for entry in entries if entry.kind == "closed" and entry.data.get("reason") == "cut"}
    barren = {entry.stream for entry in entries if entry.kind == "trap"} & {
        entry.stream for entry in entries if entry.kind == "branch"
    }
    blocks: list[Block] = []
    traps: dict[State, str] = {}
    gaps: list[float] = []
    for number in order:
        pieces = recording.wrote.get(number, [])
        if not pieces:
            continue
        began = times.get(("first_token", number), pieces[0].t)
        beats = _beats(pieces, began, [t for t, _ in told[number]])
        gaps += [beat.gap for beat in beats[1:]]
        blocks += _blocks(pieces, beats, told[number], calls.get(number, []), traps, number in cut, number in barren)
    ttfts = [
        t - times["opened", number]
        for (kind, number), t in times.items()
        if kind == "first_token" and number is not None
    ]
    answered = recording.answered
    return Script(
        blocks=blocks,
        traps=traps,
        states=states,
        calls=_calls(entries),
        rejected=[(e.data.get("error", ""), e.data.get("message", "")) for e in entries if e.kind == "rejected"],
        said=[
            Said(e.t, e.data["source"], e.data["text"], Scheduling(e.data["scheduling"]))
            for e in entries
            if e.kind == "outside"
        ],
        reason=(answered.reason if answered is not None else "") or "stop",
        inject=inject,
        ttft_s=statistics.median(ttfts) if ttfts else _TTFT_S,
        tpot_s=statistics.median(gaps) if gaps else 0.0,
    )


def _streams(entries: Sequence[Entry]) -> tuple[dict[int, list[tuple[float, State]]], set[State], list[int], bool]:
    """What each stream was told and when, all such states, which streams came into the transcript, in that order, and
    whether interrupts went into live ones.
    """
    names = Names()
    main: set[str] = set()  # told in the transcript
    told: dict[int, list[tuple[float, State]]] = {}
    news: dict[int, set[str]] = {}
    order: list[int] = []
    branches: set[int] = set()  # open
    aside = {entry.stream for entry in entries if entry.kind in ("branch", "ahead")}
    states: set[State] = {frozenset()}
    opened: set[int] = set()
    inject = False
    for entry in entries:
        number = entry.stream
        if number is None:
            continue
        match entry.kind:
            case "interrupt":
                new = {names.name(id) for id in entry.data.get("ids", ()) if id != RUNTIME}
                news[number] = new
                if number not in aside:
                    main |= new
                state = frozenset(main | new)
                if number in opened:
                    inject = True
                told.setdefault(number, []).append((entry.t, state))
                states.add(state)
            case "branch":
                branches.add(number)
            case "ahead":
                state = frozenset(main.union(*(news.get(each, set()) for each in branches)))
                told[number] = [(entry.t, state)]
                states.add(state)
            case "opened":
                opened.add(number)
                told.setdefault(number, [(entry.t, frozenset(main))])
                if number not in aside:
                    order.append(number)
            case "folded" | "adopted":
                branches.discard(number)
                main |= news.get(number, set())
                order.append(number)
            case "merged":
                branches.discard(number)
    return told, states, order, inject


def _beats(pieces: Sequence[Written], began: float, told: Sequence[float]) -> list[Beat]:
    """The pieces with the time that the model took for each: not that for which it waited to be told something."""
    beats: list[Beat] = []
    last = began
    for piece in pieces:
        since = max([last, *(t for t in told if t <= piece.t)])
        beats.append(Beat(max(0.0, piece.t - since), piece.text))
        last = piece.t
    return beats


def _blocks(
    pieces: Sequence[Written],
    beats: Sequence[Beat],
    told: Sequence[tuple[float, State]],
    calls: Sequence[Entry],
    traps: dict[State, str],
    cut: bool,
    barren: bool,
) -> list[Block]:
    """The blocks of one stream. `traps` takes its traps, by what it had been told."""
    stream = Stream(0)
    whole = "".join(piece.text for piece in pieces)
    found = stream.write(whole)
    left = iter(calls)
    blocks: list[Block] = []
    waiting: list[Beat] = []  # what is no block of its own: its time goes to the next one
    at = 0
    unread = False
    for event in [*found, *([] if cut else stream.end())]:
        start, at = at, max(at, min(event.end, len(whole)))
        mine = _between(beats, start, at)
        needs = _state(told, _time(pieces, start))
        unread = False
        match event:
            case cml.Text() if event.text.strip():
                blocks.append(Block((*_silent(waiting), *mine), needs))
                waiting = []
                unread = cut and start > 0 and len(mine) == 1 and _piece(pieces, start) == _piece(pieces, start - 1)
            case cml.Call():
                id, body, text = _call(event, next(left, None))
                times = [beat.gap for beat in mine] or [0.0]
                cuts = zip(times, parts(text, len(times)), strict=False)
                blocks.append(Block((*_silent(waiting), *(Beat(gap, part) for gap, part in cuts)), needs, id, body))
                waiting = []
            case cml.Trap():
                traps[needs] = render_trap(event.names)
            case _:
                waiting += mine
    # Text that came in one piece with the block that the stream was cut behind was not read; what a branch says
    # before it traps is only that it waits.
    if unread or (barren and blocks and blocks[-1].body is None):
        blocks.pop()
    return blocks


def _call(event: cml.Call, entry: Entry | None) -> tuple[str | None, str, str]:
    """Id, body and text of a call as the run understood it, or as it stands where it was rejected."""
    if entry is None or entry.kind == "rejected":
        return None, event.body.strip(), render_call(event.id, event.body.strip())
    id, tool, arguments = entry.data.get("id"), entry.data["tool"], entry.data.get("arguments", {})
    if all(name.isidentifier() for name in arguments):
        body = render_body(tool, arguments)
    else:
        body = msgspec.json.encode({"name": tool, "arguments": arguments}).decode()
    return id, body, render_call(id, body)


def _calls(entries: Sequence[Entry]) -> list[Made]:
    end = entries[-1].t if entries else 0.0
    results = {entry.call: entry for entry in entries if entry.kind == "result"}
    began = {entry.call: entry.t for entry in entries if entry.kind in ("call", "dispatched")}
    shared = {entry.call: entry.data.get("with") for entry in entries if entry.kind == "shared"}
    made: list[Made] = []
    for entry in entries:
        if entry.kind != "call" or entry.call in shared:
            continue  # a shared one is executed once
        result = results.get(entry.call)
        if result is None:
            message = '{"error":{"type":"cancelled","message":"it had not returned when the recorded run ended"}}'
            outcome = Outcome(False, message, max(0.0, end - began.get(entry.call, entry.t)))
        else:
            data = result.data
            outcome = Outcome(bool(data.get("ok")), str(data.get("value")), float(data.get("ms", 0.0)) / 1000)
        made.append(Made(entry.data["tool"], entry.data.get("arguments", {}), outcome))
    return made


def _state(told: Sequence[tuple[float, State]], t: float) -> State:
    before = [state for at, state in told if at < t]
    return before[-1] if before else (told[0][1] if told else frozenset())


def _time(pieces: Sequence[Written], at: int) -> float:
    """When the character at that offset was written."""
    return pieces[_piece(pieces, at)].t


def _piece(pieces: Sequence[Written], at: int) -> int:
    """The piece that holds the character at that offset; the last one for any behind the end."""
    for number, piece in enumerate(pieces):
        if at < len(piece.text):
            return number
        at -= len(piece.text)
    return len(pieces) - 1


def _between(beats: Sequence[Beat], start: int, end: int) -> list[Beat]:
    """The beats from one offset to another; of one that begins earlier, the time belongs to what was before."""
    found: list[Beat] = []
    at = 0
    for beat in beats:
        stop = at + len(beat.text)
        if stop > start and at < end:
            gap = beat.gap if at >= start else 0.0
            found.append(Beat(gap, beat.text[max(start - at, 0) : end - at]))
        at = stop
    return found


def _silent(beats: Sequence[Beat]) -> list[Beat]:
    """Their time only, and their white space."""
    time = sum(beat.gap for beat in beats)
    space = "".join(beat.text for beat in beats if beat.text.isspace())
    return [Beat(time, space)] if beats else []


def parts(text: str, count: int) -> list[str]:
    """A text in that many parts, about equal, none of them empty."""
    count = min(count, len(text))
    cuts = [round(len(text) * n / count) for n in range(count + 1)]
    return [text[start:end] for start, end in itertools.pairwise(cuts)]
