"""The methods on a local engine: bars of latency for each dataset, with what theory says of Async."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asynclm.bench.local.report import ratios
from asynclm.bench.local.results import WAYS, LocalReport, Ran

from . import style

_COLORS: Final = {
    "in-sequence": style.PINK,
    "sync": style.GREY,
    "parallel": style.DARK,
    "resume": style.ORANGE,
    "resume-cold": style.YELLOW,
}
_CLOCKS: Final = {"wall": "real time", "own": "the engine's own time, without what others took of its core"}
_WIDTH: Final = 7.0  # inches
_BAR: Final = 0.32


def local(report: LocalReport) -> Figure:
    """A panel for each dataset; in each a bar for each method, how many times faster than Sync beside it."""
    datasets = list(dict.fromkeys(ran.dataset for ran in report.runs))
    heights = [_BAR * len(_ways(report.runs, dataset)) + 0.6 for dataset in datasets]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 1.5))
    grid = figure.subplots(len(datasets), 1, squeeze=False, height_ratios=heights)
    for axes, dataset in zip(grid[:, 0], datasets, strict=True):
        runs = [ran for ran in report.runs if ran.dataset == dataset]
        _panel(axes, runs)
        cases = len({ran.case for ran in runs})
        axes.set_title(f"{dataset}: {cases} case{'s' if cases > 1 else ''}", loc="left", fontsize=style.TEXT)
    grid[-1, 0].set_xlabel("latency from first to last token, s: mean", fontsize=style.SMALL)
    above = [
        report.engine,
        f"its output forced; {report.step_ms:.1f} ms a token at first, tools {report.tool_ms or 0:.0f} ms in the mean",
        f"{_CLOCKS[report.clock]}; load {' to '.join(f'{load:.1f}' for load in report.load)} on {report.cores} cores",
    ]
    below = [
        f"Speeds over Sync ({style.TIMES}) are the mean of the ratios. Dashed: the bound in sequence, from G and E."
    ]
    style.lay_out(figure, "In sequence, or stop and resume", above, below)
    return figure


def _ways(runs: Sequence[Ran], dataset: str) -> list[str]:
    return [name for name in WAYS if any(ran.way == name and ran.dataset == dataset for ran in runs)]


def _panel(axes: Axes, runs: Sequence[Ran]) -> None:
    ways = _ways(runs, runs[0].dataset)
    for place, way in enumerate(ways):
        mean = statistics.mean(ran.latency_s for ran in runs if ran.way == way)
        axes.barh(place, mean, height=0.66, color=_COLORS[way], label=WAYS[way].title)
        speeds = ratios(runs, "sync", way)
        beside = f" {mean:.1f} s" + (f", {statistics.mean(speeds):.2f}{style.TIMES}" if speeds else "")
        axes.annotate(beside, (mean, place), va="center", fontsize=style.SMALL, color=style.INK)
        bounds = [ran.theory["in_sequence"] for ran in runs if ran.way == way and ran.theory]
        if WAYS[way].inject and bounds:
            at = statistics.mean(bounds)
            axes.plot([at, at], [place - 0.45, place + 0.45], color=style.INK, linewidth=1.2, linestyle=(0, (3, 2)))
    axes.set_yticks(range(len(ways)), [WAYS[way].title for way in ways])
    axes.set_ylim(len(ways) - 0.4, -0.6)
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    style.bare(axes)
