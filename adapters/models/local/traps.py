"""What becomes of a sequence's cache while the model waits at a trap (paper, section 5)."""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol


class Choice(enum.StrEnum):
    """Leave the cache on the device; move it to the host's memory and back; forget it and compute it again."""

    KEEP = "keep"
    SWAP = "swap"
    RECOMPUTE = "recompute"


class Decision(NamedTuple):
    """A choice, why it was made, and what each way is expected to cost the run (ms; those that were weighed)."""

    choice: Choice
    why: str
    costs_ms: dict[str, float]


class TrapHandler(Protocol):
    """Decides for one sequence after the other."""

    def decide(self, tokens: int, expected: float | None, *, crowded: bool, must: bool) -> Decision:
        """For a sequence of so many tokens, expected to wait for so many seconds (None: nobody knows).

        `crowded`: others want the memory. `must`: it has to go, so that `keep` is no answer.
        """
        ...


class Keep:
    """Keeps every cache as long as it can, and then computes it again."""

    def decide(self, tokens: int, expected: float | None, *, crowded: bool, must: bool) -> Decision:
        """See `TrapHandler`."""
        if must:
            return Decision(Choice.RECOMPUTE, "its memory is needed", {})
        return Decision(Choice.KEEP, "always", {})
