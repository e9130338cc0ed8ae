"""The incremental CML parser: text in, however it is cut; events out, always the same.

Theory of operation. `feed` looks at each character once, apart from a few that are held back at the end of a piece
because the next one decides what they are: a possible prefix of a control token, and inside a block also a quote or
a backslash (`''` may become `'''`). So the cost of a character doesn't depend on how much came before, and text that
can't be the start of a control token goes out at once.

Inside a call, string literals are followed as Python and JSON write them, so that `[END]` inside one does not close
the block. A newline ends an unclosed `'` or `"` literal, as it does in both languages: one stray apostrophe costs a
line, not the rest of the answer.

What the model should not write, but small models do:

- a block left open when the next one begins, or when the text ends: the call comes out with a `problem`, a trap counts;
- a `[TRAP]` without its `[END]`: it counts, and what follows it is text as soon as it can't be a list of names;
- an `[END]` or `[HEAD]` too many right behind a block, and the belated `[END]` of a trap: `Stray`. Anywhere else
  outside blocks these two are ordinary text (`ring[HEAD]` is code, not CML);
- `[INTR]`: `Forged`, and the parser is done with that stream: whatever follows is ignored.
"""

from __future__ import annotations

import re
from typing import Final

from .events import Call, Event, Forged, Interrupt, Stray, Text, Thinking, Trap
from .tokens import CALL, CONTROL_TOKENS, END, HEAD, INTR, TRAP

# Where the parser is. Blocks are named by their opening token.
_START: Final = "start"  # nothing but white space so far: `<think>` may follow
_TEXT: Final = "text"
_THINK: Final = "think"
_CUT: Final = "cut"

_THINK_OPEN: Final = "<think>"
_THINK_CLOSE: Final = "</think>"

_OPENERS: Final = {token: token for token in (CALL, INTR, TRAP, HEAD)}
_PREFIXES: Final = frozenset(token[:n] for token in CONTROL_TOKENS for n in range(1, len(token)))

# By the literal that is open ("" for none): what can change the state next.
_INTERESTING: Final = {
    "": re.compile(r"['\"\[]"),
    "'": re.compile(r"[\\'\n]"),
    '"': re.compile(r"[\\\"\n]"),
    "'''": re.compile(r"[\\']"),
    '"""': re.compile(r"[\\\"]"),
}
_NO_NAME: Final = re.compile(r"[^\w\s,]")  # what can't stand in a trap
_NAMES: Final = re.compile(r"\s*(?:\w+\s*(?:,\s*\w+\s*)*)?")


