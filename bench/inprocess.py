"""The proxy in this process, but for its HTTP: its own code from the chat request on, on any event loop's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from asynclm.adapters import models as adapters
from asynclm.bench.scenario import Said
from asynclm.bench.workloads import Workshop
from asynclm.bench.workloads.checks import Ran
from asynclm.cml.machine.calls import USER
from asynclm.proxy.background import Background
from asynclm.proxy.chat import parse
from asynclm.proxy.config import Config, Limits, Model, Upstream
from asynclm.proxy.executor import Executor
from asynclm.proxy.registry import Registry, new_timeline
from asynclm.proxy.runs import Runs
from asynclm.proxy.upstreams import Upstreams

MODEL: Final = "model"


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
        """The models that are measured have none."""

    def tool_call(self, id: str, name: str, arguments: str) -> None:
        """No tool is the client's."""

    async def flush(self) -> None:
        """Nothing to do."""


class Proxy:
    """The proxy but for its HTTP. Make and use it in a running loop.

    `upstream` is its only one; `model` stands behind it in place of what it says, if given, and stays the caller's.
    """

    def __init__(
        self,
        policy: str,
        upstream: Upstream,
        workshop: Workshop,
        limits: Limits | None = None,
        model: adapters.Model | None = None,
    ) -> None:
        config = Config(upstreams={"main": upstream}, models={"*": Model(upstream="main")}, limits=limits or Limits())
        self._policy = policy
        self._own = model is None
        self._upstreams = Upstreams(config, {}, {} if model is None else {"main": model})
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
        timeline = new_timeline("run", MODEL, self._policy)
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
        if self._own:
            await self._upstreams.aclose()
