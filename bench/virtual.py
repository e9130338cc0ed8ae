"""Runs a case on a virtual clock: the proxy's own code from the chat request on, no HTTP, and no time spent waiting.

The event loop's clock jumps to the next timer as soon as nothing is left to do, so a run takes as long as its
computing does, and a time measured in it is exactly what the simulated model and the tools took: the proxy's own
computing counts for nothing. The same case gives the same figures to the last digit.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import looptime
import msgspec

from asynclm.bench.measure import result
from asynclm.bench.methods import Method
from asynclm.bench.results import Result, Setting
from asynclm.bench.workloads import Case, Workshop
from asynclm.bench.workloads.checks import Ran
from asynclm.proxy.background import Background
from asynclm.proxy.chat import parse
from asynclm.proxy.config import Config, Model, Upstream
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

    async def flush(self) -> None:
        """Nothing to do."""


class Proxy:
    """The proxy but for its HTTP, with a simulated model in the process. Make and use it in a running loop."""

    def __init__(self, method: Method, setting: Setting, workshop: Workshop) -> None:
        upstream = Upstream(kind="simulated", ttft_ms=setting.ttft_ms, tpot_ms=setting.tpot_ms, inject=method.inject)
        config = Config(upstreams={"main": upstream}, models={"*": Model(upstream="main")})
        self._method = method
        self._upstreams = Upstreams(config, {})
        self._executor = Executor(workshop.toolbox)
        self._background = Background()
        self._runs = Runs(
            config, workshop.toolbox, self._upstreams, self._executor, Registry(config.runs.keep), self._background
        )
        self._clock = asyncio.get_running_loop().time

    async def ask(self, prompt: str) -> Ran:
        """Answer a chat request."""
        began = self._clock()
        body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": True}
        chat = parse(msgspec.json.encode(body))
        timeline = new_timeline("run", MODEL, self._method.policy)
        sink = CollectingSink()
        driver = self._runs.driver(chat, self._upstreams.route(MODEL), timeline, sink)
        finish = await driver.drive()
        return Ran(began, self._clock() - began, "".join(sink.parts), finish.reason, timeline)

    async def aclose(self) -> None:
        """End what still runs."""
        await self._background.aclose()
        await self._executor.aclose()
        await self._upstreams.aclose()


def run_case(case: Case, method: Method, setting: Setting, *, with_timeline: bool = False) -> Result:
    """Run a case in a loop of its own, from time 0."""
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(_run(case, method, setting, with_timeline=with_timeline))


async def _run(case: Case, method: Method, setting: Setting, *, with_timeline: bool) -> Result:
    workshop = Workshop(case)
    async with contextlib.aclosing(Proxy(method, setting, workshop)) as proxy:
        ran = await proxy.ask(case.prompt())
    return result(workshop, method, setting, [ran], with_timeline=with_timeline)


def _new_loop() -> asyncio.AbstractEventLoop:
    # Nothing comes from outside, so the clock need not stand still for a few turns before it jumps.
    return looptime.new_event_loop(start=0.0, noop_cycles=0)
