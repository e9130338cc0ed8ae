"""The token monitor (paper, section 5): a state machine in the sampling loop that says which tokens may come next.

Outside of blocks a model may write what it likes, but never complete `[INTR]`, however its tokenizer cuts that; nor
open a block with a token that goes on in a way no block can. Inside a block the output stays valid up to `[END]` (see
`grammar`), and no sequence ends there. A token may run over the end of a block only with white space. Thinking is left
alone.

Theory of operation. `scanner` follows every token, as the parser of the run machine will read it, and is what says
where the sequence is. In text that costs a look at a flag of the token, since hardly any token holds a bracket; and
masks there depend on the few characters of a control token that were just written, so that they are made once. At
`[CALL]` and `[TRAP]` an llguidance matcher is set up beside it, which makes the masks up to `[END]`. It only makes
masks: should a token come that it doesn't let in (text that was forced), the block goes on without it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import llguidance

from asynclm.cml.tokens import CALL, INTR, TRAP
from asynclm.cml.tools import ToolSpec

from .grammar import TRAP_GRAMMAR, call_grammar
from .lexicon import Lexicon, Mask
from .scanner import CUT, START, THINK, Move, State
from .vocabulary import Vocabulary

_log = logging.getLogger(__name__)

# Grammars of some hundred tools need more than the library's own bounds, which are meant for grammars of strangers.
_LIMITS: Final = llguidance.LLParserLimits(
    initial_lexer_fuel=50_000_000, step_lexer_fuel=2_000_000, step_max_items=500_000, max_grammar_size=10_000_000
)
_TOKENS: Final = tuple(token.encode() for token in (CALL, INTR, TRAP))


class _Opening(NamedTuple):
    """A block that was opened: a matcher that stands where the token ended, and what may come next."""

    matcher: llguidance.LLMatcher
    mask: Mask


class Rules:
    """What a model may write that has this vocabulary and these tools; shared by all of its sequences.

    Without `constrain` all but `[INTR]` may be written. Cheap to make: what is costly is done at the first call, or by
    `prepare`. Monitors of the same rules belong to one thread. `vocabulary` is to be hashable by identity.
    """

    def __init__(self, vocabulary: Vocabulary, tools: Sequence[ToolSpec], *, constrain: bool = True) -> None:
        self.constrain = constrain
        self._tools = tuple(tools)
        self._vocabulary = vocabulary
        self._preparing = threading.Lock()
        self._call: llguidance.LLMatcher | None = None
        self._trap: llguidance.LLMatcher | None = None
        self._compiled = False
        self._lexicon: Lexicon | None = None
        self._masks: dict[State, Mask | None] = {}
        self._openings: dict[tuple[str, bytes], _Opening | None] = {}

    def monitor(self) -> Monitor:
        """A monitor for a new sequence."""
        return Monitor(self)

    def prepare(self) -> None:
        """Compile the grammar now. May be called in any thread; a `[CALL]` waits for it."""
        with self._preparing:
            if self._compiled:
                return
            tokenizer = self.lexicon.tokenizer
            self._trap = _compile(tokenizer, TRAP_GRAMMAR)
            self._call = self._call_matcher(tokenizer) if self._tools else None
            self._compiled = True

    @property
    def lexicon(self) -> Lexicon:
        """The vocabulary, prepared; made when first asked."""
        if self._lexicon is None:
            self._lexicon = Lexicon.of(self._vocabulary)
        return self._lexicon

    def opening(self, block: str, inside: bytes) -> _Opening | None:
        """A block that was opened by a token, of which `inside` stands in the block.

        None: such a block is not constrained, or can't go on like that.
        """
        if not self.constrain:
            return None
        key = (block, inside)
        if key not in self._openings:
            self._openings[key] = self._open(block, inside)
        return self._openings[key]

    def _open(self, block: str, inside: bytes) -> _Opening | None:
        self.prepare()
        template = self._call if block is CALL else self._trap
        if template is None:
            return None
        matcher = template.deep_copy()
        letters = self.lexicon.letters(inside)
        if matcher.try_consume_tokens(letters) != len(letters):
            return None
        closed = matcher.is_accepting()
        # Any token may be the beginning of a name: made once, this mask costs nothing where it would cost the most.
        mask = self.lexicon.mask_of(matcher)
        mask.flags.writeable = False
        return _Opening(matcher, mask) if closed or mask.any() else None

    def mask(self, state: State) -> Mask | None:
        """What may come next where no matcher says so. The same array for the same state; it can't be written to."""
        try:
            return self._masks[state]
        except KeyError:
            banned = self._banned(state)
            mask = self._masks[state] = self.lexicon.without(banned) if banned else None
            if mask is not None and not mask.any():
                _log.warning("no token may come in %r: all may", state)
                self._masks[state] = mask = None
            return mask

    def _banned(self, state: State) -> list[int]:
        if state.mode in (THINK, CUT):
            return []
        lexicon = self.lexicon
        scanner = lexicon.scanner
        banned: list[int] = []
        for token in _completing(state, lexicon):
            move = scanner.move(state, token)
            if move.state.mode is CUT or (not state.block and not self._may_open(move)):
                banned.append(token)
        return banned

    def _may_open(self, move: Move) -> bool:
        if move.first is None or not self.constrain:
            return True
        block, inside = move.first
        if not inside.strip() and (block is TRAP or self._tools):  # need not wait for a grammar
            return True
        return self.opening(block, inside) is not None

    def _call_matcher(self, tokenizer: llguidance.LLTokenizer) -> llguidance.LLMatcher | None:
        matcher = _compile(tokenizer, call_grammar(self._tools))
        if matcher is not None:
            return matcher
        loose = {tool.name for tool in self._tools if not _valid(call_grammar([tool]))}
        loose = loose or {tool.name for tool in self._tools}  # each is fine by itself: together they are too much
        _log.warning("no grammar for the arguments of %s: they may be any literals", ", ".join(sorted(loose)))
        return _compile(tokenizer, call_grammar(self._tools, loose=loose))


