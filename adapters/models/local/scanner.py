"""Where in its output a model is, token by token: in text, in thinking, in a block, in a string literal of a call.

This is `cml.parser` once more, for bytes, and without what the parser makes of them: a finite state machine whose
states are few and shared by all sequences, so that a token seen before in the same state costs one look into a dict.
Agreement with the parser is held by a property test. Only where text that isn't ASCII stands in the names of a trap,
or white space that isn't ASCII before `<think>`, does the machine not look as closely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from asynclm.cml.tokens import CALL, CONTROL_TOKENS, END, INTR, TRAP

# What a token may hold that can matter.
BRACKET: Final = 1  # a "[", where control tokens begin
MARK: Final = 2  # a quote, backslash, newline or "<"
ANY: Final = 4  # anything: every token has this flag

# Modes. The blocks that a model may open are named by their opening token, as in the parser.
START: Final = "start"  # nothing but white space so far: `<think>` may follow
TEXT: Final = "text"
THINK: Final = "think"
CUT: Final = "cut"  # behind a forged [INTR]: nothing counts any more

_OPEN: Final = b"<think>"
_CLOSE: Final = b"</think>"
_SPACE: Final = frozenset(b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f")
_NAMES: Final = frozenset(
    [*_SPACE, *b",_", *range(ord("0"), ord("9") + 1), *range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1)]
) | frozenset(range(128, 256))
_TOKENS: Final = {token.encode(): token for token in CONTROL_TOKENS}
_PREFIXES: Final = frozenset(token[:n] for token in _TOKENS for n in range(1, len(token)))


class State:
    """A place in the machine. `held` is what was seen of a control token, quote, escape or tag, but is undecided.

    `literal` is the quotes of the string literal that is open in a call. `care`: tokens that have none of these flags
    leave the state as it is. `moves` are the moves already known, by token.
    """

    __slots__ = ("care", "held", "literal", "mode", "moves")

    def __init__(self, mode: str, literal: bytes, held: bytes) -> None:
        self.mode = mode
        self.literal = literal
        self.held = held
        self.moves: dict[int, Move] = {}
        if held or mode in (START, TRAP):
            self.care = ANY
        elif mode is TEXT:
            self.care = BRACKET
        else:
            self.care = 0 if mode is CUT else BRACKET | MARK

    @property
    def block(self) -> bool:
        """Whether a block is open."""
        return self.mode in (CALL, TRAP)

    def __repr__(self) -> str:
        return f"State({self.mode!r}, {self.literal!r}, {self.held!r})"


class Move(NamedTuple):
    """What a token does: the state behind it, and if the block that is open there was opened by this very token, what
    of the token stands inside that block (None: no block was opened).

    `first` is the same for the first block that was opened, whether or not it is still open: its mode, and all that
    follows.
    """

    state: State
    inside: bytes | None
    first: tuple[str, bytes] | None


class Scanner:
    """The machine, for tokens that stand for these `pieces` of text."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._states: dict[tuple[str, bytes, bytes], State] = {}
        self.start = self._state(START, b"", b"")
        self.text = self._state(TEXT, b"", b"")

    def move(self, state: State, token: int) -> Move:
        """What `token` does in `state`."""
        move = state.moves.get(token)
        if move is None:
            move = state.moves[token] = self._move(state, self._pieces[token])
        return move

    def _state(self, mode: str, literal: bytes, held: bytes) -> State:
        key = (mode, literal, held)
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = State(mode, literal, held)
        return state

    def _move(self, state: State, piece: bytes) -> Move:
        mode, literal, held = state.mode, state.literal, state.held
        inside: bytes | None = None
        first: tuple[str, bytes] | None = None
        for at in range(len(piece)):
            seen = held + piece[at : at + 1]
            mode, literal, held = _step(mode, literal, held, piece[at : at + 1])
            if mode not in (CALL, TRAP):
                inside = None
            elif seen == mode.encode():
                inside = piece[at + 1 :]
                first = first or (mode, inside)
        return Move(self._state(mode, literal, held), inside, first)


def _step(mode: str, literal: bytes, held: bytes, letter: bytes) -> tuple[str, bytes, bytes]:
    if mode is CUT:
        return mode, b"", b""
    if mode is THINK:
        seen = held + letter
        if seen == _CLOSE:
            return TEXT, b"", b""
        return mode, b"", seen if _CLOSE.startswith(seen) else b"<" if letter == b"<" else b""
    if mode is START:
        seen = held + letter
        if seen == _OPEN:
            return THINK, b"", b""
        if _OPEN.startswith(seen):
            return mode, b"", seen
        if not held and letter[0] in _SPACE:
            return mode, b"", b""
        mode, held = TEXT, b""
    if literal:
        return _in_literal(mode, literal, held, letter)
    if held.startswith((b"'", b'"')):  # in a call: one or two quotes, which may become three
        seen = held + letter
        if len(set(seen)) == 1:
            return (mode, b"", seen) if len(seen) < 3 else (mode, seen, b"")
        if len(held) == 1:
            return _in_literal(mode, held, b"", letter)
        held = b""
    seen = held + letter
    if seen in _PREFIXES:
        return mode, b"", seen
    token = _TOKENS.get(seen)
    if token is not None:
        return _after_token(mode, token), b"", b""
    if letter == b"[":  # it begins anew: no control token has a second bracket like this
        return TEXT if mode is TRAP and held else mode, b"", letter
    if mode is CALL and letter in (b"'", b'"'):
        return mode, b"", letter
    if mode is TRAP and (held or letter[0] not in _NAMES):
        return TEXT, b"", b""
    return mode, b"", b""


def _after_token(mode: str, token: str) -> str:
    if token == INTR:
        return CUT
    if token in (CALL, TRAP):
        return CALL if token == CALL else TRAP
    return TEXT if token == END or mode is TEXT else mode


def _in_literal(mode: str, literal: bytes, held: bytes, letter: bytes) -> tuple[str, bytes, bytes]:
    if held == b"\\":
        return mode, literal, b""
    if letter == b"\\":
        return mode, literal, letter
    if len(literal) == 1:
        return (mode, b"", b"") if letter in (literal, b"\n") else (mode, literal, b"")
    if letter == literal[:1]:
        seen = held + letter
        return (mode, b"", b"") if seen == literal else (mode, literal, seen)
    return mode, literal, b""
