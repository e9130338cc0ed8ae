"""The ids that calls to a client's own tools have for the client. Pure.

All calls of one answer share a *stem* that nobody can guess; behind it stand the call's number in the answer and, where
it is short, the id that the model gave it: `call_0123456789abcdef0000_a`. OpenAI's API takes up to 40 characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

STEM_BYTES: Final = 8

_ID: Final = re.compile(r"call_([0-9a-f]{16})[0-9a-f]{4,}(?:_([A-Za-z0-9_]+))?")
_MAX_ID: Final = 14


def wire_id(stem: str, number: int, id: str) -> str:
    """The id of a call for the client; `stem` is hexadecimal."""
    made = f"call_{stem}{number:04x}"
    return f"{made}_{id}" if len(id) <= _MAX_ID and id.isascii() else made


def stem_of(wires: Iterable[str]) -> str | None:
    """The stem that these ids share; None if they don't, or aren't ours."""
    found = {match[1] if (match := _ID.fullmatch(wire)) else None for wire in wires}
    return found.pop() if len(found) == 1 else None


def model_id(wire: str) -> str | None:
    """The model's own id for the call, if it can be told."""
    found = _ID.fullmatch(wire)
    return found[2] if found else None
