"""Clocks for a race: the machine's, and one that stands still while other processes have the engine's core."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Clock(Protocol):
    """What tells the time (s), and hears of the engine's work."""

    def now(self) -> float:
        """The time; it never goes back. May be called in any thread."""
        ...

    def working(self) -> AbstractContextManager[None]:
        """While the engine works in this thread."""
        ...


class WallClock:
    """The machine's own (`time.monotonic`), as an event loop's is."""

    def now(self) -> float:
        """The time."""
        return time.monotonic()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Makes no difference."""
        yield


class OwnClock:
    """The machine's, less the time in which the engine had work but no core, for one that computes in one thread.

    While the engine works it goes as fast as the thread's CPU time, otherwise as time does. So a tool that sleeps while
    the engine computes does so on the engine's time, and what is measured on a busy machine is what a quiet one would
    give, but for caches and memory bandwidth, which others use, too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stolen = 0.0
        self._work: tuple[int, float, float] | None = None  # the thread's clock, and both times when it began
        self._last = 0.0

    def now(self) -> float:
        """The time."""
        with self._lock:
            self._last = max(self._last, time.monotonic() - self._stolen - self._being_stolen())
            return self._last

    @contextmanager
    def working(self) -> Iterator[None]:
        """While the engine works in this thread."""
        clock = time.pthread_getcpuclockid(threading.get_ident())
        with self._lock:
            self._work = clock, time.monotonic(), time.clock_gettime(clock)
        try:
            yield
        finally:
            with self._lock:
                self._stolen += self._being_stolen()
                self._work = None

    def _being_stolen(self) -> float:
        if self._work is None:
            return 0.0
        clock, began, used = self._work
        return max(time.monotonic() - began - (time.clock_gettime(clock) - used), 0.0)


class ClockedLoop(asyncio.SelectorEventLoop):
    """An event loop that goes by such a clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._told_by = clock

    def time(self) -> float:
        """The clock's."""
        return self._told_by.now()
