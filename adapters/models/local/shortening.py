"""Interrupts that are too long for what is left of the context: cut down, with a note that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from asynclm.cml.events import Interrupt
from asynclm.cml.parser import Parser
from asynclm.cml.render import render_interrupt

_LEAST: Final = 24  # characters of a value below which nothing is left to tell


def shorten(text: str, fits: Callable[[str], bool]) -> str | None:
    """Interrupt blocks that `fits` takes, values cut as little as need be; None if there is no room for any.

    The longest values are cut first. A value that was cut is `{"cut": beginning, "note": ...}`.
    """
    parser = Parser(interrupts=True)
    blocks = [event for event in (*parser.feed(text), *parser.finish()) if isinstance(event, Interrupt)]
    longest = max((len(block.value) for block in blocks), default=0)

    def cut(most: int) -> str:
        return "\n".join(render_interrupt(block.id, _cut(block.value, most)) for block in blocks)

    if longest <= _LEAST or not fits(cut(_LEAST)):
        return None
    low, high = _LEAST, longest  # `low` fits, `high` may not
    while high - low > max(low // 16, 1):
        middle = (low + high) // 2
        if fits(cut(middle)):
            low = middle
        else:
            high = middle
    return cut(low)


def _cut(value: str, most: int) -> str:
    if len(value) <= most:
        return value
    note = f"the first {most} of {len(value)} characters: the result was too long for the model's context"
    return msgspec.json.encode({"cut": value[:most], "note": note}).decode()
