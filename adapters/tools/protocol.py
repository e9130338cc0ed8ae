"""What the proxy asks of a tool: a description, and to be run; of where tools come from: to be opened and closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from asynclm.cml.tools import ToolSpec


class Tool(Protocol):
    """A tool that can be run. Timeouts, limits and the encoding of its result are the executor's business."""

    @property
    def spec(self) -> ToolSpec:
        """How the model and the run machine see it."""
        ...

    async def run(self, arguments: dict[str, Any]) -> object:
        """Run with arguments that were bound and validated against `spec.parameters`.

        Returns the result, of any type; may raise anything, which the model then reads as an error value. Cancelling
        the awaiting task must cancel the work, as far as that is possible: the task ends when the work has ended, and
        where it can't be stopped (a thread) a second cancellation leaves it behind.
        """
        ...


class Source(Protocol):
    """Where tools come from: a document, a server, a list of functions. It owns what they need to run (connections,
    processes, tasks).
    """

    async def open(self, changed: Callable[[Sequence[Tool]], None]) -> Sequence[Tool]:
        """Make the tools ready, and return them. Called once, in the event loop that the tools will run in.

        Later, whenever the tools change, `changed` is to be called with all of them, in that loop. Raises ValueError
        (`ToolDefinitionError`), one line for whoever wrote the config, where there can be no tools; it bounds its own
        time. What was begun is then for `aclose` to end.
        """
        ...

    async def aclose(self) -> None:
        """End what `open` began, even if that failed, was cancelled or never called; perhaps from another task.

        No call is running any more.
        """
        ...
