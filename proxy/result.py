"""What came of a call."""

from __future__ import annotations

from typing import Literal

import msgspec

Served = Literal["hit", "miss", "stale", "coalesced"]


class Result(msgspec.Struct, frozen=True):
    """What came of a call: `value` is JSON text, an error value where not `ok`; `ms` the running time (0: not run).

    `error` is the error's type. `size` is how many bytes the JSON had, where it was cut (0: it wasn't). `cache` says
    how the cache served it: from what it had (`hit`, or `stale` while it gets a new one), by letting it run (`miss`),
    or by waiting for the same call of somebody else (`coalesced`); None for a tool whose results are not kept.
    """

    ok: bool
    value: str
    ms: float
    error: str | None = None
    size: int = 0
    cache: Served | None = None
