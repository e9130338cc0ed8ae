"""How fast a server is listened to: a token bucket that waits and drops nothing, so a flood only slows the flooder."""

from __future__ import annotations

import asyncio


class Pace:
    """Lets `burst` units through at once, and `rate` units a second after that."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._filled: float | None = None
        self.waited = False  # whether it has ever made somebody wait

    async def spend(self, units: float) -> None:
        """Take this many units, waiting until there are enough. More than `burst` at once are let through on credit."""
        now = asyncio.get_running_loop().time()
        if self._filled is not None:
            self._left = min(self._burst, self._left + (now - self._filled) * self._rate)
        self._filled = now
        self._left -= units
        if self._left < 0:
            self.waited = True
            await asyncio.sleep(-self._left / self._rate)

    def credit(self, units: float) -> None:
        """Units that are expected, and cost nothing."""
        self._left += units
