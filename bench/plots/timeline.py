"""Runs of one case as a picture: lanes for streams, branches and calls, a panel for each method on one axis of time.

The lanes are those of the terminal's picture (`proxy/lanes.py`); a call's lane also shows when it was written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from asynclm.bench.results import Result
from asynclm.cml.timeline import Timeline
from asynclm.proxy.lanes import Lane, MarkKind, Span, SpanKind, lanes, length

from . import style


class _Look(msgspec.Struct, frozen=True):
    """How a stretch of time is drawn: as a bar, a hatched bar, or a thin line. `apart`: from the one that follows."""

    name: str
    color: str
    hatch: str = ""
    thin: bool = False
    apart: bool = False

    @property
    def height(self) -> float:
        """Out of a lane's 1."""
        return 0.1 if self.thin else 0.66

    def colors(self) -> dict[str, Any]:
        """What matplotlib's patches take."""
        if self.hatch:
            return {"facecolor": "white", "edgecolor": self.color, "hatch": self.hatch, "linewidth": 0.4}
        return {"facecolor": self.color, "edgecolor": "white", "linewidth": 0.5 if self.apart else 0}


_SPANS: Final[dict[SpanKind, _Look]] = {
    "wait": _Look("waits for its first token", style.GREY, hatch="//////"),
    "text": _Look("writes text", style.SKY),
    "ahead": _Look("writes ahead, held back", style.SKY, hatch="......"),
    "block": _Look("writes a call or a trap", style.BLUE, apart=True),
    "paused": _Look("waits at a trap", style.ORANGE, thin=True),
    "queued": _Look("call waits to be run", style.DARK, thin=True),
    "running": _Look("call runs", style.GREEN),
    "failed": _Look("call runs, and fails", style.RED, hatch="xxxxx"),
    "held": _Look("result is not yet told", style.PINK, thin=True),
}
_MARKS: Final[dict[MarkKind, tuple[str, str, str]]] = {
    "interrupt": ("interrupt: results are told", "v", style.PINK),
    "trap": ("trap", "D", style.ORANGE),
    "cached": ("result from the cache", "o", style.GREEN),
    "delivered": ("told to the model", "o", style.PINK),
    "rejected": ("rejected", "X", style.RED),
    "cancelled": ("cancelled", "X", style.RED),
    "outside": ("outside interrupt", "^", style.INK),
}
# What ends a stretch of writing, so that a block may begin behind it.
_BORDERS: Final = frozenset(
    {"first_token", "adopted", "text", "thinking", "call", "rejected", "forged", "trap", "interrupt"}
)

_WIDTH: Final = 7.4  # inches
_LANE: Final = 0.17
_ABOVE: Final = 0.3  # of a lane
_LABEL: Final = 34  # characters


def timelines(results: Sequence[Result]) -> Figure:
    """A panel for each result. Raises ValueError for one without its timeline, or for none at all."""
    runs = []
    for result in results:
        if result.timeline is None or not result.timeline.entries:
            raise ValueError(f"{result.case}, {result.method}: the result holds no timeline to draw")
        runs.append((result, result.timeline, _lanes(result.timeline)))
    if not runs:
        raise ValueError("there are no runs to draw")
    heights = [_LANE * len(rows) + 0.34 for _, _, rows in runs]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 1.75))
    grid = figure.subplots(len(runs), 1, squeeze=False, sharex=True, height_ratios=heights)
    cases = list(dict.fromkeys(result.case for result in results))
    settings = list(dict.fromkeys(result.setting for result in results))
    for axes, (result, timeline, rows) in zip(grid[:, 0], runs, strict=True):
        _panel(axes, rows, length(timeline))
        named = [style.title_of(result.method)]
        named += [result.case] if len(cases) > 1 else []
        named += [style.cell(result.setting)] if len(settings) > 1 else []
        axes.set_title("; ".join(named), loc="left", fontsize=style.TEXT, fontweight="bold", pad=3)
        told = f"{result.latency_s:.2f} s from first to last token"
        axes.set_title(told, loc="right", fontsize=style.SMALL, color=style.FAINT, pad=3)
    grid[0, 0].set_xlim(0, max(length(timeline) for _, timeline, _ in runs) * 1.01)
    grid[-1, 0].set_xlabel("s since the request", fontsize=style.SMALL)
    figure.legend(
        handles=_legend([row for _, _, rows in runs for row in rows]),
        loc="outside lower left",
        ncols=4,
        fontsize=style.SMALL,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.4,
    )
    title = f"Case {cases[0]}" if len(cases) == 1 else f"{len(cases)} cases"
    above = [style.speeds(settings[0])] if len(settings) == 1 else []
    style.lay_out(figure, title, [*above, style.SIMULATED])
    return figure


