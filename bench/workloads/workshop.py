"""The tools of one run: a fresh world, each call slowed to its drawn time, and a record of what was really done."""

from __future__ import annotations

import asyncio
import collections
from typing import Any

import msgspec

from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.tools import ToolSpec

from .case import Case, Expected, as_json


class Done(msgspec.Struct):
    """A call that was executed, and what it returned (as JSON). `expected` is None for one that nobody asked for."""

    tool: str
    arguments: dict[str, Any]
    expected: Expected | None
    value: Any = None


class Workshop:
    """Tools for one run of a case; `done` is what they did, in the order in which they were begun."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.world = case.new_world()
        self.done: list[Done] = []
        self.toolbox: Toolbox = case.toolbox.with_tools([_SlowTool(self, spec) for spec in case.toolbox.specs()])
        self._left = {key(call.tool, call.arguments): collections.deque[Expected]() for call in case.calls}
        for call in case.calls:
            self._left[key(call.tool, call.arguments)].append(call)

    async def run(self, tool: str, arguments: dict[str, Any]) -> object:
        """Wait for the drawn time, then run the tool."""
        left = self._left.get(key(tool, arguments))
        done = Done(tool, arguments, left.popleft() if left else None)
        self.done.append(done)
        if done.expected is not None:
            await asyncio.sleep(done.expected.running_ms / 1000)
        result: object = self.world.call(tool, arguments)
        done.value = as_json(result)
        return result


def key(tool: str, arguments: dict[str, Any]) -> bytes:
    """The same for the same call."""
    return msgspec.json.encode((tool, arguments), order="deterministic")


class _SlowTool:
    def __init__(self, workshop: Workshop, spec: ToolSpec) -> None:
        self._workshop = workshop
        self._spec = spec

    @property
    def spec(self) -> ToolSpec:
        return self._spec

    async def run(self, arguments: dict[str, Any]) -> object:
        return await self._workshop.run(self._spec.name, arguments)
