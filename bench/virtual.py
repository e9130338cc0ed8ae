"""Runs a case on a virtual clock: the proxy's own code from the chat request on, no HTTP, and no time spent waiting.

The event loop's clock jumps to the next timer as soon as nothing is left to do, so a run takes as long as its
computing does, and a time measured in it is exactly what the simulated model and the tools took: the proxy's own
computing counts for nothing. The same case gives the same figures to the last digit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

import looptime
import msgspec

from asynclm.bench.measure import Finished
from asynclm.bench.methods import Method
from asynclm.bench.results import Setting
from asynclm.bench.scenario import Said, Scenario, at_once
from asynclm.bench.workloads import Case, Workshop
from asynclm.bench.workloads.checks import Ran
from asynclm.cml.machine.calls import USER
from asynclm.proxy.background import Background
from asynclm.proxy.chat import parse
from asynclm.proxy.config import Config, Limits, Model, Upstream
from asynclm.proxy.executor import Executor
from asynclm.proxy.registry import Registry, new_timeline
from asynclm.proxy.runs import Runs
from asynclm.proxy.upstreams import Upstreams

MODEL: Final = "simulated"


class CollectingSink:
    """Keeps the visible answer."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    async def open(self) -> None:
        """Nothing to do."""

    def text(self, text: str) -> None:
        """A piece of the answer."""
        self.parts.append(text)

    def reasoning(self, text: str, field: str) -> None:
        """The simulated model has none."""

    def tool_call(self, id: str, name: str, arguments: str) -> None:
        """No tool is the client's."""

    async def flush(self) -> None:
        """Nothing to do."""


class Proxy:
    """The proxy but for its HTTP, with a simulated model in the process. Make and use it in a running loop."""

    def __init__(self, method: Method, setting: Setting, workshop: Workshop, limits: Limits | None = None) -> None:
        upstream = Upstream(kind="simulated", ttft_ms=setting.ttft_ms, tpot_ms=setting.tpot_ms, inject=method.inject)
        config = Config(upstreams={"main": upstream}, models={"*": Model(upstream="main")}, limits=limits or Limits())
        self._method = method
        self._upstreams = Upstreams(config, {})
        self._executor = Executor(workshop.toolbox)
        self._background = Background()
        self._runs = Runs(
            config, workshop.toolbox, self._upstreams, self._executor, Registry(config.runs.keep), self._background
        )
        self._loop = asyncio.get_running_loop()

    async def ask(self, prompt: str, interrupts: Sequence[Said] = ()) -> Ran:
        """Answer a chat request, and take the interrupts meanwhile."""
        began = self._loop.time()
        body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": True}
        chat = parse(msgspec.json.encode(body))
        timeline = new_timeline("run", MODEL, self._method.policy)
        sink = CollectingSink()
        driver = self._runs.driver(chat, self._upstreams.route(MODEL), timeline, sink)
        taken: list[str] = []

        def say(text: str) -> None:
            if driver.interrupt(USER, text):
                taken.append(text)

        timers = [self._loop.call_later(said.after_s, say, said.text) for said in interrupts]
        finish = await driver.drive()
        for timer in timers:
            timer.cancel()
        ended = self._loop.time()
        return Ran(began, ended - began, "".join(sink.parts), finish.reason, timeline, tuple(taken))

    async def aclose(self) -> None:
        """End what still runs."""
        await self._background.aclose()
        await self._executor.aclose()
        await self._upstreams.aclose()


def run_case(
    case: Case, method: Method, setting: Setting, scenario: Scenario = at_once, limits: Limits | None = None
) -> Finished:
    """Run a case in a loop of its own, from time 0."""
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(_run(case, method, setting, scenario, limits))


async def _run(case: Case, method: Method, setting: Setting, scenario: Scenario, limits: Limits | None) -> Finished:
    workshop = Workshop(case)
    async with contextlib.aclosing(Proxy(method, setting, workshop, limits)) as proxy:
        return Finished(workshop, await scenario(proxy, case, method))


def _new_loop() -> asyncio.AbstractEventLoop:
    # Nothing comes from outside, so the clock need not stand still for a few turns before it jumps.
    return looptime.new_event_loop(start=0.0, noop_cycles=0)
