"""One stream as the run machine sees it: what the model writes there, read for blocks and not yet in the transcript."""

from __future__ import annotations

from typing import Final

from .. import events as cml
from ..parser import Parser
from ..render import STOP, render_trap
from ..tokens import CALL, END, HEAD

_TRAP: Final = render_trap()
_TRAP_LEFT: Final = len(_TRAP) - len(STOP)  # characters of a trap that our stop sequence leaves


class Stream:
    """The stream that is open. Streams are numbered from 0 in the run.

    `opened`: the upstream has accepted it. `begun`: its first token has come. `ended`: the model has stopped by
    itself, nothing is left to close. `reasoning`: it reasons apart from its text, and has written none since. `idle`:
    it has trapped with nothing pending, and done nothing since. `since`: when it was asked for or, once it has begun,
    when its first token came (s). `told`: the ids of the results that it was opened with, until it writes a call.
    """

    __slots__ = (
        "_base",
        "_heads",
        "_parser",
        "_raw",
        "_unclosed",
        "begun",
        "ended",
        "idle",
        "number",
        "opened",
        "reasoning",
        "since",
        "told",
    )

    def __init__(self, number: int, now: float = 0.0, told: tuple[str, ...] = ()) -> None:
        self.number = number
        self.since = now
        self.told = told
        self.opened = False
        self.begun = False
        self.ended = False
        self.reasoning = False
        self.idle = False
        self._parser = Parser()
        self._raw: list[str] = []  # not in the transcript yet
        self._base = 0  # offset of its beginning in the stream's text
        self._heads: list[
            tuple[int, int, str]
        ] = []  # heads that calls were given, and the offsets of what they replace
        self._unclosed = -1  # offset where the last block stops that has no [END]

    @property
    def critical(self) -> bool:
        """Whether no interrupt may land at the end of what was written so far."""
        return self.reasoning or self._parser.critical

    @property
    def thinking(self) -> bool:
        """Whether a `<think>` section is open."""
        return self._parser.thinking

    def write(self, text: str) -> list[cml.Event]:
        """The model wrote a piece of text: what that completes."""
        self._raw.append(text)
        self.reasoning = False
        return self._parser.feed(text)

    def end(self) -> list[cml.Event]:
        """The model has stopped: what that completes.

        What our stop sequence took of a trap is put back. A block left open is closed, so that what follows in the
        transcript does not stand inside it.
        """
        self.ended = True
        self.reasoning = False
        parser = self._parser
        if len(parser.held) >= _TRAP_LEFT and _TRAP.startswith(parser.held) and not parser.thinking:
            rest = _TRAP[len(parser.held) :]
            self._raw.append(rest)
            return [*parser.feed(rest), *parser.finish()]
        self._raw.append(parser.closing)
        return parser.finish()

    def unclosed(self, end: int) -> None:
        """The block that stops at offset `end` has no [END]: give it one if the text is cut there."""
        self._unclosed = end

    def give_id(self, call: cml.Call, id: str) -> None:
        """Put this id into a call in place of its own, if it has one, as long as its text has not been taken."""
        if call.end <= self._base:
            return  # something was told in the middle of a piece of text: it is in the transcript as it was written
        text = "".join(self._raw)
        block = text[: call.end - self._base]
        stop = block.rindex(call.body)
        start = block.rindex(CALL, 0, stop) + len(CALL)
        self._heads.append((self._base + start, self._base + stop, f" {id} {HEAD} "))

    def take(self, end: int | None) -> str:
        """Hand over the text that was written: up to the offset `end`, or all (None, or the model has stopped)."""
        text = "".join(self._raw)
        if end is not None and not self.ended:
            text = text[: end - self._base]
            if self._unclosed == end:
                text += f" {END}"
        base, self._base = self._base, self._base + len(text)
        self._raw.clear()
        for start, stop, head in reversed(self._heads):
            text = text[: start - base] + head + text[stop - base :]
        self._heads.clear()
        return text
