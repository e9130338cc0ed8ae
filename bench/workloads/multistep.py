"""The multi-step cases: chains of calls of BFCL's multi-turn conversations, one alone or three side by side."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.tools import ToolSpec
from asynclm.proxy.demo import bfcl

from .case import Blueprint, Case, Chain

# "1 to 5 sequential calls" (paper, section 6).
_MIN_CALLS: Final = 1
_MAX_CALLS: Final = 5


class BFCLWorld:
    """Fresh instances of BFCL's classes."""

    def __init__(self, samples: Sequence[bfcl.Sample]) -> None:
        self._world = bfcl.World(samples)

    def call(self, tool: str, arguments: dict[str, Any]) -> Any:
        """Run one tool; raises whatever the tool raises."""
        return self._world.call(tool, **arguments)

    def difference(self, truth: BFCLWorld) -> str | None:
        """What BFCL's own state checker finds."""
        return bfcl.state_difference(self._world, truth._world)


def single(count: int, seed: int, tool_ms: float) -> list[Case]:
    """Up to `count` different cases of one sample each."""
    samples = _samples()
    drawn = random.Random(seed).sample(samples, min(count, len(samples)))
    return [_case(sample.id, [sample], seed, tool_ms) for sample in drawn]


def joined(count: int, seed: int, tool_ms: float) -> list[Case]:
    """`count` different cases of three samples each. Raises ValueError if there are not that many."""
    drawn = bfcl.draw_cases(_samples(), count, seed)
    return [_case(f"multi_step_parallel_{case.number}", case.samples, seed, tool_ms) for case in drawn]


@functools.cache
def _samples() -> list[bfcl.Sample]:
    return bfcl.load_samples(_MIN_CALLS, _MAX_CALLS)


def _case(id: str, samples: Sequence[bfcl.Sample], seed: int, tool_ms: float) -> Case:
    tools = [Blueprint(spec) for sample in samples for spec in _specs(sample, tool_ms)]
    return Case(
        id,
        [Chain(sample.question, sample.calls) for sample in samples],
        _all_tools(tool_ms).with_tools(tools),
        lambda: BFCLWorld(samples),
        seed=seed,
        tool_ms=tool_ms,
    )


def _specs(sample: bfcl.Sample, tool_ms: float) -> list[ToolSpec]:
    excluded = set(sample.excluded)
    return [spec for name in sample.classes for spec in _class_specs(name, tool_ms) if spec.name not in excluded]


@functools.cache
def _class_specs(name: str, tool_ms: float) -> list[ToolSpec]:
    """The tools of a class; they declare the mean of all running times, which is what their owner would know."""
    documented = bfcl.tool_specs(bfcl.Sample("", "", (), (name,), {}))
    return [msgspec.structs.replace(spec, estimate_ms=tool_ms) for spec in documented]


@functools.cache
def _all_tools(tool_ms: float) -> Toolbox:
    """Every tool of every class: checked here once, not again for each case."""
    classes = sorted({name for sample in _samples() for name in sample.classes})
    return Toolbox([Blueprint(spec) for name in classes for spec in _class_specs(name, tool_ms)])
