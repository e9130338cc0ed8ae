"""A sweep over TTFT and tool time as a heat map: the speed over Sync-Parallel in each cell, a panel for each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from asynclm.bench.methods import PARALLEL
from asynclm.bench.report import methods_of, speed
from asynclm.bench.results import Report, Result

from . import style

_CELL: Final = (0.62, 0.36)  # inches
_ACROSS: Final = 3  # panels
_MIN_WIDTH: Final = 5.6
# The colours end here, above and below 1, so that 1.1 can be told from 1. Blue and red are safe for the colour-blind.
_LIMIT: Final = 1.6
_COLOURS: Final = "RdBu"
_MARKS: Final = (1 / _LIMIT, 0.8, 1.0, 1.25, _LIMIT)
_DARK: Final = 0.62  # of the scale: from there on, text is white


def heat_map(report: Report) -> Figure:
    """Cells are coloured by the logarithm of the speed: white is as fast as Sync-Parallel, blue faster, red slower.

    Raises ValueError if there is no Sync-Parallel to compare with, or more than one time per token.
    """
    methods = [method for method in methods_of(report.results) if method != PARALLEL]
    if not methods or len(methods) == len(methods_of(report.results)):
        raise ValueError(f"a sweep is drawn as speeds over {style.title_of(PARALLEL)}: run it and what to compare")
    cells: dict[tuple[float, float], list[Result]] = {}
    for result in report.results:
        cells.setdefault((result.setting.ttft_ms, result.setting.tool_ms), []).append(result)
    tpots = {result.setting.tpot_ms for result in report.results}
    if len(tpots) > 1:
        raise ValueError("a sweep is drawn over TTFT and tool time: run it with one time per token")
    ttfts, tools = sorted({ttft for ttft, _ in cells}), sorted({tool for _, tool in cells})
    across = min(_ACROSS, len(methods))
    down = math.ceil(len(methods) / across)
    width = max(across * (len(tools) * _CELL[0] + 0.3) + 1.2, _MIN_WIDTH)
    figure = Figure(figsize=(width, down * (len(ttfts) * _CELL[1] + 0.4) + 2.0))
    scale = Normalize(-math.log(_LIMIT), math.log(_LIMIT))
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for number, axes in enumerate(grid.flat):
        if number >= len(methods):
            axes.set_visible(False)
            continue
        values = [[_speed(cells.get((ttft, tool), []), methods[number]) for tool in tools] for ttft in ttfts]
        _panel(axes, values, scale)
        axes.set_title(style.title_of(methods[number]), loc="left", fontsize=style.TEXT, fontweight="bold")
        axes.set_xticks(range(len(tools)), [f"{tool:g}" for tool in tools])
        axes.set_yticks(range(len(ttfts)), [f"{ttft:g}" for ttft in ttfts])
        if number % across == 0:
            axes.set_ylabel("TTFT, ms", fontsize=style.SMALL)
        if number + across >= len(methods):
            axes.set_xlabel("tools, ms in the mean", fontsize=style.SMALL)
            axes.tick_params(labelbottom=True)
    bar = figure.colorbar(ScalarMappable(scale, _COLOURS), ax=grid, extend="both", shrink=0.8, aspect=30)
    bar.set_ticks([math.log(mark) for mark in _MARKS], labels=[f"{mark:.3g}{style.TIMES}" for mark in _MARKS])
    bar.ax.tick_params(labelsize=style.SMALL)
    lines = [f"{style.count(report.results)}; {tpots.pop():g} ms a token", style.origin(report)]
    below = ["Speeds are the mean of the cases' ratios; above 1 is faster than Sync-Parallel."]
    style.lay_out(figure, "Speed over Sync-Parallel", lines, below + style.repeat(report))
    return figure


def _speed(results: Sequence[Result], method: str) -> float:
    """Not a number where the cell has not both methods."""
    return speed(results, PARALLEL, method)[0] if {PARALLEL, method} <= set(methods_of(results)) else math.nan


def _panel(axes: Axes, values: Sequence[Sequence[float]], scale: Normalize) -> None:
    logarithms = [[math.log(value) for value in row] for row in values]
    axes.imshow(logarithms, cmap=_COLOURS, norm=scale, aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if not math.isnan(value):
                color = "white" if abs(math.log(value)) > _DARK * math.log(_LIMIT) else style.INK
                told = f"{value:.2f}"
                axes.text(column, row, told, ha="center", va="center", fontsize=style.TEXT, color=color)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=style.TEXT, colors=style.INK)
