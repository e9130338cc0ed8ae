"""A branch: a continuation of the transcript that sees some of the results while others are still to come.

Branches that are open at the same time cannot see each other. Each is a stream on the transcript as it was when the
branch opened, plus what the branch was told. When its model traps or ends, the branch is *settled*; settled branches
are *folded* into the transcript in the order in which they opened, so that the transcript is one legal history.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..transcript import Segment
from .actions import EmitReasoning
from .interrupt import Interrupt
from .stream import Stream


class Branch:
    """One branch, open or settled, not yet folded.

    `fork` is how many segments of the transcript it opened on, `told` what it was told behind them (the
    `interrupts`, as they stand in a prompt). `pieces` is its text for the client, None standing for each block.
    `thoughts`: its reasoning that the client does not have yet.
    `fruitful`: it wrote a block other than a trap. `trapped`: its model waits again; `reason` is set when it ended by
    itself instead.
    """

    __slots__ = (
        "fork",
        "fruitful",
        "interrupts",
        "pieces",
        "reason",
        "settled",
        "stream",
        "thoughts",
        "told",
        "trapped",
        "written",
    )

    def __init__(
        self, number: int, fork: int, told: Segment, interrupts: Sequence[Interrupt] = (), now: float = 0.0
    ) -> None:
        self.stream = Stream(number, now, tuple(interrupt.id for interrupt in interrupts))
        self.fork = fork
        self.told = told
        self.interrupts = interrupts
        self.written = ""
        self.pieces: list[str | None] = []
        self.thoughts: list[EmitReasoning] = []
        self.fruitful = False
        self.settled = False
        self.trapped = False
        self.reason: str | None = None

    @property
    def number(self) -> int:
        """The number of its stream."""
        return self.stream.number

    @property
    def barren(self) -> bool:
        """All it had to say is that it waits: the transcript does not need that."""
        return self.trapped and not self.fruitful

    def drop_chatter(self) -> None:
        """It trapped: what it said since its last block was only that it waits."""
        while self.pieces and self.pieces[-1] is not None:
            self.pieces.pop()
