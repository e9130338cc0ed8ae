"""BFCL's own function implementations as tools, each slowed to a drawn time, and the task that calls them."""

from __future__ import annotations

import asyncio
import collections
import math
import random
from typing import Any, Final

import msgspec

from asynclm.adapters.models.simulated.task import Node, Task
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.body import parse_body
from asynclm.cml.tools import ToolSpec
from asynclm.proxy.demo.bfcl import Case, World, as_json, state_difference, tool_specs

# The paper measured 30 to 500 ms, 110 ms in the mean (section 6): a log-normal law, cut there.
_MIN_MS: Final = 30.0
_MAX_MS: Final = 500.0
_MEDIAN_MS: Final = 93.0
_SIGMA: Final = 0.6


def running_ms(seed: int, case: Case, tool: str, nth: int) -> float:
    """How long the `nth` call (from 0) of a tool takes in this case; the same for every policy."""
    chance = random.Random(f"{seed}/{case.number}/{tool}/{nth}")
    while True:
        drawn = chance.lognormvariate(math.log(_MEDIAN_MS), _SIGMA)
        if _MIN_MS <= drawn <= _MAX_MS:
            return drawn


def call_ids(case: Case) -> list[list[str]]:
    """What the calls are named, chain by chain: a1, a2, ..., b1, ..."""
    return [
        [f"{chr(ord('a') + chain)}{step + 1}" for step in range(len(sample.calls))]
        for chain, sample in enumerate(case.samples)
    ]


def build_task(case: Case, seed: int) -> Task:
    """The cheat sheet: every call of the ground truth, each after the one before it in its chain, with its time."""
    nodes = []
    for sample, ids in zip(case.samples, call_ids(case), strict=True):
        counts: collections.Counter[str] = collections.Counter()
        for step, (name, body) in enumerate(zip(ids, sample.calls, strict=True)):
            tool = parse_body(body).name
            estimate_ms = round(running_ms(seed, case, tool, counts[tool]))
            counts[tool] += 1
            nodes.append(Node(name, body, (ids[step - 1],) if step else (), estimate_ms))
    return Task(tuple(nodes), answer="Everything is done:")


class Workshop:
    """Fresh instances of one case, their tools, and a record of what the tools returned."""

    def __init__(self, case: Case, seed: int) -> None:
        self._case = case
        self._seed = seed
        self._world = World(case.samples)
        self._calls: collections.Counter[str] = collections.Counter()
        self._returned: dict[str, list[Any]] = collections.defaultdict(list)  # by sample
        tools = [_SlowTool(self, spec, sample.id) for sample in case.samples for spec in tool_specs(sample)]
        self.toolbox = Toolbox(tools)

    async def run(self, tool: str, sample: str, arguments: dict[str, Any]) -> object:
        """Wait for the drawn time, then run the tool."""
        nth = self._calls[tool]
        self._calls[tool] += 1
        await asyncio.sleep(running_ms(self._seed, self._case, tool, nth) / 1000)
        result: object = self._world.call(tool, **arguments)
        self._returned[sample].append(as_json(result))
        return result

    def problems(self, answer: str) -> list[str]:
        """What is wrong with a finished run, against BFCL's ground truth run on fresh instances; empty if nothing is.

        The tools returned what the ground truth's calls return, in each chain's order and nothing more; the instances
        ended in the same state; the answer quotes every result.
        """
        found = []
        truth = World(self._case.samples)
        for sample, ids in zip(self._case.samples, call_ids(self._case), strict=True):
            expected = truth.run(sample.calls)
            if self._returned[sample.id] != expected:
                found.append(f"{sample.id}: the calls returned {self._returned[sample.id]}, not {expected}")
            for name, value in zip(ids, expected, strict=True):
                if _quoted(answer, name) != value:
                    found.append(f"{sample.id}: the answer does not say that {name} = {value}")
        difference = state_difference(self._world, truth)
        if difference is not None:
            found.append(difference)
        return found


class _SlowTool:
    def __init__(self, workshop: Workshop, spec: ToolSpec, sample: str) -> None:
        self._workshop = workshop
        self._spec = spec
        self._sample = sample

    @property
    def spec(self) -> ToolSpec:
        return self._spec

    async def run(self, arguments: dict[str, Any]) -> object:
        return await self._workshop.run(self._spec.name, self._sample, arguments)


def _quoted(answer: str, name: str) -> object:
    """The value that the answer gives on the line `name = value`; an object equal to nothing where it gives none."""
    for line in answer.splitlines():
        if line.startswith(f"{name} = "):
            try:
                value: object = msgspec.json.decode(line.removeprefix(f"{name} = "))
            except msgspec.DecodeError:
                break
            return value
    return object()
