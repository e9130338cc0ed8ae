"""The words of a model: text to tokens and back, and its chat template. Knows no model library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Vocabulary(Protocol):
    """A model's tokenizer."""

    @property
    def pieces(self) -> Sequence[bytes]:
        """The bytes that each token stands for, by id; b"" for those that stand for no text (chat roles)."""
        ...

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of plain text: nothing added, and nothing in it taken for a special token but CML's own control
        tokens, where the model has them.
        """
        ...

    def chat(self, messages: Sequence[dict[str, Any]], answer: str) -> list[int]:
        """The tokens of a conversation, up to where the assistant's next turn begins, and of `answer`, what of that
        turn is already there. Raises ValueError for what the model's chat template can't take.
        """
        ...
