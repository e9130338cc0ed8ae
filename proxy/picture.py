"""A run's timeline as a picture in the terminal: a lane for the stream(s) and for each call, on one axis of time.

`Picture` is a rich renderable: it takes the width it is given, and draws in ASCII where the terminal knows no more.
Behind a call stands how the cache of tool results served it.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from asynclm.cml.timeline import Timeline
from asynclm.proxy.lanes import Lane, MarkKind, SpanKind, lanes, length

_MAX_LABEL: Final = 26
_MIN_TICK: Final = 8  # columns
_MIN_WIDTH: Final = 24  # of the drawing; what the cache did is left out where it would leave less

# glyph, the same in ASCII, style, what the legend calls it
_SPANS: Final[dict[SpanKind, tuple[str, str, str, str]]] = {
    "wait": ("░", ".", "yellow", "waits for first token"),
    "text": ("▒", "=", "white", "writes text"),
    "ahead": ("▒", "~", "bright_black", "writes ahead, held back"),
    "block": ("█", "#", "cyan", "writes a call or trap"),
    "paused": ("╌", "_", "yellow", "waits at a trap"),
    "queued": ("·", ".", "yellow", "queued"),
    "running": ("█", "#", "green", "runs"),
    "failed": ("▓", "%", "red", "runs, and fails"),
    "held": ("─", "-", "magenta", "result not yet delivered"),
}
_WORK: Final = frozenset({"text", "ahead", "block", "running", "failed"})
_MARKS: Final[dict[MarkKind, tuple[str, str, str, str]]] = {
    "interrupt": ("▼", "v", "bold magenta", "interrupt"),
    "trap": ("◆", "T", "bold yellow", "trap"),
    "cached": ("○", "c", "bold green", "from the cache"),
    "delivered": ("●", "o", "bold magenta", "delivered"),
    "rejected": ("✗", "x", "bold red", "rejected"),
    "cancelled": ("✗", "x", "bold red", "cancelled"),
    "outside": ("▲", "^", "bold blue", "outside interrupt"),
}


class Picture:
    """One or several runs, drawn below each other on one scale.

    `titles` stand above each run (default: its policy). `legend` says whether the glyphs are explained below.
    """

    def __init__(self, *timelines: Timeline, titles: Sequence[str] | None = None, legend: bool = True) -> None:
        self._timelines = timelines
        self._titles = titles if titles is not None else [timeline.policy for timeline in timelines]
        self._legend = legend

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ascii_only = options.ascii_only
        rows = [lanes(timeline) for timeline in self._timelines]
        label = min(
            _MAX_LABEL, options.max_width // 3, max((len(lane.label) for row in rows for lane in row), default=0)
        )
        width = max(10, options.max_width - label - 2)
        notes = max((len(lane.note) + 1 for row in rows for lane in row if lane.note), default=0)
        noted = width - notes >= _MIN_WIDTH
        if noted:
            width -= notes
        total = max([length(timeline) for timeline in self._timelines], default=0.0) or 0.001
        for number, (timeline, row) in enumerate(zip(self._timelines, rows, strict=True)):
            if number:
                yield Text()
            yield Text(f"{self._titles[number]}  {length(timeline) * 1000:.0f} ms", style="bold")
            for lane in row:
                line = Text().append(_fit(lane.label, label, ascii_only) + "  ", "dim")
                line.append_text(_draw(lane, total, width, ascii_only))
                yield line.append(f" {lane.note}", "dim") if noted and lane.note else line
        yield Text(" " * (label + 2) + _axis(total, width), style="dim")
        if self._legend:
            yield from _explain(rows, options.max_width, ascii_only)


def _draw(lane: Lane, total: float, width: int, ascii_only: bool) -> Text:
    cells = _cells(lane, total, width)
    marks: dict[int, MarkKind] = {}
    for mark in lane.marks:
        marks[min(int(mark.at / total * width), width - 1)] = mark.kind
    text = Text()
    looks = [_MARKS[marks[at]] if at in marks else kind and _SPANS[kind] for at, kind in enumerate(cells)]
    for look, run in itertools.groupby(looks):
        count = len(list(run))
        if look is None:
            text.append(" " * count)
        else:
            glyph, plain, style, _ = look
            text.append((plain if ascii_only else glyph) * count, style)
    text.rstrip()
    return text


def _cells(lane: Lane, total: float, width: int) -> list[SpanKind | None]:
    """What fills most of each column. Work that fills most of none still gets the column it begins in."""
    covered: list[dict[SpanKind, float]] = [{} for _ in range(width)]
    cell = total / width
    for span in lane.spans:
        for at in range(int(span.start / cell), min(int(span.end / cell) + 1, width)):
            share = min(span.end, (at + 1) * cell) - max(span.start, at * cell)
            if share > 0:
                covered[at][span.kind] = covered[at].get(span.kind, 0.0) + share
    cells: list[SpanKind | None] = []
    for kinds in covered:
        # Half a column is enough: what is less would make every span look longer than it is.
        enough = sum(kinds.values()) >= cell / 2
        cells.append(max(kinds.items(), key=operator.itemgetter(1))[0] if enough else None)
    for span in lane.spans:
        first = min(int(span.start / cell), width - 1)
        last = min(int(span.end / cell), width - 1)
        if span.kind in _WORK and all(cells[at] is None for at in range(first, last + 1)):
            cells[first] = span.kind
    return cells


def _axis(total: float, width: int) -> str:
    """Ticks in round numbers of milliseconds."""
    per_column = total * 1000 / width
    step = next(size for size in _round_numbers() if size / per_column >= _MIN_TICK)
    line = [" "] * width
    tick = 0.0
    while (column := round(tick / per_column)) < width:
        label = f"{tick:g}" + (" ms" if tick == 0 else "")
        if column + 1 + len(label) <= width:
            line[column : column + 1 + len(label)] = "|" + label
        tick += step
    return "".join(line).rstrip()


def _round_numbers() -> Sequence[float]:
    return [base * 10**power for power in range(-2, 8) for base in (1, 2, 5)]


def _explain(rows: Sequence[Sequence[Lane]], width: int, ascii_only: bool) -> Iterator[Text]:
    """The legend: what was drawn, and no more; no entry is broken over lines."""
    spans = {span.kind for row in rows for lane in row for span in lane.spans if span.end > span.start}
    marks = {mark.kind for row in rows for lane in row for mark in lane.marks}
    used = [_SPANS[kind] for kind in _SPANS if kind in spans] + [_MARKS[kind] for kind in _MARKS if kind in marks]
    line = Text()
    for glyph, plain, style, name in used:
        entry = Text().append(plain if ascii_only else glyph, style).append(f" {name}", "dim")
        if line and len(line) + 3 + len(entry) > width:
            yield line
            line = Text()
        line.append("   " if line else "").append_text(entry)
    if line:
        yield line


def _fit(label: str, width: int, ascii_only: bool) -> str:
    return label.ljust(width) if len(label) <= width else label[: width - 1] + ("~" if ascii_only else "…")
