"""Server-sent events, split incrementally: bytes in, events out, whatever the reads cut in two.

After the WHATWG specification ("Server-sent events", section 9.2.6), with two leniences that upstreams need: an event
that the end of the stream cuts short can still be had (`finish`), and no event is dropped for an unknown field. `id`
and `retry` mean nothing here.

The usual read holds whole events of one `data:` line each; it costs one `split` and one slice an event.
"""

from __future__ import annotations

from typing import Final

import msgspec

_BOM: Final = b"\xef\xbb\xbf"
_END: Final = b"\n\n"


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event: its `data` lines joined by line feeds, and its `event` field (empty where it has none)."""

    data: bytes
    name: bytes = b""


class Splitter:
    """Splits one stream. `limit` bounds the bytes kept for an event that has not ended yet.

    An event beyond it is dropped and sets `overflow`; what follows is then without meaning.
    """

    __slots__ = ("_after_cr", "_limit", "_rest", "overflow")

    def __init__(self, limit: int) -> None:
        self.overflow = False
        self._limit = limit
        self._rest = bytearray()  # the event that has not ended yet, as far as it came
        self._after_cr = False  # a carriage return ended the last read: a line feed now would belong to it

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes and return the events that they complete."""
        if self._after_cr or b"\r" in data:
            data = self._line_feeds_only(data)
        if not data:
            return []
        events: list[Event] = []
        if self._rest:
            # Only the seam can hold a blank line that neither side holds: what was seen before is never searched again.
            if self._rest.endswith(b"\n") and data.startswith(b"\n"):
                data = data[1:]
            else:
                at = data.find(_END)
                if at < 0:
                    self._keep(data)
                    return events
                self._rest += data[:at]
                data = data[at + 2 :]
            event = self.finish()
            if event is not None:
                events.append(event)
        *blocks, rest = data.split(_END)
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(Event(block[6:]))
            elif (event := _read(block)) is not None:
                events.append(event)
        if rest:
            self._keep(rest)
        return events

    def finish(self) -> Event | None:
        """The stream has ended: the event that it cut short, as far as it came, or None."""
        rest = bytes(self._rest)
        self._rest.clear()
        return _read(rest)

    def _keep(self, data: bytes) -> None:
        if len(self._rest) + len(data) > self._limit:
            self.overflow = True
            self._rest.clear()
        else:
            self._rest += data

    def _line_feeds_only(self, data: bytes) -> bytes:
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _read(block: bytes) -> Event | None:
    data: list[bytes] = []
    name = b""
    for line in block.removeprefix(_BOM).split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return Event(b"\n".join(data), name) if data else None
