"""The evaluation's tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from rich import box
from rich.table import Table

from asynclm.bench.methods import ALL, AUTO, COALESCE, FORK, IMMEDIATE, PARALLEL, RANDOM, SYNC
from asynclm.bench.results import Result, Setting

_CAPTION: Final = (
    "Latency is from the model's first token to the last. Speed is the mean of the cases' ratios; in brackets, "
    "the ratio of the mean latencies."
)
_SWEEP_CAPTION: Final = (
    "Speed over Sync-Parallel, mean of the cases' ratios. Bound: the longest chain alone, with one time to first token "
    "for each further step. Best: the best of Naive, Coalesce and Fork."
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


def heading(dataset: str, results: Sequence[Result]) -> str:
    """One line that says what the table below it is about."""
    setting = results[0].setting
    cases = len({result.case for result in results})
    return (
        f"{dataset}: {cases} case{'' if cases == 1 else 's'}; {setting.ttft_ms:g} ms to the first token, "
        f"{setting.tpot_ms:g} ms a token, tools {setting.tool_ms:g} ms"
    )


def table(results: Sequence[Result]) -> Table:
    """A row a method: latency, speed over the baselines among the methods, tokens, resumes, how many were right."""
    methods = methods_of(results)
    baselines = [method for method in (SYNC, PARALLEL, RANDOM) if method in methods]
    found = _empty(_CAPTION)
    found.add_column("\nmethod", no_wrap=True)
    over = [f"over\n{ALL[baseline].title.removeprefix('Sync-')}" for baseline in baselines]
    tokens = ("tokens\nread", "tokens\nwritten")
    for name in ("mean\ns", "\np10", "\np90", *over, *tokens, "\nresumes", "\nright"):
        found.add_column(name, justify="right", no_wrap=True)
    for method in methods:
        runs = [result for result in results if result.method == method]
        latencies = [run.latency_s for run in runs]
        found.add_row(
            ALL[method].title,
            f"{statistics.mean(latencies):.3f}",
            f"{percentile(latencies, 10):.2f}",
            f"{percentile(latencies, 90):.2f}",
            *(_both(*speed(results, baseline, method), brackets=baseline != SYNC) for baseline in baselines),
            f"{statistics.mean(run.prompt_tokens for run in runs):.0f}",
            f"{statistics.mean(run.completion_tokens for run in runs):.0f}",
            f"{statistics.mean(run.streams - 1 for run in runs):.1f}",
            f"{sum(not run.problems for run in runs)}/{len(runs)}",
        )
    return found


def sweep(results: Sequence[Result]) -> Table:
    """A row a setting: speeds over Sync-Parallel, which must be among the methods, and how near the best they come."""
    methods = [method for method in methods_of(results) if method != PARALLEL]
    cells: dict[Setting, list[Result]] = {}
    for result in results:
        cells.setdefault(result.setting, []).append(result)
    found = _empty(_SWEEP_CAPTION)
    titles = (ALL[method].title.removeprefix("Async-") for method in methods)
    for name in ("TTFT\nms", "tools\nms", *(f"\n{title}" for title in titles), "\nbound"):
        found.add_column(name, justify="right", no_wrap=True)
    for name in ("Auto/\nbest", "Fork/\nbound", "\nright"):
        found.add_column(name, justify="right", no_wrap=True)
    for setting, cell in cells.items():
        over = {method: speed(cell, PARALLEL, method)[0] for method in methods}
        fixed = [over[method] for method in (IMMEDIATE, COALESCE, FORK) if method in over]
        bound = statistics.mean(run.latency_s / run.bounds["stop_and_resume"] for run in cell if run.method == PARALLEL)
        found.add_row(
            f"{setting.ttft_ms:g}",
            f"{setting.tool_ms:g}",
            *(f"{value:.2f}" for value in (*over.values(), bound)),
            f"{over[AUTO] / max(fixed):.3f}" if AUTO in over and fixed else "",
            f"{over[FORK] / bound:.3f}" if FORK in over else "",
            f"{sum(not run.problems for run in cell)}/{len(cell)}",
        )
    return found


def _empty(caption: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, caption=caption, caption_justify="left")


def _both(of_cases: float, of_means: float, *, brackets: bool) -> str:
    return f"{of_cases:.2f} ({of_means:.2f})" if brackets else f"{of_cases:.2f}"
