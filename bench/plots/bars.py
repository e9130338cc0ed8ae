"""Bars of mean latency by method, whiskers from the 10th to the 90th percentile (as the paper's figures 5, 6 and 8).

Beside each bar stands what it shows, in figures: the mean, and how many times faster that is than the baselines.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asynclm.bench.methods import ALL, PARALLEL, RANDOM, SYNC
from asynclm.bench.report import methods_of, percentile, speed
from asynclm.bench.results import Report, Result, Setting

from . import style

_TITLES: Final = {
    "parallel": "Independent calls",
    "multistep": "Multi-step parallel calls",
    "interrupts": "Tasks that arrive as outside interrupts",
    "lpt": "The order in which calls are written",
}
_WIDTH: Final = 7.0  # inches
_BAR: Final = 0.32
_COLUMNS: Final = (0.66, 1.42, 2.30)  # where the columns of figures end, inches behind the bars


def bars(report: Report) -> Figure:
    """A panel for each dataset and setting; in each, a bar for each method in the order of the results."""
    panels: dict[tuple[str, Setting], list[Result]] = {}
    for result in report.results:
        panels.setdefault((_dataset(result.case), result.setting), []).append(result)
    heights = [_BAR * len(methods_of(results)) + 0.7 for results in panels.values()]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 1.35))
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)
    settings = {setting for _, setting in panels}
    for axes, ((dataset, setting), results) in zip(grid[:, 0], panels.items(), strict=True):
        _panel(axes, results)
        if len(panels) > 1:
            named = f"{dataset}: {style.count(results)}"
            if len(settings) > 1:
                named += f"; {style.speeds(setting)}"
            axes.set_title(named, loc="left", fontsize=style.TEXT, color=style.INK, pad=4)
    grid[0, 0].set_xlim(left=0)
    grid[-1, 0].set_xlabel("latency from first to last token, s: mean, 10th and 90th percentile", fontsize=style.SMALL)
    above = [style.count(report.results), style.origin(report)]
    if len(settings) == 1:
        above[0] += f"; {style.speeds(settings.pop())}"
    below = ["Speeds are the mean of the cases' ratios."]
    if any(result.bounds for result in report.results):
        below[0] += " Dashed: the mean of the lower bounds that theory gives."
    style.lay_out(figure, _TITLES[report.kind], above, below + style.repeat(report))
    return figure


def _dataset(case: str) -> str:
    """Where a case comes from, by its id: BFCL's file, but for the two halves of its parallel questions."""
    return re.sub(r"(_multiple)?[_\d-]*$", "", case).replace("_", "-")


def _panel(axes: Axes, results: Sequence[Result]) -> None:
    methods = methods_of(results)
    baselines = [method for method in (SYNC, PARALLEL, RANDOM) if method in methods]
    _column(axes, 0, "mean", None)
    for number, baseline in enumerate(baselines, 1):
        _column(axes, number, f"speed over\n{style.title_of(baseline)}", None)
    for place, method in enumerate(methods):
        latencies = [result.latency_s for result in results if result.method == method]
        mean, low, high = statistics.mean(latencies), percentile(latencies, 10), percentile(latencies, 90)
        axes.barh(place, mean, height=0.66, color=style.color(method), label=style.title_of(method))
        # The mean of a skewed sample can lie outside its percentiles.
        whiskers = [[max(mean - low, 0)], [max(high - mean, 0)]]
        axes.errorbar(mean, place, xerr=whiskers, color=style.INK, capsize=2.5, linewidth=1)
        _column(axes, 0, f"{mean:.2f} s", place)
        for number, baseline in enumerate(baselines, 1):
            times = speed(results, baseline, method)[0]
            _column(axes, number, f"{times:.2f}{style.TIMES}", place, bold=number == len(baselines))
    _bounds(axes, results, methods)
    axes.set_yticks(range(len(methods)), [style.title_of(method) for method in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    style.bare(axes)


def _column(axes: Axes, number: int, text: str, place: int | None, *, bold: bool = False) -> None:
    """Write into a column to the right of the bars; at the top of it where `place` is None."""
    axes.annotate(
        text,
        (1, 1 if place is None else place),
        (_COLUMNS[number] * 72, 3 if place is None else 0),
        xycoords="axes fraction" if place is None else axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        va="bottom" if place is None else "center",
        fontsize=style.SMALL if place is None else style.TEXT,
        fontweight="bold" if bold else "normal",
        color=style.FAINT if place is None else style.INK,
        annotation_clip=False,
    )


def _bounds(axes: Axes, results: Sequence[Result], methods: Sequence[str]) -> None:
    """A line across the bars of the methods that a bound holds for: its mean over the cases."""
    for name, inject in (("stop_and_resume", False), ("in_sequence", True)):
        values = {result.case: result.bounds[name] for result in results if name in result.bounds}
        held = [place for place, method in enumerate(methods) if method in ALL and ALL[method].inject == inject]
        if held and values:
            axes.plot(
                [statistics.mean(values.values())] * 2,
                [held[0] - 0.45, held[-1] + 0.45],
                color=style.INK,
                linewidth=1.2,
                linestyle=(0, (3, 2)),
                label=f"bound: {name}",
            )
