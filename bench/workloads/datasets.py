"""The datasets by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from . import multistep, parallel
from .case import Case

# name: cases by count, seed and the tools' mean time (ms)
DATASETS: Final[dict[str, Callable[[int, int, float], list[Case]]]] = {
    "parallel": partial(parallel.draw, "parallel"),
    "live-parallel": partial(parallel.draw, "live-parallel"),
    "multi-step": multistep.single,
    "multi-step-parallel": multistep.joined,
}


def load_cases(dataset: str, count: int, seed: int, tool_ms: float) -> list[Case]:
    """Draw `count` cases, or all there are, the same ones for the same seed; `tool_ms` is their tools' mean time.

    Raises `MissingDatasetError`, and ValueError for a count that can't be drawn.
    """
    return DATASETS[dataset](count, seed, tool_ms)
