"""Forced output that notes when each token was drawn, and what it was part of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from asynclm.adapters.models.local.vocabulary import Vocabulary
from asynclm.adapters.models.protocol import Request
from asynclm.adapters.models.simulated.forced import Forced

from .clock import Clock


class Written(NamedTuple):
    """A token: when it was drawn (s), of what, for a call of which one (`id`).

    `plain`: it came right behind the token before, in the same stream, with nothing put in between.
    """

    at: float
    kind: Literal["text", "call", "trap"]
    id: str | None
    plain: bool


class Watched(Forced):
    """`Forced`, with a log of what was written, which several streams of a run may share."""

    def __init__(
        self, request: Request, vocabulary: Vocabulary, log: list[Written], clock: Clock, *, live: bool
    ) -> None:
        super().__init__(request, vocabulary, live=live)
        self._log = log
        self._clock = clock
        self._at = 0.0
        self._plain = False

    def mask(self) -> Any:
        """One bit: the next token. It is drawn now."""
        self._at = self._clock.now()
        return super().mask()

    def take(self, token: int) -> None:
        """The token counts: it wasn't taken back."""
        step = self.step
        if step is not None:
            self._log.append(Written(self._at, step.kind, step.id, self._plain))
            self._plain = True
        super().take(token)

    def told(self, tokens: Sequence[int]) -> None:
        """Interrupts were put in."""
        self._plain = False
        super().told(tokens)
