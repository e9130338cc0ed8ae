"""Work that outlives the request that began it, and still has an owner: the last reads of a stream, calls without an
id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class Background:
    """Owns tasks until they end; cancels what is left when it is closed."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Begin something here."""
        self.adopt(asyncio.get_running_loop().create_task(work, name=name))

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Take over a task that was begun elsewhere."""
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        else:
            _report(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        _report(task)

    async def aclose(self) -> None:
        """Cancel whatever still runs, and wait for it to end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s failed: %s: %s", task.get_name(), type(error).__name__, error)