class _Row(msgspec.Struct):
    """A lane, and when its call was written."""

    lane: Lane
    written: Span | None = None


def _lanes(timeline: Timeline) -> list[_Row]:
    """Streams first, then the calls by their ids: in the same order whatever the method."""
    written = _written(timeline)
    found = lanes(timeline)
    outside = [found.pop()] if found and found[-1].label == "outside" else []
    begin = len(found) - len(written)
    calls = [_Row(lane, span) for lane, span in zip(found[begin:], written, strict=True)]
    calls.sort(key=lambda row: [(len(part), part) for part in re.findall(r"\d+|\D+", row.lane.label)])
    return [_Row(lane) for lane in [*outside, *found[:begin]]] + calls


def _written(timeline: Timeline) -> list[Span]:
    """When each call's block was written, in the calls' order."""
    since: dict[int | None, float] = {}
    spans: dict[int, Span] = {}
    for entry in timeline.entries:
        if entry.call is not None and entry.call not in spans:
            begin = since.get(entry.stream, entry.t) if entry.kind in ("call", "rejected") else entry.t
            spans[entry.call] = Span(begin, entry.t, "block")
        if entry.kind in _BORDERS:
            since[entry.stream] = entry.t
    return [span for _, span in sorted(spans.items())]


def _panel(axes: Axes, rows: Sequence[_Row], end: float) -> None:
    for place, row in enumerate(rows):
        for span in [*([row.written] if row.written else []), *row.lane.spans]:
            look = _SPANS[span.kind]
            axes.broken_barh(
                [(span.start, span.end - span.start)],
                (place - look.height / 2, look.height),
                **look.colors(),
                gid=span.kind,
            )
        for mark in row.lane.marks:
            _, marker, color = _MARKS[mark.kind]
            axes.plot(
                mark.at,
                place - _ABOVE if mark.kind == "interrupt" else place,  # it comes where a trap or a block ends
                marker,
                color=color,
                markersize=4.6,
                markeredgecolor="white",
                markeredgewidth=0.5,
                clip_on=False,
                gid=mark.kind,
            )
    axes.axvline(end, color=style.INK, linewidth=0.8, gid="end")
    axes.set_yticks(range(len(rows)), [_shortened(row.lane.label) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    style.bare(axes)
    axes.tick_params(labelsize=style.SMALL)
    axes.tick_params(axis="y", labelsize=style.SMALL - 1)


def _legend(rows: Sequence[_Row]) -> list[Artist]:
    """What was drawn, and no more."""
    spans = {span.kind for row in rows for span in row.lane.spans if span.end > span.start}
    marks = {mark.kind for row in rows for mark in row.lane.marks}
    stretches: list[Artist] = [
        Line2D([], [], color=look.color, linewidth=1.8, label=look.name)
        if look.thin
        else Patch(**look.colors(), label=look.name)
        for kind, look in _SPANS.items()
        if kind in spans
    ]
    points: list[Artist] = [
        Line2D([], [], linestyle="", marker=marker, color=color, markersize=5, label=name)
        for kind, (name, marker, color) in _MARKS.items()
        if kind in marks
    ]
    return stretches + points


def _shortened(label: str) -> str:
    return label if len(label) <= _LABEL else label[: _LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"
