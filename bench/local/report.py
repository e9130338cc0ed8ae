"""The tables of `asynclm bench local`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from rich import box
from rich.table import Table

from .results import WAYS, LocalReport, Ran, percentile

# The paper's speeds over Sync: local Llama-3.2 on independent calls, and where it says nothing of that, GPT-4o's.
PAPER: Final = {
    ("parallel", "sync"): 1.0,
    ("parallel", "parallel"): 1.3,
    ("parallel", "in-sequence"): 1.6,
    ("multi-step-parallel", "sync"): 1.0,
    ("multi-step-parallel", "parallel"): 3.2,
    ("multi-step-parallel", "in-sequence"): 5.4,
}
_RACE: Final = (
    "From the first token to the last. Over Sync: the mean of the ratios; formula: what theory says, from each "
    "Async run's own G and E. What Async reaches, 1 is all (medians): of {}; of what its order of calls allows (LPT); "
    "of that, were the steps that put interrupts in counted, too. Paper: {}."
)
_CLOCKS: Final = {"wall": "", "own": " (the engine's own time, without what others took)"}
_REACHED: Final = ("bound", "schedule", "with_interrupts")
_BOUNDS: Final = {
    "parallel": ("the paper's L_async, to the last result", "local Llama-3.2"),
    "multi-step-parallel": ("the lower bound in sequence", "GPT-4o, the most of any case"),
}


def tables(report: LocalReport) -> list[Table | str]:
    """All that was measured, a table a part."""
    found: list[Table | str] = [
        f"{report.engine}; {report.step_ms:.1f} ms a token at first{_CLOCKS[report.clock]}; load average "
        f"{' to '.join(f'{load:.1f}' for load in report.load)} on {report.cores} cores"
    ]
    found += [_race(report, dataset) for dataset in dict.fromkeys(ran.dataset for ran in report.runs)]
    if report.injection:
        found.append(_injection(report))
    if report.throughput:
        found.append(_throughput(report))
    if report.stalls:
        found.append(_stalls(report))
    found += [*_monitoring(report), *_bandwidth(report)]
    found += [f"left out for want of time: {each}" for each in report.skipped]
    return found


def ratios(runs: Sequence[Ran], baseline: str, way: str) -> list[float]:
    """How many times faster a way was than the baseline, for each case and round that has both."""
    slow = {(ran.case, ran.round): ran.latency_s for ran in runs if ran.way == baseline}
    return [
        slow[ran.case, ran.round] / ran.latency_s for ran in runs if ran.way == way and (ran.case, ran.round) in slow
    ]


def reached(ran: Ran) -> dict[str, float]:
    """How much of what theory gives for Async a run reaches, 1 is all of it; nothing for a run that has no times.

    `bound`: for independent calls the paper's L_async against the time of the last result, otherwise the lower bound in
    sequence against the whole latency. `schedule`: see `theory.formulas`. `with_interrupts`: the same, and the time
    that putting interrupts in took.
    """
    if ran.measured is None:
        return {}
    theory = ran.theory
    independent = "l_async" in theory
    return {
        "bound": theory["l_async"] / ran.measured.returned_s if independent else theory["in_sequence"] / ran.latency_s,
        "schedule": theory["schedule"] / ran.latency_s,
        "with_interrupts": (theory["schedule"] + ran.measured.interrupts_s) / ran.latency_s,
    }


def factor(ran: Ran) -> float | None:
    """How many times faster than Sync theory says that Async is, from an Async run's own times, answers included."""
    return ran.theory["sync"] / ran.theory["schedule"] if ran.theory else None


def _race(report: LocalReport, dataset: str) -> Table:
    runs = [ran for ran in report.runs if ran.dataset == dataset]
    found = _empty(
        f"{dataset}: {_cases(runs)}, tools {report.tool_ms or 0:.0f} ms in the mean",
        _RACE.format(*_BOUNDS[dataset]),
    )
    found.add_column("\nmethod", no_wrap=True)
    for name in (
        "\ns",
        "over\nSync",
        "\nformula",
        "the\npaper",
        "of the\nbound",
        "of\nLPT",
        "with\nintr.",
        "re-\nsumes",
    ):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("\nok", justify="right", no_wrap=True)
    for way in (name for name in WAYS if any(ran.way == name for ran in runs)):
        mine = [ran for ran in runs if ran.way == way]
        speeds = ratios(runs, "sync", way)
        is_async = WAYS[way].inject
        factors = [value for ran in mine if (value := factor(ran)) is not None] if is_async else []
        found.add_row(
            WAYS[way].title,
            f"{statistics.mean(ran.latency_s for ran in mine):.2f}",
            f"{statistics.mean(speeds):.2f}" if speeds else "",
            f"{statistics.mean(factors):.2f}" if factors else "",
            f"{PAPER[dataset, way]:.1f}" if (dataset, way) in PAPER else "",
            *(_median([reached(ran).get(each) for ran in mine]) if is_async else "" for each in _REACHED),
            f"{statistics.mean(ran.resumes for ran in mine):.1f}",
            f"{sum(not ran.problems for ran in mine)}/{len(mine)}",
        )
    return found


