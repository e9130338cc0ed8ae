"""When a token comes: the first after the TTFT, then one each TPOT, by the event loop's clock."""

from __future__ import annotations

import asyncio


class Pace:
    """Deadlines of one stream's tokens. A wake-up that comes late shifts no later one, so the rate does not drift.

    Times are in milliseconds; the clock starts when the pace is made.
    """

    def __init__(self, ttft_ms: float, tpot_ms: float) -> None:
        self._tpot = tpot_ms / 1000
        self._next = asyncio.get_running_loop().time() + ttft_ms / 1000

    @property
    def deadline(self) -> float:
        """When the next token is due (loop time, s)."""
        return self._next

    async def wait(self) -> None:
        """Wait for the next token's time. Lets other tasks run even when it has passed."""
        await asyncio.sleep(max(0.0, self._next - asyncio.get_running_loop().time()))
        self.passed()

    def passed(self) -> None:
        """The token that was due has come."""
        self._next += self._tpot

    def ask(self) -> None:
        """A model that writes only when asked can't have worked ahead: a deadline already missed becomes now."""
        self._next = max(self._next, asyncio.get_running_loop().time())

    def restart(self) -> None:
        """The sequence was added to: the next token comes a TPOT from now."""
        self._next = asyncio.get_running_loop().time() + self._tpot
