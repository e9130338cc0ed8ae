"""What passes between a driver and whoever keeps its parked run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from asynclm.cml.machine import events as ev
from asynclm.proxy.result import Result

Happened = ev.ResultArrived | ev.OutsideInterrupt
Watch = Callable[[Happened], None]


class Handed(msgspec.Struct, frozen=True):
    """A call that the client was sent: its number in the run, and what the client got (`arguments` is JSON text)."""

    number: int
    name: str
    arguments: str


class Elsewhere(Protocol):
    """Where calls of a restored run are under way."""

    async def result(self, call: int) -> Result | None:
        """What came of a call; None if it is to be run here."""
        ...
