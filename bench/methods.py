"""The methods that are compared: a policy of the proxy, and whether the model takes injection."""

from __future__ import annotations

from typing import Final

import msgspec


class Method(msgspec.Struct, frozen=True):
    """`title` is the paper's name, or ours in its style. `inject`: interrupts go into the model's live sequence."""

    name: str
    title: str
    policy: str
    inject: bool = False


SYNC: Final = "sync"
PARALLEL: Final = "parallel"
IN_SEQUENCE: Final = "in-sequence"

METHODS: Final = {
    method.name: method
    for method in (
        Method(SYNC, "Sync", "sync"),
        Method(PARALLEL, "Sync-Parallel", "parallel"),
        Method("immediate", "Async-Naive", "immediate"),
        Method("coalesce", "Async-Coalesce", "coalesce"),
        Method("fork", "Async-Fork", "fork"),
        Method("auto", "Async-Auto", "auto"),
        Method(IN_SEQUENCE, "Async", "auto", inject=True),
    )
}