def _injection(report: LocalReport) -> Table:
    tokens = report.injection[0].tokens
    found = _empty(
        f"An interrupt of {tokens} tokens", "Added: its one pass. Fresh: the same tokens in a new request's prompt."
    )
    for name in ("behind tokens", "adds ms", "a token ms", "fresh ms", "fresh / adds"):
        found.add_column(name, justify="right")
    for each in report.injection:
        found.add_row(
            f"{each.context:,}",
            f"{each.inject_ms:.1f}",
            f"{each.step_ms:.1f}",
            f"{each.fresh_ms:,.1f}",
            f"{each.fresh_ms / each.inject_ms:,.1f}",
        )
    return found


def _throughput(report: LocalReport) -> Table:
    found = _empty("Runs at once", "Medians of the rounds.")
    for name in ("runs", "tokens/s", "over 1"):
        found.add_column(name, justify="right")
    one = statistics.median(report.throughput[0].tokens_per_s)
    for each in report.throughput:
        rate = statistics.median(each.tokens_per_s)
        found.add_row(str(each.runs), f"{rate:.1f}", f"{rate / one:.2f}")
    return found


def _stalls(report: LocalReport) -> Table:
    prompt = report.stalls[0].prompt
    found = _empty(f"From token to token while another run's prompt of {prompt:,} tokens is computed", "")
    for name in ("busy_chunk", "alone ms", "p50 ms", "p99 ms", "p50 / alone", "tokens meanwhile", "prompt s"):
        found.add_column(name, justify="right")
    for each in report.stalls:
        middle = statistics.median(each.steps_ms)
        found.add_row(
            str(each.busy_chunk),
            f"{each.alone_ms:.1f}",
            f"{middle:.1f}",
            f"{percentile(each.steps_ms, 99):.1f}",
            f"{middle / each.alone_ms:.1f}",
            str(len(each.steps_ms)),
            f"{each.prefill_s:.2f}",
        )
    return found


def _monitoring(report: LocalReport) -> list[Table | str]:
    each = report.monitoring
    if each is None:
        return []
    found = _empty(
        f"Token monitor with {each.tools} tools", f"Compiling the tools' grammar took {each.prepare_ms:.0f} ms, once."
    )
    for name in ("where", "tokens", "median µs", "p99 µs", "share of a step"):
        found.add_column(name, justify="right")
    for where, tokens, middle, high in (
        ("text", each.tokens, each.text_us, each.text_p99_us),
        ("calls", each.call_tokens, each.call_us, each.call_p99_us),
    ):
        found.add_row(where, str(tokens), f"{middle:.1f}", f"{high:.1f}", f"{middle / report.step_ms / 10:.3f} %")
    return [found]


def _bandwidth(report: LocalReport) -> list[Table | str]:
    each = report.bandwidth
    if each is None:
        return []
    found = _empty("One sequence against the memory's bandwidth", "")
    for name in ("weights GB", "copy GB/s", "limit tokens/s", "tokens/s", "share"):
        found.add_column(name, justify="right")
    found.add_row(
        f"{each.weight_bytes / 1e9:.2f}",
        f"{each.copy_gb_s:,.1f}",
        f"{each.limit_tokens_per_s:,.1f}",
        f"{each.engine_tokens_per_s:,.1f}",
        f"{each.engine_tokens_per_s / each.limit_tokens_per_s:.2f}",
    )
    return [found]


def _empty(title: str, caption: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption or None,
        caption_justify="left",
    )


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.3f}" if known else ""


def _cases(runs: Sequence[Ran]) -> str:
    cases, rounds = len({ran.case for ran in runs}), len({ran.round for ran in runs})
    return f"{cases} case{'s' * (cases > 1)}" + (f", {rounds} times each" if rounds > 1 else "")
