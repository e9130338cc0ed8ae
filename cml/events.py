"""What the parser finds in a model's text: blocks, and the text between them.

`end` is the offset in the stream's raw text (characters) right after the event's last character, so that a stream can
be cut exactly behind any event.
"""

from __future__ import annotations

import msgspec


class Text(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Plain text, to be shown."""

    text: str
    end: int


class Thinking(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Text of a `<think>` section that opens the output, tags included. Control tokens in it mean nothing."""

    text: str
    end: int


class Call(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`[CALL] id [HEAD] body [END]`.

    `id` is None for a call without a head, and whatever stood there otherwise (not checked here). `problem` says why
    the block is malformed (it was not closed), None where it is fine.
    """

    id: str | None
    body: str
    end: int
    problem: str | None = None


class Trap(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`[TRAP][END]`: the model waits for the next interrupt; with names, until all of those calls have returned.

    Not `closed` where its `[END]` was missing.
    """

    names: tuple[str, ...]
    end: int
    closed: bool = True


class Interrupt(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`[INTR] id [HEAD] value [END]`, `value` being JSON text. Only where the parser was told to expect interrupts."""

    id: str
    value: str
    end: int


class Forged(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The model began an `[INTR]` of its own. `end` is the offset where that token began: cut the stream there."""

    end: int


class Stray(msgspec.Struct, frozen=True, gc=False, tag=True):
    """An `[END]` or `[HEAD]` too many: right behind a block, or the belated end of a trap. Not shown to anybody."""

    token: str
    end: int


Event = Text | Thinking | Call | Trap | Interrupt | Forged | Stray
