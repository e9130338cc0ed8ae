"""How the simulated upstream behaves: its speed, and the faults it is told to show.

Set for the server by flags, and for one request by the header `x-simulate: ttft_ms=50;break_at=5`.
"""

from __future__ import annotations

from typing import Final

import msgspec

HEADER: Final = "x-simulate"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times are in milliseconds. Faults, all off by default:

    - `error_status`: answer with this HTTP status (and `retry_after`, seconds): the first `error_times` requests, or
      each with probability `error_rate` (drawn with `seed`), or, with neither, every one;
    - `break_at`: drop the connection after this many tokens;
    - `error_at`: send an error event after this many tokens, and end the stream;
    - `stall_at`: fall silent after this many tokens, for as long as the client stays.
    """

    ttft_ms: float = 150.0
    tpot_ms: float = 5.0
    error_status: int | None = None
    error_times: int | None = None
    error_rate: float | None = None
    seed: int = 0
    retry_after: float | None = None
    break_at: int | None = None
    error_at: int | None = None
    stall_at: int | None = None

    def __post_init__(self) -> None:
        if self.error_status is not None and not 400 <= self.error_status <= 599:
            raise ValueError("error_status must be from 400 to 599")
        if self.error_rate is not None and not 0 <= self.error_rate <= 1:
            raise ValueError("error_rate must be from 0 to 1")
        for name in ("ttft_ms", "tpot_ms", "error_times", "retry_after", "break_at", "error_at", "stall_at"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must not be negative")


# What one request can't set for itself: these are about several.
_SERVER_ONLY: Final = frozenset({"error_times", "error_rate", "seed"})


def with_header(settings: Settings, header: str) -> Settings:
    """`settings`, changed as the header says: `key=value` pairs with `;` between. An error it asks for is certain.

    Raises ValueError that names the key.
    """
    changes: dict[str, str] = {}
    for pair in header.split(";"):
        if not pair.strip():
            continue
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or key not in Settings.__struct_fields__ or key in _SERVER_ONLY:
            allowed = ", ".join(name for name in Settings.__struct_fields__ if name not in _SERVER_ONLY)
            raise ValueError(f"{HEADER}: {pair.strip()!r} is not key=value with one of the keys {allowed}")
        changes[key] = value.strip()
    base = msgspec.structs.asdict(settings)
    if "error_status" in changes:
        base |= {"error_times": None, "error_rate": None}
    try:
        return msgspec.convert(base | changes, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{HEADER}: {error}") from None
