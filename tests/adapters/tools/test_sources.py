"""Sources of tools: opened side by side, replaced as they change, and closed whatever happened."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from asynclm.adapters.tools.options import ToolDefinitionError
from asynclm.adapters.tools.protocol import Tool
from asynclm.adapters.tools.sources import FixedSource, Sources
from asynclm.cml.tools import ToolSpec


class Named:
    """A tool that only has a name."""

    def __init__(self, name: str) -> None:
        self.spec = ToolSpec(name=name)

    async def run(self, arguments: dict[str, Any]) -> object:
        return self.spec.name


class Gated:
    """A source that opens when it is let, with these tools."""

    def __init__(self, *names: str, problem: Exception | None = None) -> None:
        self.tools = [Named(name) for name in names]
        self.problem = problem
        self.opening = asyncio.Event()
        self.gate = asyncio.Event()
        self.closed = 0

    async def open(self, changed: Callable[[Sequence[Tool]], None]) -> Sequence[Tool]:
        self.changed = changed
        self.opening.set()
        await self.gate.wait()
        if self.problem is not None:
            raise self.problem
        return self.tools

    async def aclose(self) -> None:
        self.closed += 1


def names(sources: Sources) -> list[str]:
    return [spec.name for spec in sources.toolbox.specs()]


async def test_all_are_opened_side_by_side_and_stand_in_their_order() -> None:
    first, second = Gated("a"), Gated("b")
    sources = Sources([first, FixedSource([Named("x"), Named("y")]), second])
    opening = asyncio.create_task(sources.open())
    await first.opening.wait()
    await second.opening.wait()
    second.gate.set()
    first.gate.set()
    await opening
    assert names(sources) == ["a", "x", "y", "b"]
    await sources.aclose()
    assert (first.closed, second.closed) == (1, 1)


async def test_tools_change() -> None:
    first = Gated("a")
    sources = Sources([first, FixedSource([Named("x")])])
    first.gate.set()
    await sources.open()
    version = sources.toolbox.version
    first.changed([Named("b"), Named("c")])
    assert names(sources) == ["b", "c", "x"]
    assert sources.toolbox.version > version
    first.changed([])
    assert names(sources) == ["x"]


async def test_a_change_that_comes_while_others_are_opened_counts() -> None:
    slow, quick = Gated("a"), Gated("old")
    sources = Sources([slow, quick])
    opening = asyncio.create_task(sources.open())
    quick.gate.set()
    await quick.opening.wait()
    quick.changed([Named("new")])
    slow.gate.set()
    await opening
    assert names(sources) == ["a", "new"]


async def test_a_change_to_tools_that_cannot_be_leaves_the_old_ones(caplog: pytest.LogCaptureFixture) -> None:
    source = Gated("a")
    sources = Sources([source, FixedSource([Named("x")])])
    source.gate.set()
    await sources.open()
    with caplog.at_level(logging.WARNING):
        source.changed([Named("b"), Named("x")])
    assert names(sources) == ["a", "x"]
    assert "the old ones stay: two tools are named 'x'" in caplog.text


async def test_one_that_fails_ends_the_opening_of_the_others() -> None:
    bad, hanging = Gated(problem=ToolDefinitionError("no such document")), Gated("a")
    sources = Sources([bad, hanging])
    bad.gate.set()
    with pytest.raises(ToolDefinitionError, match="no such document"):
        await sources.open()
    await sources.aclose()
    assert hanging.closed == 1


async def test_two_tools_of_one_name() -> None:
    with pytest.raises(ToolDefinitionError, match="two tools are named 'x'"):
        await Sources([FixedSource([Named("x")]), FixedSource([Named("x")])]).open()


class Yielding(Named):
    """A tool that takes another name if it must."""

    def renamed(self) -> Named:
        return Named(f"other_{self.spec.name}")


async def test_a_tool_that_can_take_another_name_yields() -> None:
    server = Gated("a")
    server.tools = [Yielding("x"), Yielding("y")]
    server.gate.set()
    sources = Sources([server, FixedSource([Named("x")])])
    await sources.open()
    assert names(sources) == ["other_x", "y", "x"]
    server.changed([Yielding("z"), Yielding("x")])
    assert names(sources) == ["z", "other_x", "x"]


async def test_one_whose_other_name_is_taken_too_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    server = Gated()
    server.gate.set()
    sources = Sources([server, FixedSource([Named("x"), Named("other_x"), Named("y")])])
    await sources.open()
    server.changed([Yielding("x"), Yielding("y"), Yielding("other_y"), Yielding("z")])
    assert names(sources) == ["other_y", "z", "x", "other_x", "y"]
    assert "a tool is left out: 'other_x', which is the name of another one" in caplog.text


async def test_one_that_does_not_close_keeps_no_other_from_it(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Gated):
        async def aclose(self) -> None:
            raise RuntimeError("it is stuck")

    other = Gated()
    await Sources([Stuck(), other]).aclose()
    assert other.closed == 1
    assert "it is stuck" in caplog.text
