"""Pictures of evaluations, as PNG, SVG or PDF: `draw` for a report, `draw_timeline` for the runs of one case,
`draw_regions` for what is best at a trap, `draw_local` for the local engine.

Everything is drawn with matplotlib's `Figure` alone: no pyplot, no window, nothing global. The functions that make a
`Figure` write no file, and those that write one know nothing of what is on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from asynclm.adapters.models.local.calibration import Measurement
from asynclm.bench.local.results import LocalReport
from asynclm.bench.results import Report, Result

from .bars import bars
from .heatmap import heat_map
from .local import local
from .regions import regions
from .timeline import timelines

__all__ = ["check", "draw", "draw_local", "draw_regions", "draw_timeline", "figure"]

_DPI: Final = 200
# Nothing that changes from one drawing of the same figures to the next.
_METADATA: Final[dict[str, dict[str, None]]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
_KINDS: Final[dict[str, Callable[[Report], Figure]]] = {
    "parallel": bars,
    "multistep": bars,
    "interrupts": bars,
    "lpt": bars,
    "sweep": heat_map,
}


def figure(report: Report) -> Figure:
    """The picture for that kind of report. Raises ValueError for a kind that has none, or a report without results."""
    if report.kind not in _KINDS:
        raise ValueError(f"there is no picture for a report of kind {report.kind!r}, only for {', '.join(_KINDS)}")
    if not report.results:
        raise ValueError("the report holds no results: there is nothing to draw")
    return _KINDS[report.kind](report)


def draw(report: Report, path: Path) -> None:
    """Draw a report: bars by method, or for a sweep a heat map. The suffix says whether as PNG, SVG or PDF.

    Raises ValueError for another suffix or a report that can't be drawn, OSError if the file can't be written.
    """
    check(path)
    _save(figure(report), path)


def draw_timeline(results: Sequence[Result], path: Path) -> None:
    """Draw the runs of one case, a panel for each method on one axis of time; the results must hold their timelines.

    Raises as `draw` does.
    """
    check(path)
    _save(timelines(results), path)


def draw_regions(measurement: Measurement, path: Path) -> None:
    """Draw what is best for a cache at a trap, by context length and wait. Raises as `draw` does."""
    check(path)
    _save(regions(measurement), path)


def draw_local(report: LocalReport, path: Path) -> None:
    """Draw the methods on a local engine. Raises as `draw` does."""
    check(path)
    if not report.runs:
        raise ValueError("the report holds no runs: there is nothing to draw")
    _save(local(report), path)


def check(path: Path) -> None:
    """Raises ValueError if nothing can be drawn into a file of that name."""
    if path.suffix.lower() not in _METADATA:
        raise ValueError(f"{path}: pictures are written as {', '.join(_METADATA)}")


def _save(figure: Figure, path: Path) -> None:
    suffix = path.suffix.lower()
    figure.savefig(path, dpi=_DPI, format=suffix[1:], metadata=_METADATA[suffix], facecolor="white")
