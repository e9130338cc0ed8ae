"""What `asynclm bench local` finds out, and the file that holds it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from asynclm.bench.analytic import Timed

VERSION: Final = 1


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A method on the local engine; `kept`: it keeps the cache of a stream that has ended for those that resume it."""

    name: str
    title: str
    policy: str
    inject: bool = False
    kept: bool = True


WAYS: Final = {
    way.name: way
    for way in (
        Way(name="in-sequence", title="Async", policy="auto", inject=True),
        Way(name="sync", title="Sync", policy="sync"),
        Way(name="parallel", title="Sync-Parallel", policy="parallel"),
        Way(name="resume", title="Resume, cached", policy="immediate"),
        Way(name="resume-cold", title="Resume, no cache", policy="immediate", kept=False),
    )
}


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a run took (s). `calls` in the order of the task; `step_s` is the median of the plain steps.

    `interrupts_s` is what it took to put the interrupts in, over what the steps would have taken without.
    `returned_s` is when the last result was there, from the first token on.
    """

    calls: tuple[Timed, ...]
    answer_s: float
    step_s: float
    tokens: int
    trap_tokens: int
    interrupts: int
    interrupts_s: float
    returned_s: float


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Times in s; `latency_s` is from the first token to the end. `theory` has what the formulas give for this
    run's own times. `host_share` is the share of the plain steps in which the engine had nothing to do.
    """

    dataset: str
    case: str
    way: str
    round: int
    prompt_tokens: int
    resumes: int
    latency_s: float
    measured: Measured | None
    theory: dict[str, float]
    host_share: float
    problems: tuple[str, ...]


class Injection(msgspec.Struct, frozen=True, kw_only=True):
    """Putting `tokens` behind a sequence of `context` tokens: what it adds (ms), what a token of the model takes there,
    and the time in which a fresh request computes all of it. The shortest of `rounds` each.
    """

    context: int
    tokens: int
    inject_ms: float
    step_ms: float
    fresh_ms: float
    rounds: int


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """So many runs at once: tokens a second of all together, in each round."""

    runs: int
    tokens_per_s: tuple[float, ...]


class Stall(msgspec.Struct, frozen=True, kw_only=True):
    """The time from token to token of a run while another one's prompt of `prompt` tokens is computed, `busy_chunk` of
    them in a pass (ms), and how long that takes (s). `alone_ms` is the median when nobody else is there.
    """

    busy_chunk: int
    prompt: int
    steps_ms: tuple[float, ...]
    alone_ms: float
    prefill_s: float


class Monitoring(msgspec.Struct, frozen=True, kw_only=True):
    """The token monitor: microseconds a token (`take` and `mask` together), medians and 99th percentiles, of `tokens`
    in text and `call_tokens` in calls, with so many tools; `prepare_ms` is what compiling their grammar takes, once.
    """

    tools: int
    tokens: int
    call_tokens: int
    text_us: float
    text_p99_us: float
    call_us: float
    call_p99_us: float
    prepare_ms: float


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """What a token costs at the least: the weights are read once for each step. `copy_gb_s` is what copying memory on
    the device reaches, bytes read and written; `context` the tokens of the sequence, whose cache is read, too.
    """

    weight_bytes: int
    cache_bytes: int
    copy_gb_s: float
    engine_tokens_per_s: float

    @property
    def limit_tokens_per_s(self) -> float:
        """What that bandwidth allows."""
        return self.copy_gb_s * 1e9 / (self.weight_bytes + self.cache_bytes)


class LocalReport(msgspec.Struct, kw_only=True):
    """All of it, as `--json` writes it; what was not measured is missing. `engine` is model, dtype and device.

    By the clock "own" the time in which other processes had the engine's core is left out. `load` is the
    machine's load average at the beginning and at the end: what others did meanwhile is in all other
    figures.
    """

    asynclm_bench_local: int = VERSION
    command: str
    engine: str
    seed: int
    clock: Literal["wall", "own"] = "wall"
    cores: int
    load: list[float]
    step_ms: float
    tool_ms: float | None = None
    runs: list[Ran] = []
    injection: list[Injection] = []
    throughput: list[Throughput] = []
    stalls: list[Stall] = []
    monitoring: Monitoring | None = None
    bandwidth: Bandwidth | None = None
    skipped: list[str] = []


def to_json(report: LocalReport) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def from_json(data: bytes) -> LocalReport:
    """Read what `to_json` wrote. Raises ValueError for anything else, a newer version included."""
    try:
        report = msgspec.json.decode(data, type=LocalReport)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a report of asynclm bench local: {error}") from None
    if report.asynclm_bench_local > VERSION:
        raise ValueError(f"report version {report.asynclm_bench_local} is newer than this asynclm reads ({VERSION})")
    return report


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which so many percent lie, interpolated."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
