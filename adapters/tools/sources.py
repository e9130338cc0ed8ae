"""The tools of all sources together: opened with the server, replaced as they change, closed with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

from asynclm.adapters.tools.options import ToolDefinitionError
from asynclm.adapters.tools.protocol import Source, Tool
from asynclm.adapters.tools.toolbox import Toolbox

logger = logging.getLogger(__name__)


@runtime_checkable
class Renamable(Protocol):
    """A tool that takes another name where its own is taken."""

    def renamed(self) -> Tool:
        """The same tool, under its longer name."""
        ...


class FixedSource:
    """Tools that are always there, and need nothing."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = tools

    async def open(self, changed: Callable[[Sequence[Tool]], None]) -> Sequence[Tool]:
        """The tools."""
        return self._tools

    async def aclose(self) -> None:
        """Nothing is open."""


class Sources:
    """Fills `toolbox` from sources, in their order, and keeps it up to date."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = tuple(sources)
        self._changed: set[int] = set()  # sources that have told of tools since they were opened
        self.toolbox = Toolbox()
        for index, _ in enumerate(self._sources):
            self.toolbox.replace(index, ())

    async def open(self) -> None:
        """Open all, side by side. Raises `ToolDefinitionError`, one line, if one can't be used or two tools have one
        name. `aclose` is to be called in any case.
        """
        opening = [
            asyncio.ensure_future(source.open(partial(self._change, index)))
            for index, source in enumerate(self._sources)
        ]
        try:
            opened = [(index, await task) for index, task in enumerate(opening)]
            # Tools that can take another name come last, so that they see which names are taken.
            for index, tools in sorted(opened, key=lambda each: any(isinstance(tool, Renamable) for tool in each[1])):
                if index not in self._changed:
                    self.toolbox.replace(index, self._renamed(index, tools))
        except ValueError as error:
            raise ToolDefinitionError(str(error)) from error
        finally:
            for task in opening:
                task.cancel()
            await asyncio.gather(*opening, return_exceptions=True)

    async def aclose(self) -> None:
        """Close all, whatever state they are in. No call is running any more."""
        closing = await asyncio.gather(*(source.aclose() for source in self._sources), return_exceptions=True)
        for problem in closing:
            if isinstance(problem, Exception):
                logger.error("closing a source of tools failed", exc_info=problem)

    def _change(self, index: int, tools: Sequence[Tool]) -> None:
        try:
            self.toolbox.replace(index, self._fitting(index, tools))
        except ValueError as error:
            logger.warning("tools have changed, but the old ones stay: %s", error)
        else:
            self._changed.add(index)

    def _fitting(self, index: int, tools: Sequence[Tool]) -> list[Tool]:
        """As far as they can be renamed, without those whose other name is taken, too."""
        taken = self.toolbox.names(besides=index)
        fitting: list[Tool] = []
        for was, tool in zip(tools, self._renamed(index, tools), strict=True):
            if tool is not was and (tool.spec.name in taken or tool.spec.name in {each.spec.name for each in tools}):
                logger.warning("a tool is left out: %r, which is the name of another one", tool.spec.name)
            else:
                fitting.append(tool)
        return fitting

    def _renamed(self, index: int, tools: Sequence[Tool]) -> list[Tool]:
        taken = self.toolbox.names(besides=index)
        return [tool.renamed() if tool.spec.name in taken and isinstance(tool, Renamable) else tool for tool in tools]
