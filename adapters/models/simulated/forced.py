"""The ideal model's output, forced on a real one: what a benchmark or a test of a local engine writes.

The real model computes every token, and draws it from a mask that lets in one only. So time, memory and cache are those
of the real thing, and the calls are the right ones, as with the cheat sheet of the paper's evaluation (section 6).
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence

import numpy as np

from asynclm.adapters.models.local.vocabulary import Vocabulary
from asynclm.adapters.models.protocol import Request
from asynclm.cml.transcript import as_turns

from .plan import Step, read


class Forced:
    """Says the one token that may come next: see `adapters.models.local.generation.Monitor`.

    `live`: the model waits at a trap for what is injected; otherwise its stream ends there. Raises `TaskError` for a
    `<task>` block that can't be used.
    """

    def __init__(self, request: Request, vocabulary: Vocabulary, *, live: bool = True) -> None:
        self._vocabulary = vocabulary
        self._progress = read([*request.messages, *as_turns(request.transcript)])
        self._live = live
        self._begun = bool(request.transcript)
        self._step: Step | None = None
        self._left: deque[int] = deque()
        self._unread: list[int] = []  # tokens of a text that the plan was not told of
        self._mask = np.zeros((len(vocabulary.pieces) + 31) // 32, dtype=np.int32)
        self._end = min(vocabulary.ends)

    @property
    def step(self) -> Step | None:
        """What the token belongs to that may come next; None: it ends the answer."""
        return self._step

    def take(self, token: int) -> None:
        """The forced token was written."""
        if self._left:
            self._left.popleft()
            self._unread.append(token)

    def told(self, tokens: Sequence[int]) -> None:
        """Interrupts were put in."""
        pieces = self._vocabulary.pieces
        if self._step is not None and self._left and not self._unread:
            self._step = None  # not begun: what was told may change what is to be written
            self._left.clear()
        elif self._step is not None and self._step.kind == "text" and self._left:
            self._progress.wrote(_text(pieces, self._unread))
            self._unread.clear()
        elif self._step is not None and self._step.kind == "trap" and not _text(pieces, self._unread).strip():
            # What it was about to wait for may be there: only the line break before the trap was written.
            self._left.clear()
            self._step = None
        self._progress.told(_text(pieces, tokens))

    def mask(self) -> np.ndarray:
        """One bit: the next token."""
        if not self._left:
            self._next()
        token = self._left[0] if self._left else self._end
        self._mask[:] = 0
        self._mask.view(np.uint32)[token // 32] = 1 << (token % 32)
        return self._mask.copy()

    def _next(self) -> None:
        """The next block; nothing where the answer is complete, or a stream that isn't live has trapped."""
        if self._step is not None:
            self._progress.finished(self._step)
            self._unread.clear()
            if self._step.kind == "trap" and not self._live:
                self._step = None
                return
        self._step = self._progress.next()
        if self._step is not None:
            text = f"\n{self._step.text}" if self._begun else self._step.text
            self._left.extend(self._vocabulary.encode(text))
            self._begun = True


def _text(pieces: Sequence[bytes], tokens: Sequence[int]) -> str:
    return codecs.decode(b"".join(pieces[token] for token in tokens), "utf-8", "replace")
