"""What `asynclm bench` finds out: one result a case and method, and the file that holds them all."""

from __future__ import annotations

from typing import Literal

import msgspec

from asynclm.cml.timeline import Timeline

VERSION = 1

Clock = Literal["virtual", "real"]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """The speeds of one cell: time to the first token and for each further one, mean running time of the tools."""

    ttft_ms: float
    tpot_ms: float
    tool_ms: float


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One case under one method.

    `latency_s` is from the model's first token to the last (paper, section 6), `first_token_s` from the request to the
    first token. `tokens` are summed over the `streams` upstream requests of the run. `problems` is what the checks
    found wrong; empty where the answer is right and each effect happened once. `bounds` are the analytic values in
    seconds, by name (`analytic`).
    """

    case: str
    method: str
    setting: Setting
    latency_s: float
    first_token_s: float
    streams: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    problems: tuple[str, ...] = ()
    bounds: dict[str, float] = {}
    timeline: Timeline | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole evaluation, as `--json` writes it. `command` and `seed` are what it takes to repeat it."""

    asynclm_bench: int
    command: str
    kind: str
    clock: Clock
    seed: int
    results: list[Result]


def to_json(report: Report) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def from_json(data: bytes) -> Report:
    """Read what `to_json` wrote. Raises ValueError for anything else, a newer version included."""
    try:
        report = msgspec.json.decode(data, type=Report)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a report of asynclm bench: {error}") from None
    if report.asynclm_bench > VERSION:
        raise ValueError(f"report version {report.asynclm_bench} is newer than this asynclm reads ({VERSION})")
    return report
