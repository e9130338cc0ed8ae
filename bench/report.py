"""The evaluation's tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from rich import box
from rich.table import Table

from asynclm.bench.methods import METHODS, PARALLEL, SYNC
from asynclm.bench.results import Result

_CAPTION: Final = (
    "Latency is from the model's first token to the last. Speed is the mean of the cases' ratios; in brackets, "
    "the ratio of the mean latencies."
)


def methods_of(results: Sequence[Result]) -> list[str]:
    """The methods among the results, in their order."""
    return list(dict.fromkeys(result.method for result in results))


def speeds(results: Sequence[Result], baseline: str, method: str) -> list[float]:
    """How many times faster `method` was than `baseline`: a ratio for each case and setting that has both."""
    slow = {(each.case, each.setting): each.latency_s for each in results if each.method == baseline}
    return [
        slow[each.case, each.setting] / each.latency_s
        for each in results
        if each.method == method and (each.case, each.setting) in slow
    ]


def speed(results: Sequence[Result], baseline: str, method: str) -> tuple[float, float]:
    """The mean of the cases' ratios, and the ratio of the mean latencies."""
    means = [statistics.mean(each.latency_s for each in results if each.method == name) for name in (baseline, method)]
    return statistics.mean(speeds(results, baseline, method)), means[0] / means[1]


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which so many percent lie, interpolated."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def table(results: Sequence[Result], title: str | None = None) -> Table:
    """A row a method: latency, speed over the baselines among the methods, tokens, resumes, how many were right."""
    methods = methods_of(results)
    baselines = [method for method in (SYNC, PARALLEL) if method in methods]
    found = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        caption=_CAPTION,
        caption_justify="left",
    )
    found.add_column("\nmethod", no_wrap=True)
    over = [f"over\n{METHODS[baseline].title.removeprefix('Sync-')}" for baseline in baselines]
    tokens = ("tokens\nread", "tokens\nwritten")
    for name in ("mean\ns", "\np10", "\np90", *over, *tokens, "\nresumes", "\nright"):
        found.add_column(name, justify="right", no_wrap=True)
    for method in methods:
        runs = [result for result in results if result.method == method]
        latencies = [run.latency_s for run in runs]
        found.add_row(
            METHODS[method].title,
            f"{statistics.mean(latencies):.3f}",
            f"{percentile(latencies, 10):.2f}",
            f"{percentile(latencies, 90):.2f}",
            *(_both(*speed(results, baseline, method), brackets=baseline == PARALLEL) for baseline in baselines),
            f"{statistics.mean(run.prompt_tokens for run in runs):.0f}",
            f"{statistics.mean(run.completion_tokens for run in runs):.0f}",
            f"{statistics.mean(run.streams - 1 for run in runs):.1f}",
            f"{sum(not run.problems for run in runs)}/{len(runs)}",
        )
    return found


def _both(of_cases: float, of_means: float, *, brackets: bool) -> str:
    return f"{of_cases:.2f} ({of_means:.2f})" if brackets else f"{of_cases:.2f}"
