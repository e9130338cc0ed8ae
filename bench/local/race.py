"""The methods side by side: cases of BFCL in real time, with the real engine and the ideal model's output forced on it.

Everything between the chat request and the answer is the proxy's own, but for HTTP. Each run has a step loop of its
own, on the same engine, so that nothing of one method's prompts is left for the next one.
"""

from __future__ import annotations

import contextlib
from itertools import pairwise

from asynclm.adapters.models.local.model import Loaded, LocalModel
from asynclm.adapters.models.local.settings import EngineSettings
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.bench.inprocess import Proxy
from asynclm.bench.workloads import Case, Workshop
from asynclm.bench.workloads.case import Blueprint
from asynclm.bench.workloads.checks import problems
from asynclm.proxy.config import Upstream

from .clock import Clock
from .meter import Meter
from .results import Ran, Way
from .theory import formulas, measured
from .watch import Watched, Written


async def race(loaded: Loaded, dataset: str, case: Case, way: Way, number: int, clock: Clock) -> Ran:
    """Run a case in one way, as the round of that number, in an event loop that goes by the clock."""
    meter = Meter(loaded.engine, clock)
    log: list[Written] = []
    settings = EngineSettings() if way.kept else EngineSettings(kept_tokens=0)
    model = LocalModel(
        lambda: Loaded(meter, loaded.vocabulary),
        settings,
        inject=way.inject,
        guide=lambda request, vocabulary: Watched(request, vocabulary, log, clock, live=way.inject),
    )
    workshop = Workshop(case)
    try:
        async with contextlib.aclosing(
            Proxy(way.policy, Upstream(kind="transformers"), workshop, model=model)
        ) as proxy:
            await model.prepare()
            ran = await proxy.ask(case.prompt())
    finally:
        await model.aclose()
    wrong = list(problems(workshop, [ran]))
    task = case.task()
    found = None
    theory: dict[str, float] = {}
    try:
        found = measured(task, log, ran.timeline, ran.began_s)
        theory = formulas(found, {node.id: node.estimate_ms for node in task.calls})
    except ValueError as error:
        wrong.append(str(error))
    kinds = [entry.kind for entry in ran.timeline.entries]
    first_s = min((entry.t for entry in ran.timeline.entries if entry.kind == "first_token"), default=0.0)
    usages = [entry.data for entry in ran.timeline.entries if entry.kind == "usage"]
    return Ran(
        dataset=dataset,
        case=case.id,
        way=way.name,
        round=number,
        prompt_tokens=usages[0]["prompt_tokens"] if usages else 0,
        resumes=kinds.count("opened") - 1,
        latency_s=ran.total_s - first_s,
        measured=found,
        theory=theory,
        host_share=_host_share(meter, sorted(log)),
        problems=tuple(wrong),
    )


def trimmed(case: Case, *, seed: int, tool_ms: float) -> Case:
    """The case with no more tools than its calls use: a small model's context, and a CPU's patience, are short."""
    used = {call.tool for call in case.calls}
    toolbox = Toolbox(Blueprint(spec) for spec in case.toolbox.specs() if spec.name in used)
    return Case(case.id, case.chains, toolbox, case.new_world, seed=seed, tool_ms=tool_ms)


def _host_share(meter: Meter, log: list[Written]) -> float:
    """Of the plain steps, the share in which neither a pass nor a draw was under way."""
    calls = sorted([*meter.passes, *meter.draws])
    steps = [(one.at, other.at) for one, other in pairwise(log) if other.plain]
    total = sum(end - begin for begin, end in steps)
    at = busy = 0.0
    place = 0
    for begin, end in steps:
        at = begin
        while place < len(calls) and calls[place].ended <= begin:
            place += 1
        for call in calls[place:]:
            if call.began >= end:
                break
            busy += max(min(call.ended, end) - max(call.began, at), 0.0)
    return 1 - busy / total if total else 0.0
