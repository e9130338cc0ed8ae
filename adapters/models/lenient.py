"""Reading an event that is not quite what its API sends, off the hot path: only what can't be read as it is comes here.

Half surrogate pairs become U+FFFD (JSON can hold them, UTF-8 can't); token counts may be floats or strings, and usage
that can't be read for all that is left out.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def load(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`, surrogates as they are. Raises ValueError or RecursionError for anything else."""
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def convert(event: dict[str, Any], type: type[T], usage: type[msgspec.Struct]) -> T:
    """`event` as a `type`, whose usage, wherever it stands, is a `usage`. Raises ValueError or RecursionError."""
    return msgspec.convert(mended(event, usage), type, strict=False)


def has_half(text: str) -> bool:
    """Whether the text ends in the first half of a surrogate pair."""
    return "\ud800" <= text[-1:] <= "\udbff"


def mended(value: Any, usage: type[msgspec.Struct] | None = None) -> Any:
    """`value` without halves of surrogate pairs, and without usage that is no `usage`."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [mended(item, usage) for item in value]
    if isinstance(value, dict):
        fields = {mended(key): mended(item, usage) for key, item in value.items()}
        if usage is not None and "usage" in fields:
            fields["usage"] = _usage(fields["usage"], usage)
        return fields
    return value


def _usage(value: Any, type: type[msgspec.Struct]) -> Any:
    try:
        msgspec.convert(value, type, strict=False)
    except (ValueError, OverflowError):
        return None
    return value
