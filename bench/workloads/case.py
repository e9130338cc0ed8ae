"""A case: what is asked, the cheat sheet with it, the calls that must come of it, and the world they act upon."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.bench.methods import Order
from asynclm.cml.body import parse_body
from asynclm.cml.tools import ToolSpec

from .times import running_ms

ANSWER: Final = "Everything is done."  # one short line: a quotation of all results would dilute every ratio


class World(Protocol):
    """What the tools of a case act upon. Every run gets a fresh one."""

    def call(self, tool: str, arguments: dict[str, Any]) -> Any:
        """Run one tool; raises whatever the tool raises."""
        ...

    def difference(self, truth: Any) -> str | None:
        """How its state differs from that of another world of the same case; None if it doesn't."""
        ...


class Chain(msgspec.Struct, frozen=True):
    """Calls that follow one another, each as a Python call; the question that they answer, "" for another one's."""

    question: str
    calls: tuple[str, ...]


class Expected(msgspec.Struct, frozen=True):
    """One call that must be made: `arguments` as the tool gets them, `chain` and `step` where it stands.

    `running_ms` is how long it takes, and what the cheat sheet says that it takes.
    """

    id: str
    body: str
    tool: str
    arguments: dict[str, Any]
    chain: int
    step: int
    running_ms: float


class Case:
    """Chains of calls that are one task together. `toolbox` holds the checked specs of its tools, not to be run.

    Raises `CallError` where a chain's calls can't be made with these tools.
    """

    def __init__(
        self,
        id: str,
        chains: Sequence[Chain],
        toolbox: Toolbox,
        world: Callable[[], World],
        *,
        seed: int,
        tool_ms: float,
    ) -> None:
        self.id = id
        self.chains = tuple(chains)
        self.toolbox = toolbox
        self.new_world = world
        calls = []
        for chain, each in enumerate(chains):
            for step, body in enumerate(each.calls):
                name = f"{_letters(chain)}{step + 1}"
                spec, arguments = toolbox.check(parse_body(body))
                ms = running_ms(f"{seed}/{id}/{name}", tool_ms)
                calls.append(Expected(name, body, spec.name, arguments, chain, step, ms))
        self.calls = tuple(calls)
        self._seed = seed

    @property
    def running_ms(self) -> dict[str, float]:
        """How long each call takes, by id."""
        return {call.id: call.running_ms for call in self.calls}

    def task(self, chains: Collection[int] | None = None, order: Order = "longest") -> Task:
        """The cheat sheet of some chains, or all: every call after the one before it in its chain, with its time.

        For another order than the longest first, the times are not told as they are.
        """
        estimates = _estimates(self.running_ms, order, f"{self._seed}/{self.id}")
        nodes = [
            Node(call.id, call.body, (f"{_letters(call.chain)}{call.step}",) if call.step else (), estimates[call.id])
            for call in self.calls
            if chains is None or call.chain in chains
        ]
        return Task(tuple(nodes), answer=ANSWER, quote=False)

    def prompt(self, chains: Collection[int] | None = None, order: Order = "longest") -> str:
        """What the user says to have some chains done, or all, cheat sheet included."""
        wanted = [each for chain, each in enumerate(self.chains) if chains is None or chain in chains]
        asked = [each.question for each in wanted if each.question]
        if len(asked) > 1:
            asked = [f"Please do these {len(asked)} things:", *(f"{n}. {text}" for n, text in enumerate(asked, 1))]
        return "\n".join([*asked, encode_task(self.task(chains, order))])

    @functools.cached_property
    def truth(self) -> tuple[World, dict[str, Any]]:
        """A world in which every call was made, chain by chain, and what each returned (as JSON), by id."""
        world = self.new_world()
        values = {call.id: as_json(world.call(call.tool, call.arguments)) for call in self.calls}
        return world, values


def as_json(value: object) -> Any:
    """The value as it comes out of JSON: tuples are lists, keys are strings."""
    return msgspec.json.decode(msgspec.json.encode(value))


class Blueprint:
    """A tool that is only described."""

    def __init__(self, spec: ToolSpec) -> None:
        self._spec = spec

    @property
    def spec(self) -> ToolSpec:
        """Its description."""
        return self._spec

    async def run(self, arguments: dict[str, Any]) -> object:
        """Not to be run: each run puts tools of its own behind the spec."""
        raise NotImplementedError(self._spec.name)


def _estimates(running_ms: Mapping[str, float], order: Order, key: str) -> Mapping[str, float]:
    """What the model is told of the running times, so that it writes its calls in that order."""
    if order == "longest":
        return running_ms
    if order == "shortest":
        return {id: round(max(running_ms.values()) - ms, 1) for id, ms in running_ms.items()}
    shuffled = random.Random(f"{key}/order").sample(list(running_ms.values()), len(running_ms))
    return dict(zip(running_ms, shuffled, strict=True))


def _letters(number: int) -> str:
    """A name for a chain: a to z, then aa, ab, ..."""
    high, low = divmod(number, 26)
    return (_letters(high - 1) if high else "") + chr(ord("a") + low)
