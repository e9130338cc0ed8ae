"""How long to wait before a server is started again."""

from __future__ import annotations

import random

import msgspec


class Backoff(msgspec.Struct):
    """Each wait twice as long as the one before, from `first_s` up to `most_s` seconds, give or take a tenth.

    A server that stayed up for `most_s` begins anew.
    """

    first_s: float = 0.5
    most_s: float = 60.0
    _next_s: float = 0.0

    def after(self, up_s: float) -> float:
        """How long to wait after a server that was up for so long (0: it did not come up)."""
        wait = self.first_s if up_s >= self.most_s or not self._next_s else self._next_s
        self._next_s = min(self.most_s, 2 * wait)
        return wait * random.uniform(0.9, 1.1)