class Parser:
    """Finds blocks in the text of one stream.

    With `interrupts`, `[INTR]` blocks are read too (a transcript, not a model's output). Never raises on any text.
    """

    __slots__ = ("_end", "_head", "_held", "_interrupts", "_literal", "_mode", "_opened", "_owed", "_parts", "_slip")

    def __init__(self, *, interrupts: bool = False) -> None:
        self._interrupts = interrupts
        self._mode = _START
        self._held = ""  # seen, but undecided
        self._end = 0  # offset behind what was fed, the held text included
        self._head: str | None = None
        self._slip = False  # nothing but white space since the last block: a closing token here is one too many
        self._owed = False  # a trap went without its [END], which may still come
        self._parts: list[str] = []  # of the open block
        self._opened = 0  # offset behind the token that opened it
        self._literal = ""  # the quotes of the open string literal

    @property
    def critical(self) -> bool:
        """No interrupt may land here: a block or thinking is open, or may just be beginning (paper, section 3)."""
        return bool(self._held) or self._mode not in (_TEXT, _START)

    @property
    def held(self) -> str:
        """What was seen but is undecided: a possible prefix of a control token (in a block, a quote or backslash
        too).
        """
        return self._held

    @property
    def thinking(self) -> bool:
        """Whether a `<think>` section is open."""
        return self._mode is _THINK

    @property
    def closing(self) -> str:
        """What would have to follow to close the block or thinking that is open; "" where none is."""
        held = self._held
        if self._mode is _THINK:
            return _THINK_CLOSE[len(held) :] if _THINK_CLOSE.startswith(held) else _THINK_CLOSE
        if self._mode not in _OPENERS:
            return ""
        if held and END.startswith(held):
            return END[len(held) :]
        literal = self._literal or (held if len(held) == 1 and held in "'\"" else "")
        if self._literal and held and self._literal.startswith(held):
            literal = self._literal[len(held) :]  # quotes that may be the first of those that close it
        return f"\\{literal} {END}" if held == "\\" else f"{literal} {END}"

    def feed(self, text: str) -> list[Event]:
        """Take the next piece of text and return what it completes."""
        if self._mode is _TEXT and not self._held and "[" not in text:
            if not text:
                return []
            if self._slip and not text.isspace():
                self._slip = False
            self._end = end = self._end + len(text)
            return [Text(text, end)]
        self._end += len(text)
        if self._held:
            text = self._held + text
            self._held = ""
        events: list[Event] = []
        self._run(text, events)
        return events

    def finish(self) -> list[Event]:
        """The text has ended: return what that completes. The parser is done afterwards."""
        held, self._held = self._held, ""
        events: list[Event] = []
        mode = self._mode
        if mode in (_TEXT, _START) and held:
            events.append(Text(held, self._end))
        elif mode is _THINK and held:
            events.append(Thinking(held, self._end))
        elif mode in _OPENERS:
            if mode is not TRAP:
                self._parts.append(held)
            self._close(events, self._end, "[END] is missing")
        self._mode = _CUT
        return events

    # ------------------------------------------------------------------ the states

    def _run(self, text: str, events: list[Event]) -> None:
        start = self._end - len(text)  # offset of text[0]
        pos = 0
        while pos < len(text):
            mode = self._mode
            if mode is _TEXT:
                pos = self._text(text, pos, start, events)
            elif mode is _START:
                pos = self._beginning(text, pos, start, events)
            elif mode is _THINK:
                pos = self._think(text, pos, start, events)
            elif mode is _CUT:
                return
            else:
                pos = self._block(text, pos, start, events)

    def _text(self, text: str, pos: int, start: int, events: list[Event]) -> int:
        at = text.find("[", pos)
        while at >= 0:
            token = _token_at(text, at)
            if token is not None:
                slip = (self._slip and not text[pos:at].strip()) or (self._owed and token == END)
                if slip or token not in (HEAD, END):
                    break
            at = text.find("[", at + 1)
        passed = text[pos:] if at < 0 else text[pos:at]
        if self._slip and passed.strip():
            self._slip = False
        if at < 0:
            events.append(Text(passed, start + len(text)))
            return len(text)
        if passed:
            events.append(Text(passed, start + at))
        if not token:
            self._held = text[at:]
            return len(text)
        after = at + len(token)
        if token in (HEAD, END):
            self._owed = False
            events.append(Stray(token, start + after))
        else:
            self._open(token, start + at, events)
        return after

    def _beginning(self, text: str, pos: int, start: int, events: list[Event]) -> int:
        rest = text[pos:].lstrip()
        at = len(text) - len(rest)
        if at > pos:
            events.append(Text(text[pos:at], start + at))
        if rest.startswith(_THINK_OPEN):
            self._mode = _THINK
            events.append(Thinking(_THINK_OPEN, start + at + len(_THINK_OPEN)))
            return at + len(_THINK_OPEN)
        if _THINK_OPEN.startswith(rest):
            self._held = rest
            return len(text)
        self._mode = _TEXT
        return at

    def _think(self, text: str, pos: int, start: int, events: list[Event]) -> int:
        at = text.find(_THINK_CLOSE, pos)
        if at >= 0:
            after = at + len(_THINK_CLOSE)
            events.append(Thinking(text[pos:after], start + after))
            self._mode = _TEXT
            return after
        keep = len(text)
        # Control tokens are not cut in two either: whoever shows thinking can take them out.
        last = max(text.rfind("<", pos), text.rfind("[", pos))
        if last >= 0 and (_THINK_CLOSE.startswith(text[last:]) or text[last:] in _PREFIXES):
            keep = last
            self._held = text[last:]
        if keep > pos:
            events.append(Thinking(text[pos:keep], start + keep))
        return len(text)

    def _block(self, text: str, pos: int, start: int, events: list[Event]) -> int:
        """Go on inside the open block; return where the parser is to go on."""
        begin = pos
        size = len(text)
        trap = self._mode is TRAP
        while True:
            literal = self._literal
            match = (_NO_NAME if trap else _INTERESTING[literal]).search(text, pos)
            if match is None:
                break
            at = match.start()
            char = text[at]
            if char == "[":
                token = _token_at(text, at)
                if token:
                    self._parts.append(text[begin:at])
                    return self._token(token, at, start, events)
                if token is not None:
                    return self._hold(text, begin, at)
                pos = at + 1
            if trap:
                self._parts.append(text[begin:at])
                self._close(events, start + at, "[END] is missing")
                return at
            if char == "[":
                continue
            if char == "\\":
                if at + 1 == size:
                    return self._hold(text, begin, at)
                pos = at + 2
            elif char == "\n" or len(literal) == 1:
                self._literal = ""
                pos = at + 1
            else:  # a quote that opens a literal, or one inside or at the end of a triple-quoted one
                triple = char * 3
                if text.startswith(triple, at):
                    self._literal = "" if literal else triple
                    pos = at + 3
                elif at + 3 > size and triple.startswith(text[at:]):
                    return self._hold(text, begin, at)
                elif literal:
                    pos = at + 1
                elif text.startswith(char * 2, at):
                    pos = at + 2
                else:
                    self._literal = char
                    pos = at + 1
        self._parts.append(text[begin:])
        return size

    def _hold(self, text: str, begin: int, at: int) -> int:
        self._parts.append(text[begin:at])
        self._held = text[at:]
        return len(text)

    def _token(self, token: str, at: int, start: int, events: list[Event]) -> int:
        """A control token inside a block, outside its string literals."""
        after = at + len(token)
        if token == END:
            self._close(events, start + after, None)
        elif token == HEAD:
            if self._head is None:
                self._head = "".join(self._parts)
                self._parts = []
            else:  # a second one: leave it in the body, where it is a syntax error
                self._parts.append(token)
        else:
            self._close(events, start + at, f"[END] is missing before {token}")
            self._open(token, start + at, events)
        return after

    def _open(self, token: str, at: int, events: list[Event]) -> None:
        if token == INTR and not self._interrupts:
            events.append(Forged(at))
            self._mode = _CUT
            return
        self._mode = token
        self._head = None
        self._opened = at + len(token)
        self._parts = []
        self._literal = ""

    def _close(self, events: list[Event], end: int, problem: str | None) -> None:
        body = "".join(self._parts)
        head = self._head.strip() if self._head is not None else None
        if self._mode == CALL:
            events.append(Call(head or None, body.strip(), end, problem and f"the block was not closed: {problem}"))
        elif self._mode == TRAP:
            self._owed = problem is not None
            if problem is None or _NAMES.fullmatch(body):
                events.append(Trap(_names(body), end, problem is None))
            else:
                events.append(Trap((), self._opened, False))
                events.append(Text(body, end))
        elif problem is None:
            events.append(Interrupt(head or "", body.strip(), end))
        self._mode = _TEXT
        self._slip = True
        self._parts = []
        self._literal = ""


def _token_at(text: str, at: int) -> str | None:
    """The control token at `text[at]`, "" if it may become one with more text, None if it can't."""
    six = text[at : at + 6]
    token = _OPENERS.get(six)
    if token is not None:
        return token
    if six.startswith(END):
        return END
    return "" if six in _PREFIXES and at + len(six) == len(text) else None


def _names(body: str) -> tuple[str, ...]:
    names = [name.strip() for name in body.split(",")]
    return tuple(name for name in names if name.isidentifier())
