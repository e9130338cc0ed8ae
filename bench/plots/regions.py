"""What is best for a cache at a trap, as regions over context length and expected wait (as the paper's figure 7)."""

from __future__ import annotations

from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asynclm.adapters.models.local.calibration import Measurement
from asynclm.adapters.models.local.costs import Costs

from . import style

KEEP: Final = "keep"
SWAP: Final = "swap"
RECOMPUTE: Final = "recompute"

_SIZE: Final = (6.4, 4.6)  # inches
_STEPS: Final = 400  # of the boundaries
_BEYOND: Final = 4  # times the longest that was measured
_LONGEST_MS: Final = 100_000.0
_EXAMPLE: Final = (300, 100.0)  # tokens, ms: the paper's
_FILLS: Final = {KEEP: "#EEEEEE", SWAP: style.SKY, RECOMPUTE: style.ORANGE}
_LINES: Final = {SWAP: style.BLUE, RECOMPUTE: style.RED}


def regions(measurement: Measurement) -> Figure:
    """The regions, the curves that bound them, and the points that the curves were fitted to."""
    costs = measurement.costs()
    shortest, measured = measurement.points[0].tokens, measurement.points[-1].tokens
    longest = max(measured * _BEYOND, 2 * _EXAMPLE[0])
    lengths = [shortest * (longest / shortest) ** (step / _STEPS) for step in range(_STEPS + 1)]
    low = min(costs.swap(shortest), costs.recompute(shortest)) / 3
    figure = Figure(figsize=_SIZE)
    axes = figure.subplots()
    _fill(axes, costs, lengths, low)
    _curves(axes, measurement, costs, lengths)
    tokens, wait = _EXAMPLE
    axes.plot(
        [tokens], [wait], marker="*", markersize=9, color=style.INK, linestyle="none", label="the paper's example"
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(shortest, longest)
    axes.set_ylim(low, _LONGEST_MS)
    axes.set_xticks(ticks := [2**power for power in range(4, 21) if shortest <= 2**power <= longest])
    axes.set_xticklabels([f"{tick:,}" for tick in ticks])
    axes.set_xlabel("context, tokens", fontsize=style.SMALL)
    axes.set_ylabel("expected wait, ms", fontsize=style.SMALL)
    axes.tick_params(labelsize=style.SMALL, colors=style.INK)
    axes.legend(loc="upper left", fontsize=style.SMALL, framealpha=0.9)
    below = [
        f"Measured up to {measured:,} tokens, dashed beyond. Keep: all else would take longer than the wait.",
        "The paper's rule; while memory isn't short, the engine keeps in any case.",
    ]
    style.lay_out(figure, "At a trap: what is best for the cache", [measurement.engine], below)
    return figure


def _fill(axes: Axes, costs: Costs, lengths: list[float], low: float) -> None:
    """Below both curves it is kept; above, the lower one says what is best."""
    swap, recompute = [costs.swap(n) for n in lengths], [costs.recompute(n) for n in lengths]
    least = [min(pair) for pair in zip(swap, recompute, strict=True)]
    swaps = [a < b for a, b in zip(swap, recompute, strict=True)]
    axes.fill_between(lengths, [low] * len(lengths), least, color=_FILLS[KEEP], linewidth=0, label=KEEP)
    for name, where in ((SWAP, swaps), (RECOMPUTE, [not each for each in swaps])):
        if any(where):
            top = [_LONGEST_MS] * len(lengths)
            axes.fill_between(
                lengths, least, top, where=where, color=_FILLS[name], alpha=0.45, linewidth=0, label=f"{name} is best"
            )


def _curves(axes: Axes, measurement: Measurement, costs: Costs, lengths: list[float]) -> None:
    points = measurement.points
    measured = {
        SWAP: [point.swap_out + point.swap_in for point in points],
        RECOMPUTE: [point.recompute for point in points],
    }
    inside = [n for n in lengths if n <= points[-1].tokens]
    outside = [inside[-1], *(n for n in lengths if n > points[-1].tokens)]
    for name, curve in ((SWAP, costs.swap), (RECOMPUTE, costs.recompute)):
        color = _LINES[name]
        axes.plot(inside, [curve(n) for n in inside], color=color, linewidth=1.2, label=f"{name}: what it costs")
        axes.plot(outside, [curve(n) for n in outside], color=color, linewidth=1.2, linestyle="--")
        at = [point.tokens for point in points]
        axes.plot(at, measured[name], color=color, marker="o", markersize=3.5, linestyle="none")
