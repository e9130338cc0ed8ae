"""What a driver sends an answer to."""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    """Where the answer goes. All but `open` and `flush` only note what is to be sent."""

    async def open(self) -> None:
        """The upstream has accepted the run: the response can begin."""
        ...

    def text(self, text: str) -> None:
        """A piece of the visible answer."""
        ...

    def reasoning(self, text: str, field: str) -> None:
        """A piece of the model's reasoning, under the upstream's name for it."""
        ...

    def tool_call(self, id: str, name: str, arguments: str) -> None:
        """A call to a tool of the client's own; `arguments` is JSON text."""
        ...

    async def flush(self) -> None:
        """Send what was noted; wait while the client is slow to take it."""
        ...
