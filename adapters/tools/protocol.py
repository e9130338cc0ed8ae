"""What the proxy asks of a tool: a description, and to be run."""

from __future__ import annotations

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
