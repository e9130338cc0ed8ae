"""A parked run as it can be kept: what another run machine needs to go on exactly where this one stopped."""

from __future__ import annotations

from typing import Any

import msgspec

from ..tools import Effect, Owner
from ..transcript import Segment
from ..usage import Usage
from .interrupt import Interrupt


class OpenCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call whose result the model is still to be told. `also` are further calls that share it: numbers and ids.

    One that has not `begun` is to be sent to the client in a further answer.
    """

    number: int
    id: str | None
    tool: str
    arguments: dict[str, Any]
    owner: Owner
    effect: Effect
    also: tuple[tuple[int, str], ...] = ()
    begun: bool = True


class ParkedState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was written and told so far, what is open, and what waits to be told.

    `used` are the ids that no call may use again; `written` is how many blocks were written, `streams` how many streams
    there were; `named` are the calls that the model waits for. `usage` is that of the whole run so far.
    """

    transcript: tuple[Segment, ...]
    used: tuple[str, ...]
    written: int
    streams: int
    calls: tuple[OpenCall, ...] = ()
    queue: tuple[Interrupt, ...] = ()
    named: tuple[str, ...] = ()
    usage: Usage = Usage()
