"""What one run leaves behind, while it runs: collected on the path of its chunks, written out off it.

Collecting is an append to a list. `take` then puts everything since the last time into lines: what is to be written
next. Text is searched for secrets as a whole, since a secret comes in pieces like all text; so the end of a text that
is still being written is held back, and what came behind it as well.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from asynclm.cml.machine import RunError
from asynclm.cml.timeline import Entry, Timeline
from asynclm.cml.transcript import Segment
from asynclm.cml.usage import Usage
from asynclm.proxy.conversations.stored_turns import Kept
from asynclm.proxy.recording.canonical import Asked
from asynclm.proxy.recording.recorded import Answered, Piece, Question, Written, encode, header
from asynclm.proxy.recording.redaction import Redactor, without

_WROTE: Final = ""  # no delta has such a key
_HELD_CHARS: Final = 512  # a secret is not longer
_LONGEST: Final = 65_536  # characters of a match, for which memory is held
_ENDS: Final = frozenset({"trap", "closed"})  # what a stream's text isn't written on behind
_PIECE_COST: Final = 160  # bytes of a piece in memory, beside its text


class _Collected(NamedTuple):
    at: int  # how many entries the timeline had
    stream: int
    key: str
    t: float
    value: Any


class _Text:
    """Pieces that make one text, by their numbers, and where the secrets are in it."""

    def __init__(self, numbers: list[int], pieces: list[str]) -> None:
        self.numbers = numbers
        self.pieces = pieces
        self.spans: list[tuple[int, int]] = []

    def find(self, redactor: Redactor) -> bool:
        """Look for them; whether there are any."""
        self.spans = redactor.spans("".join(self.pieces))
        return bool(self.spans)

    def before(self, keep: int) -> int:
        """At most `keep` pieces, so that no secret begins among these that goes on behind them."""
        ends = list(itertools.accumulate(map(len, self.pieces)))
        first = bisect.bisect_left(self.numbers, keep)  # of these, the first piece to be held back
        if 0 < first < len(ends):
            for start, end in self.spans:
                if start < ends[first - 1] < end and end - start <= _LONGEST:
                    return self.numbers[bisect.bisect_right(ends, start)]
        return keep


class Tape:
    """The recording of one answer, as it is made.

    `timeline` is the run's, `clock` that of the event loop (s), `began` when the run did. `done`: the answer is over;
    `ok`: it was a whole one. Of a run that gives several answers each is a recording: `answer` is its number, and the
    entries since the one before belong to it; `late` is how long after the run's this one began (s).
    """

    def __init__(
        self,
        timeline: Timeline,
        asked: Asked,
        *,
        stream: bool,
        redactor: Redactor,
        clock: Callable[[], float],
        answer: int = 1,
        late: float = 0.0,
    ) -> None:
        self.id = timeline.run if answer == 1 else f"{timeline.run}-{answer}"
        self.asked = asked
        self.done = False
        self.ok = False
        self.began = clock()
        self._ended = 0.0
        self._last: Answered | None = None
        self.timeline = timeline
        self._redactor = redactor
        self._clock = clock
        self._pieces: list[_Collected] = []
        self._stream = 0
        self._taken = _begin(timeline) if answer > 1 else 0  # entries of the timeline
        self._until = 0  # how many belong to this answer, once it is over
        self._late = late
        self._lines = 2
        question = Question(asked.key, redactor.value(asked.request), asked.tools, stream)
        self._opening = header(timeline, self.id) + b"\n" + _line(Entry(0.0, "request", data=_fields(question)))
        self._size = 0
        self._stopped = False

    @property
    def seconds(self) -> float:
        """How long the answer has taken so far, or did."""
        return round((self._ended or self._clock()) - self.began, 6)

    @property
    def size(self) -> int:
        """About how many bytes are collected and not taken."""
        return self._size + len(self._opening)

    # ------------------------------------------------------------------ on the path of a chunk

    def wrote(self, stream: int, text: str) -> None:
        """The model wrote a piece of text."""
        self._stream = stream
        self._collect(_WROTE, text)

    def sent(self, key: str, value: Any) -> None:
        """The client got a delta with that key."""
        self._collect(key, value)

    def _collect(self, key: str, value: Any) -> None:
        if self._stopped:
            return
        t = self._clock() - self.began
        self._pieces.append(_Collected(len(self.timeline.entries), self._stream, key, t, value))
        self._size += _PIECE_COST + len(value)

    def stop(self) -> None:
        """Nobody takes what is collected any more."""
        self._stopped = True
        self._pieces.clear()
        self._opening = b""
        self._size = 0

    # ------------------------------------------------------------------ the end

    def finish(self, reason: str, usage: Usage, extra: dict[str, Any], turn: Kept | None = None) -> None:
        """The answer is whole; `turn` is what later ones of the conversation are to know of it."""
        self._end(Answered(0, reason, usage, extra, turn=turn))

    def fail(self, error: RunError) -> None:
        """There is none, or half of one."""
        if not self.done:
            self._end(Answered(0, error=error))

    def _end(self, answered: Answered) -> None:
        self._last = answered
        self._until = len(self.timeline.entries)
        self._ended = self._clock()
        self.ok = answered.error is None
        self.done = True

    # ------------------------------------------------------------------ off that path

    def take(self) -> bytes:
        """The lines to be written next; b"" if there are none. Behind the end, all that is left."""
        entries = self.timeline.entries[: self._until] if self.done else self.timeline.entries
        keep = len(self._pieces) if self.done else self._held()
        texts = self._secrets()
        while not self.done and (fewer := min((text.before(keep) for text in texts), default=keep)) < keep:
            keep = fewer  # which may now be in the middle of another text's secret
        until = len(entries) if keep == len(self._pieces) else self._pieces[keep].at
        self._redact(keep, texts)
        lines: list[bytes] = [self._opening] if self._opening else []
        before = len(lines)
        at = 0
        for number in range(self._taken, until + 1):
            begin = at
            while at < keep and self._pieces[at].at <= number:
                at += 1
            lines += _piece_lines(self._pieces[begin:at])
            if number < until and entries[number].kind != "text":
                lines.append(_line(self._clean(entries[number])))
        self._opening = b""
        self._taken = until
        self._pieces = self._pieces[keep:]
        self._size = sum(_PIECE_COST + len(piece.value) for piece in self._pieces)
        self._lines += len(lines) - before
        if self._last is not None:
            lines.append(self._last_line(self._last))
            self._last = None
        return b"".join(lines)

    def _last_line(self, answered: Answered) -> bytes:
        error = answered.error and RunError(
            self._redactor.text(answered.error.message), answered.error.status, answered.error.type, answered.error.code
        )
        turn = answered.turn and Kept(
            answered.turn.start,
            tuple(Segment(each.author, self._redactor.text(each.text)) for each in answered.turn.transcript),
        )
        data = _fields(Answered(self._lines, answered.reason, answered.usage, answered.extra, error, turn))
        return _line(Entry(self.seconds, "answered", data=data))

    def _held(self) -> int:
        """How many pieces, from the first, can be written: the others are the end of a text that may go on."""
        ended: dict[int | None, int] = {}
        for number in range(self._taken, len(self.timeline.entries)):
            if self.timeline.entries[number].kind in _ENDS:
                ended[self.timeline.entries[number].stream] = number
        room: dict[tuple[str, int], int] = {}
        keep = len(self._pieces)
        for number in range(len(self._pieces) - 1, -1, -1):
            piece = self._pieces[number]
            group = _group(piece)
            left = room.get(group, _HELD_CHARS)
            if left <= 0 or not isinstance(piece.value, str):
                continue
            if ended.get(piece.stream, -1) >= piece.at:
                room[group] = 0
                continue
            room[group] = 0 if "\n" in piece.value else left - len(piece.value)
            keep = number
        return keep

    def _secrets(self) -> list[_Text]:
        """The texts that the pieces make in which there is a secret."""
        groups: dict[tuple[str, int], list[int]] = {}
        for number, piece in enumerate(self._pieces):
            if isinstance(piece.value, str):
                groups.setdefault(_group(piece), []).append(number)
        texts = (_Text(numbers, [self._pieces[number].value for number in numbers]) for numbers in groups.values())
        return [text for text in texts if text.find(self._redactor)]

    def _redact(self, keep: int, texts: list[_Text]) -> None:
        """Take the secrets out of the first `keep` pieces. The others still are to be searched together with more."""
        for text in texts:
            for number, cleaned in zip(text.numbers, without(text.pieces, text.spans), strict=True):
                if number < keep:
                    self._pieces[number] = self._pieces[number]._replace(value=cleaned)
        for number, piece in enumerate(self._pieces[:keep]):
            if not isinstance(piece.value, str):
                self._pieces[number] = piece._replace(value=self._redactor.value(piece.value))

    def _clean(self, entry: Entry) -> Entry:
        return Entry(
            max(0.0, round(entry.t - self._late, 6)),
            entry.kind,
            entry.stream,
            entry.call,
            self._redactor.value(entry.data),
        )


def _begin(timeline: Timeline) -> int:
    """Where the entries behind the answer before begin."""
    parked = [number for number, entry in enumerate(timeline.entries) if entry.kind == "parked"]
    return parked[-1] + 1 if parked else len(timeline.entries)


def _group(piece: _Collected) -> tuple[str, int]:
    """Pieces of the same group make one text: what a stream wrote, or all that the client got under one key."""
    return (piece.key, piece.stream if piece.key == _WROTE else 0)


def _piece_lines(pieces: list[_Collected]) -> list[bytes]:
    """A line for what each stream's model wrote, and for each stretch of what the client got from one stream."""
    lines: list[bytes] = []
    wrote: dict[int, list[Written]] = {}
    for each in pieces:
        if each.key == _WROTE and each.value:
            wrote.setdefault(each.stream, []).append(Written(round(each.t, 6), each.value))
    for stream, written in wrote.items():
        lines.append(_line(Entry(written[0].t, "wrote", stream, data={"pieces": written})))
    shown = [each for each in pieces if each.key != _WROTE and each.value]
    for stream, stretch in itertools.groupby(shown, key=lambda each: each.stream):
        sent = [Piece(round(each.t, 6), each.key, each.value) for each in stretch]
        lines.append(_line(Entry(sent[0].t, "sent", stream, data={"pieces": sent})))
    return lines


def _line(entry: Entry) -> bytes:
    return encode(entry) + b"\n"


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__ if getattr(value, name) is not None}
