"""A result as it lies in the store."""

from __future__ import annotations

import msgspec

from asynclm.proxy.result import Result, Served

_VERSION = 1


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A result, kept since `stored` (Unix time, s). `arguments` is their canonical JSON, for whoever looks into the
    cache. As MessagePack, an array.
    """

    version: int
    tool: str
    arguments: bytes
    ok: bool
    value: str
    error: str | None
    ran_ms: float
    stored: float

    def age(self, now: float) -> float:
        """In seconds; 0 where another machine's clock is ahead."""
        return max(0.0, now - self.stored)

    def result(self, served: Served) -> Result:
        """The result, as served from the store."""
        return Result(self.ok, self.value, 0.0, error=self.error, cache=served)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def write(tool: str, arguments: bytes, result: Result, stored: float) -> bytes:
    """The entry of a result."""
    return _encoder.encode(
        Entry(_VERSION, tool, arguments, result.ok, result.value, result.error, round(result.ms, 3), stored)
    )


def read(data: object) -> Entry | None:
    """What `write` wrote; None for nothing, and for what another version or nobody of ours wrote."""
    if not isinstance(data, bytes):
        return None
    try:
        entry = _decoder.decode(data)
    except msgspec.DecodeError:
        return None
    return entry if entry.version == _VERSION else None
