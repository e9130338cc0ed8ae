"""Runs a case on a virtual clock: the proxy's own code from the chat request on, no HTTP, and no time spent waiting.

The event loop's clock jumps to the next timer as soon as nothing is left to do, so a run takes as long as its
computing does, and a time measured in it is exactly what the simulated model and the tools took: the proxy's own
computing counts for nothing. The same case gives the same figures to the last digit.
"""

from __future__ import annotations

import asyncio
import contextlib

import looptime

from asynclm.bench.inprocess import Proxy
from asynclm.bench.measure import Finished
from asynclm.bench.methods import Method
from asynclm.bench.results import Setting
from asynclm.bench.scenario import Scenario, at_once
from asynclm.bench.workloads import Case, Workshop
from asynclm.proxy.config import Limits, Upstream


def simulated(method: Method, setting: Setting) -> Upstream:
    """A simulated model that is as fast as that, and takes results as the method has it."""
    return Upstream(kind="simulated", ttft_ms=setting.ttft_ms, tpot_ms=setting.tpot_ms, inject=method.inject)


def run_case(
    case: Case, method: Method, setting: Setting, scenario: Scenario = at_once, limits: Limits | None = None
) -> Finished:
    """Run a case in a loop of its own, from time 0."""
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(_run(case, method, setting, scenario, limits))


async def _run(case: Case, method: Method, setting: Setting, scenario: Scenario, limits: Limits | None) -> Finished:
    workshop = Workshop(case)
    async with contextlib.aclosing(Proxy(method.policy, simulated(method, setting), workshop, limits)) as proxy:
        return Finished(workshop, await scenario(proxy, case, method))


def _new_loop() -> asyncio.AbstractEventLoop:
    # Nothing comes from outside, so the clock need not stand still for a few turns before it jumps.
    return looptime.new_event_loop(start=0.0, noop_cycles=0)
