"""From what ran to a `Result`: latency, tokens, and what is wrong."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from asynclm.bench.methods import Method
from asynclm.bench.results import Result, Setting
from asynclm.bench.workloads import Workshop
from asynclm.bench.workloads.checks import Ran, problems
from asynclm.cml.timeline import Entry, Timeline


class Finished(NamedTuple):
    """The runs that together did the workshop's case, in the order in which they began."""

    workshop: Workshop
    runs: Sequence[Ran]


def result(
    finished: Finished,
    method: Method,
    setting: Setting,
    *,
    bounds: Mapping[str, float] | None = None,
    with_timeline: bool = False,
) -> Result:
    """What came of it. Latency is from the model's first token in the first run to the end of the last one."""
    workshop, runs = finished
    first, last = runs[0], runs[-1]
    first_token_s = min((each.t for each in first.timeline.entries if each.kind == "first_token"), default=0.0)
    kinds: collections.Counter[str] = collections.Counter()
    tokens: collections.Counter[str] = collections.Counter()
    for run in runs:
        for entry in run.timeline.entries:
            kinds[entry.kind] += 1
            if entry.kind == "finished":
                tokens.update({name: entry.data["usage"][name] for name in ("prompt_tokens", "completion_tokens")})
    return Result(
        case=workshop.case.id,
        method=method.name,
        setting=setting,
        latency_s=round(last.began_s + last.total_s - first.began_s - first_token_s, 6),
        first_token_s=first_token_s,
        streams=kinds["opened"],
        calls=kinds["dispatched"],
        prompt_tokens=tokens["prompt_tokens"],
        completion_tokens=tokens["completion_tokens"],
        problems=tuple(problems(workshop, runs)),
        bounds={name: round(value, 6) for name, value in (bounds or {}).items()},
        timeline=_joined(runs) if with_timeline else None,
    )


def _joined(runs: Sequence[Ran]) -> Timeline:
    """Several runs as one: their times on one clock, their streams and calls numbered on."""
    first = runs[0].timeline
    joined = Timeline(first.run, first.model, first.policy, first.created, [])
    streams = calls = 0
    for run in runs:
        later = run.began_s - runs[0].began_s
        for entry in run.timeline.entries:
            stream = None if entry.stream is None else entry.stream + streams
            call = None if entry.call is None else entry.call + calls
            joined.entries.append(Entry(round(entry.t + later, 6), entry.kind, stream, call, entry.data))
        streams = max((entry.stream + 1 for entry in joined.entries if entry.stream is not None), default=0)
        calls = max((entry.call + 1 for entry in joined.entries if entry.call is not None), default=0)
    return joined
