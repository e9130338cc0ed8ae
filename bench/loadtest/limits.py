"""The limits of the proxy's costs on the wire, and the table that holds what was measured against them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from asynclm.bench.loadtest.load import Measured

DIRECT: Final = "direct"
PASS: Final = "pass-through"
CML: Final = "CML mode"
MODES: Final = (PASS, CML)

Reading = Callable[[Measured, Measured | None], float]  # of one run, and of direct access in the same round


class Limit(NamedTuple):
    """One line of the table: what is read from which scenario, and the limit for pass-through and for CML mode."""

    what: str
    unit: str
    scenario: str
    read: Reading
    limits: tuple[float, float]
    at_least: bool = False


def _rate(run: Measured, direct: Measured | None) -> float:
    assert direct is not None
    return run.chunks_per_s / direct.chunks_per_s


def _added_ms(run: Measured, direct: Measured | None) -> float:
    assert direct is not None
    assert run.first_p50_ms is not None
    assert direct.first_p50_ms is not None
    return run.first_p50_ms - direct.first_p50_ms


LIMITS: Final = (
    Limit("chunks/s over direct", "", "chunks", _rate, (0.70, 0.40), at_least=True),
    Limit("CPU a chunk, saturated", "us", "chunks", lambda run, _: run.cpu_us_per_chunk, (15, 30)),
    Limit("CPU a chunk, at a model's pace", "us", "paced32", lambda run, _: run.cpu_us_per_chunk, (200, 250)),
    Limit("CPU a request", "us", "reqs", lambda run, _: run.cpu_us_per_request, (1_500, 2_500)),
    Limit("added time to first chunk, 32 clients, p50", "ms", "ttft32", _added_ms, (2, 3)),
    Limit("memory at 500 streams", "MiB", "rss", lambda run, _: run.rss_peak_mib, (80, 120)),
)


@dataclass(frozen=True)
class Row:
    """A line of the table; pairs are pass-through, CML mode. `measured` is the median over the rounds."""

    what: str
    unit: str
    at_least: bool
    limits: tuple[float, float]
    measured: tuple[float, float]
    ok: bool
    verdict: str


def rows(measured: Sequence[Measured]) -> list[Row]:
    """A row for each limit whose scenario was run."""
    direct = {(run.scenario, run.round): run for run in measured if run.target == DIRECT}
    result = []
    for limit in LIMITS:
        runs = [run for run in measured if run.scenario == limit.scenario]
        if not runs:
            continue
        values = tuple(
            statistics.median(
                limit.read(run, direct.get((run.scenario, run.round))) for run in runs if run.target == mode
            )
            for mode in MODES
        )
        missed = [
            mode
            for mode, value, bound in zip(MODES, values, limit.limits, strict=True)
            if (value < bound if limit.at_least else value > bound)
        ]
        verdict = f"{'under' if limit.at_least else 'over'}: {', '.join(missed)}" if missed else "ok"
        pair = (values[0], values[1])
        result.append(Row(limit.what, limit.unit, limit.at_least, limit.limits, pair, not missed, verdict))
    return result


def table(rows: Sequence[Row], measured: Sequence[Measured]) -> str:
    """The rows for people, and what else the machine did meanwhile."""
    lines = [f"{'':48}{PASS:^20}{CML:^20}", f"{'':48}{'limit':>9}{'measured':>10}{'limit':>10}{'measured':>10}"]
    for row in rows:
        what = f"{row.what}, {row.unit}" if row.unit else row.what
        sign = ">=" if row.at_least else "<="
        cells = "".join(
            f"{f'{sign} {_number(limit)}':>{width}}{_number(value):>10}"
            for limit, value, width in zip(row.limits, row.measured, (9, 10), strict=True)
        )
        lines.append(f"{what:48}{cells}  {row.verdict}")
    rounds = max(run.round for run in measured) + 1
    busy = statistics.median(run.other_cores for run in measured)
    over = f"{rounds} round{'s' if rounds > 1 else ''}"
    cores = f"{busy:.1f} of the machine's {os.cpu_count()} cores"
    lines.append(f"Medians of {over}. Other processes kept {cores} busy.")
    return "\n".join(lines)


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
