"""A tool's result as JSON text, of bounded length and always valid."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from pydantic_core import to_json

MIN_RESULT_BYTES: Final = 256  # room for the note about what was cut


def result_json(value: object, max_bytes: int) -> str:
    """Compact JSON, of at most `max_bytes` bytes in UTF-8.

    Dates, enums, dataclasses, pydantic models, sets, bytes (base64url) and much else is written as pydantic does;
    numpy's scalars and arrays as their `tolist()`; NaN and the infinities, for which JSON has no number, as null.
    What is longer than `max_bytes` becomes `{"truncated":true,"note":...,"value":...}`, the value being the beginning
    of the text: of the string, where the result is one, else of its JSON. Raises an exception for what has no JSON
    form.
    """
    return sized_result_json(value, max_bytes)[0]


def sized_result_json(value: object, max_bytes: int) -> tuple[str, int]:
    """What `result_json` returns, and how many bytes it had before it was cut."""
    encoded = _encode(value)
    if len(encoded) <= max_bytes:
        return encoded.decode(), len(encoded)
    text = value if isinstance(value, str) else encoded.decode()
    note = f"the result was {len(encoded)} bytes long, the limit is {max_bytes}: this is only its beginning"
    # Escapes make text longer in JSON, by how much depends on it: search for the longest beginning that fits.
    fits, too_long = 0, min(len(text), max_bytes) + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if len(_truncated(note, text[:middle])) <= max_bytes:
            fits = middle
        else:
            too_long = middle
    return _truncated(note, text[:fits]).decode(), len(encoded)


def _truncated(note: str, beginning: str) -> bytes:
    return _encode({"truncated": True, "note": note, "value": beginning})


def _encode(value: object) -> bytes:
    return to_json(value, inf_nan_mode="null", bytes_mode="base64", fallback=_fallback)


def _fallback(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return tolist()
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is not serializable")
