"""A vocabulary prepared for the token monitor: which tokens matter to it, found quickly, and the same words for
llguidance.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import llguidance
import numpy as np
import numpy.typing as npt

from .scanner import ANY, BRACKET, MARK, Scanner
from .vocabulary import Vocabulary

Mask = npt.NDArray[np.int32]

# Sets of tokens that can be told at once to be all right, in a name or inside a string literal of either quotes.
_SLICES: Final = [
    r"[A-Za-z0-9_]{1,20}",
    *(rf"[^'\"\\\x00-\x1F\x7F]{count}" for count in ("{1,10}", "{1,30}", "+")),
]

_shared: WeakKeyDictionary[Vocabulary, Lexicon] = WeakKeyDictionary()
_lock = threading.Lock()


class Lexicon:
    """The words of `vocabulary`. Takes some tens of milliseconds to build; `of` keeps one for each vocabulary.

    `flags` says by token what the scanner cares for. `scanner` is its state machine. `words` is the length of a mask
    (int32).
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        ends = vocabulary.ends
        self.pieces: Sequence[bytes] = [
            b"" if token in ends else piece for token, piece in enumerate(vocabulary.pieces)
        ]
        self.words = (len(self.pieces) + 31) // 32
        # A zero byte ends each piece, so that none is empty and nothing is found across two of them.
        text = b"\0".join(self.pieces) + b"\0"
        lengths = np.fromiter(map(len, self.pieces), np.int64, len(self.pieces)) + 1
        self._text = text
        self._starts = np.cumsum(lengths) - lengths
        letters = np.frombuffer(text, np.uint8)
        self._first = letters[self._starts]
        meaning = np.full(256, ANY, np.uint8)
        meaning[ord("[")] |= BRACKET
        meaning[list(b"'\"\\\n<")] |= MARK
        self.flags = np.bitwise_or.reduceat(meaning[letters], self._starts).tobytes()
        self.scanner = Scanner(self.pieces)
        self._containing: dict[bytes, list[int]] = {}
        self._tokenizer: llguidance.LLTokenizer | None = None

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> Lexicon:
        """The lexicon of that very vocabulary, made once."""
        with _lock:
            lexicon = _shared.get(vocabulary)
            if lexicon is None:
                lexicon = _shared[vocabulary] = cls(vocabulary)
            return lexicon

    def beginning(self, prefix: bytes) -> list[int]:
        """The tokens that begin with `prefix`, which is not empty."""
        likely = np.flatnonzero(self._first == prefix[0]).tolist()
        return [token for token in likely if self.pieces[token].startswith(prefix)]

    def containing(self, part: bytes) -> list[int]:
        """The tokens that hold `part`, which is not empty, anywhere; a token may be named more than once."""
        known = self._containing.get(part)
        if known is not None:
            return known
        places: list[int] = []
        at = self._text.find(part)
        while at >= 0:
            places.append(at)
            at = self._text.find(part, at + 1)
        found = [int(token) for token in np.searchsorted(self._starts, places, side="right") - 1]
        self._containing[part] = found
        return found

    def without(self, tokens: Iterable[int]) -> Mask:
        """A mask of all tokens but these. It can't be written to."""
        bits = np.zeros(self.words * 32, np.uint8)
        bits[: len(self.pieces)] = 1
        bits[list(tokens)] = 0
        mask: Mask = np.packbits(bits, bitorder="little").view("<i4")
        mask.flags.writeable = False
        return mask

    @property
    def tokenizer(self) -> llguidance.LLTokenizer:
        """The same words for llguidance, and behind them one for each byte (see `letters`). Made when first asked."""
        with _lock:
            if self._tokenizer is None:
                self._tokenizer = llguidance.LLTokenizer(_Words(self.pieces), slices=_SLICES)  # type: ignore[arg-type]
            return self._tokenizer

    def letters(self, text: bytes) -> list[int]:
        """`text` as llguidance's words of one byte each, so that a part of a token can be told to it."""
        first = len(self.pieces)
        return [first + letter for letter in text]

    def mask_of(self, matcher: llguidance.LLMatcher) -> Mask:
        """What `matcher` lets come next."""
        words = np.empty((len(self.pieces) + len(_Words.EXTRA) + 31) // 32, np.int32)
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        mask: Mask = words[: self.words]
        beyond = -len(self.pieces) % 32
        if beyond:
            mask.view(np.uint32)[-1] &= np.uint32(0xFFFFFFFF >> beyond)
        return mask


class _Words:
    """What `llguidance.LLTokenizer` asks of a tokenizer."""

    EXTRA: Final = (*(bytes([letter]) for letter in range(256)), b"<end>")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.tokens = [*pieces, *self.EXTRA]
        self.bos_token_id = None
        # Ends of sequence are the step loop's business: none of the model's own is known here, so none is ever let in.
        self.eos_token_id = len(self.tokens) - 1
        self.special_token_ids = [self.eos_token_id]
        self.is_tokenizer_wrapper = True

    def __call__(self, text: str | bytes) -> list[int]:
        # Used to force the canonical tokens of what the grammar leaves no choice about, which ours doesn't ask for.
        first: Any = len(self.tokens) - len(self.EXTRA)
        return [first + letter for letter in (text.encode() if isinstance(text, str) else text)]
