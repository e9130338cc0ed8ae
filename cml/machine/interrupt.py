"""One thing to tell the model."""

from __future__ import annotations

import msgspec

from .events import Scheduling


class Interrupt(msgspec.Struct, frozen=True):
    """A result, for which the policy finds the time (`scheduling` None), or something else. `value` is JSON text.

    `branch` wrote the call that it answers: until that one is folded, no other stream knows of the call.
    """

    id: str
    value: str
    scheduling: Scheduling | None = None
    branch: int | None = None