class Monitor:
    """One sequence. Not for more than one thread.

    It knows what the runtime has told it of: tokens that were sampled (`take`), and those put in between (`told`).
    """

    __slots__ = ("_first", "_flags", "_lexicon", "_matcher", "_rules", "_scanner", "_state")

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._lexicon = rules.lexicon
        self._flags = self._lexicon.flags
        self._scanner = rules.lexicon.scanner
        self._state = self._scanner.start
        self._matcher: llguidance.LLMatcher | None = None
        self._first: Mask | None = None  # what may come next, right behind the token that opened a block

    @property
    def critical(self) -> bool:
        """No interrupt may land here: a block or thinking is open, or may just be beginning (paper, section 3)."""
        state = self._state
        return state.block or state.mode is THINK or state.mode is CUT or bool(state.held)

    def take(self, token: int) -> None:
        """A sampled token has become part of the sequence."""
        state = self._state
        self._first = None
        if self._flags[token] & state.care:
            move = state.moves.get(token) or self._scanner.move(state, token)
            self._state = after = move.state
            if move.inside is not None:
                opening = self._rules.opening(after.mode, move.inside)
                self._matcher = None
                if opening is not None:
                    self._matcher, self._first = opening.matcher.deep_copy(), opening.mask
                return
            if not after.block:
                self._matcher = None
                return
        if self._matcher is not None and self._matcher.try_consume_tokens([token]) != 1:
            _log.info("token %d isn't valid in the block that is open, which goes on unconstrained", token)
            self._matcher = None

    def told(self, tokens: Iterable[int]) -> None:
        """The runtime appended these: whole blocks, so that the sequence stands outside of any behind them.

        What the model has not written can't have been the beginning of thinking, or its end.
        """
        self._matcher = self._first = None
        if self._state.mode is not START or self._state.held:
            self._state = self._scanner.text

    def mask(self) -> Mask | None:
        """The tokens that may come next, one bit each (int32, little-endian, as long as the vocabulary); None: all."""
        matcher = self._matcher
        if matcher is None:
            return self._rules.mask(self._state)
        if self._first is not None:
            return self._first
        mask = self._lexicon.mask_of(matcher)
        if matcher.is_error() or not mask.any():
            _log.warning("no token is valid in the block that is open: %s", matcher.get_error()[:500] or "dead end")
            self._matcher = None
            return self._rules.mask(self._state)
        return mask


def _completing(state: State, lexicon: Lexicon) -> list[int]:
    """The tokens that may complete `[CALL]`, `[TRAP]` or `[INTR]` in this state, or hold one of them."""
    found: dict[int, None] = {}
    for token in _TOKENS:
        found |= dict.fromkeys(lexicon.containing(token))
        if state.held and token.startswith(state.held):
            found |= dict.fromkeys(lexicon.beginning(token[len(state.held) :]))
    return list(found)


def _compile(tokenizer: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher | None:
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        return matcher
    _log.warning("grammar: %s", matcher.get_error()[:500])
    return None


def _valid(grammar: str) -> bool:
    return not llguidance.LLMatcher.validate_grammar(grammar, limits=_LIMITS)
