"""What the token monitor costs on the host, in text and in calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Final

from asynclm.adapters.models.local.monitor import Rules
from asynclm.adapters.models.local.vocabulary import Vocabulary
from asynclm.bench.parser import PLAIN
from asynclm.bench.workloads import Case
from asynclm.cml.render import render_call
from asynclm.cml.tools import ToolSpec

from .results import Monitoring, percentile

_ROUNDS: Final = 3  # each token counts with its shortest: the rest is others' work


def monitoring(vocabulary: Vocabulary, case: Case) -> Monitoring:
    """Calls of a case, and text around them, with the case's tools."""
    tools = [spec for spec in case.toolbox.specs() if isinstance(spec, ToolSpec)]
    rules = Rules(vocabulary, tools)
    began = time.perf_counter()
    rules.prepare()
    prepare_s = time.perf_counter() - began
    tokens = []
    for call in case.calls:
        tokens += vocabulary.encode(f"\n{PLAIN}\n{render_call(call.id, call.body)}")
    best: list[float] = []
    critical: list[bool] = []
    for _ in range(_ROUNDS):
        took, critical = _follow(rules, tokens)
        best = [min(pair) for pair in zip(best or took, took, strict=True)]
    text = [took for took, inside in zip(best, critical, strict=True) if not inside]
    calls = [took for took, inside in zip(best, critical, strict=True) if inside]
    return Monitoring(
        tools=len(tools),
        tokens=len(text),
        call_tokens=len(calls),
        text_us=statistics.median(text),
        text_p99_us=percentile(text, 99),
        call_us=statistics.median(calls),
        call_p99_us=percentile(calls, 99),
        prepare_ms=prepare_s * 1000,
    )


def _follow(rules: Rules, tokens: Sequence[int]) -> tuple[list[float], list[bool]]:
    """Each token's time (microseconds), and whether it stands in a block."""
    monitor = rules.monitor()
    monitor.mask()
    took, critical = [], []
    for token in tokens:
        began = time.perf_counter()
        monitor.take(token)
        monitor.mask()
        took.append((time.perf_counter() - began) * 1e6)
        critical.append(monitor.critical)
    return took, critical
