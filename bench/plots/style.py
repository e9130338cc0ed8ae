"""How the pictures look: colours, sizes, and what stands in their titles.

Colours are Okabe and Ito's, which people with any kind of colour blindness can tell apart; the baselines are grey.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asynclm.bench.methods import (
    ALL,
    AUTO,
    COALESCE,
    FORK,
    IMMEDIATE,
    IN_SEQUENCE,
    LPT,
    PARALLEL,
    RANDOM,
    SHORTEST,
    SYNC,
)
from asynclm.bench.results import Report, Result, Setting

GREY: Final = "#BBBBBB"
DARK: Final = "#888888"
ORANGE: Final = "#E69F00"
SKY: Final = "#56B4E9"
GREEN: Final = "#009E73"
YELLOW: Final = "#F0E442"
BLUE: Final = "#0072B2"
RED: Final = "#D55E00"
PINK: Final = "#CC79A7"
INK: Final = "#222222"
FAINT: Final = "#666666"

TIMES: Final = "\N{MULTIPLICATION SIGN}"

SIMULATED: Final = "model and tool times are simulated"

TITLE: Final = 11
TEXT: Final = 9
SMALL: Final = 8

_METHODS: Final = {
    SYNC: GREY,
    PARALLEL: DARK,
    IMMEDIATE: ORANGE,
    COALESCE: SKY,
    FORK: GREEN,
    AUTO: BLUE,
    IN_SEQUENCE: PINK,
    LPT: PINK,
    RANDOM: GREY,
    SHORTEST: DARK,
}


def color(method: str) -> str:
    """The colour of a method, the same in every picture."""
    return _METHODS.get(method, INK)


def title_of(method: str) -> str:
    """What a method is called in pictures and tables."""
    return ALL[method].title if method in ALL else method


def speeds(setting: Setting) -> str:
    """A setting in words."""
    return f"TTFT {setting.ttft_ms:g} ms, {setting.tpot_ms:g} ms a token, tools {setting.tool_ms:g} ms in the mean"


def cell(setting: Setting) -> str:
    """The same for a cell of a sweep, in short."""
    return f"TTFT {setting.ttft_ms:g} ms, tools {setting.tool_ms:g} ms"


def count(results: Sequence[Result]) -> str:
    """How many cases there are, in words."""
    cases = len({result.case for result in results})
    return f"{cases} cases" if cases > 1 else f"1 case ({results[0].case})"


def origin(report: Report) -> str:
    """Where the figures come from: what ran, and on which clock."""
    clock = "a virtual clock" if report.clock == "virtual" else "real time, over HTTP"
    return f"the proxy's own code on {clock}; {SIMULATED}; seed {report.seed}"


def repeat(report: Report) -> list[str]:
    """The command that repeats it, in lines that fit below a picture; no flag is parted from its value."""
    kept = report.command.replace(" ", "\N{NO-BREAK SPACE}").replace("\N{NO-BREAK SPACE}--", " --")
    lines = textwrap.wrap(kept, 108, subsequent_indent="    ", break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def lay_out(figure: Figure, title: str, above: Sequence[str], below: Sequence[str] = ()) -> None:
    """Put a title and smaller lines above the panels, and lines below them; the panels get the room that is left."""
    width, height = figure.get_size_inches()
    line, margin = 0.17, 0.10  # inches
    top = margin + 0.24 + line * len(above)
    bottom = (margin if below else 0.02) + line * len(below)
    figure.set_layout_engine(
        "constrained", rect=(0, bottom / height, 1, 1 - (top + bottom) / height), w_pad=margin, h_pad=0.06
    )
    left = margin / width
    figure.text(left, 1 - margin / height, title, va="top", fontsize=TITLE, fontweight="bold", color=INK)
    figure.text(
        left, 1 - (margin + 0.24) / height, "\n".join(above), va="top", fontsize=SMALL, color=FAINT, linespacing=1.3
    )
    if below:
        figure.text(left, margin / height, "\n".join(below), va="bottom", fontsize=SMALL, color=FAINT, linespacing=1.3)


def bare(axes: Axes) -> None:
    """Take away the lines around a panel that say nothing."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=TEXT, colors=INK)
