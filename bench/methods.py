"""The methods that are compared: a policy of the proxy, and how the model takes results and orders its calls."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Order = Literal["longest", "random", "shortest"]


class Method(msgspec.Struct, frozen=True):
    """`title` is the paper's name, or ours in its style. `inject`: interrupts go into the model's live sequence.

    `order` is which of the ready calls the model writes first, by what it believes of their running times.
    """

    name: str
    title: str
    policy: str
    inject: bool = False
    order: Order = "longest"

    @property
    def listens(self) -> bool:
        """Whether an outside interrupt is part of the method; its client sends one request after the other if not."""
        return self.name not in (SYNC, PARALLEL)


SYNC: Final = "sync"
PARALLEL: Final = "parallel"
IMMEDIATE: Final = "immediate"
COALESCE: Final = "coalesce"
FORK: Final = "fork"
AUTO: Final = "auto"
IN_SEQUENCE: Final = "in-sequence"
LPT: Final = "lpt"
RANDOM: Final = "random"
SHORTEST: Final = "shortest"

METHODS: Final = {
    method.name: method
    for method in (
        Method(SYNC, "Sync", "sync"),
        Method(PARALLEL, "Sync-Parallel", "parallel"),
        Method(IMMEDIATE, "Async-Naive", "immediate"),
        Method(COALESCE, "Async-Coalesce", "coalesce"),
        Method(FORK, "Async-Fork", "fork"),
        Method(AUTO, "Async-Auto", "auto"),
        Method(IN_SEQUENCE, "Async", "auto", inject=True),
    )
}

# Longest-Processing-Time-first (paper, section 4) against other orders, in sequence.
ORDERS: Final = {
    method.name: method
    for method in (
        Method(LPT, "LPT", "auto", inject=True),
        Method(RANDOM, "Random", "auto", inject=True, order="random"),
        Method(SHORTEST, "Shortest", "auto", inject=True, order="shortest"),
    )
}

ALL: Final = METHODS | ORDERS
