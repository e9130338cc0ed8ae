"""Stop sequences, found across token borders."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Watches a stream of tokens for the first stop sequence. What may be the beginning of one is held back."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = [sequence for sequence in sequences if sequence]
        self._held = ""
        self.hit = False

    def feed(self, token: str) -> str:
        """The text that may go out. Sets `hit` when a stop sequence is complete: the text before it is the last."""
        if not self._sequences:
            return token
        text = self._held + token
        found = [at for sequence in self._sequences if (at := text.find(sequence)) >= 0]
        if found:
            self.hit = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, sequence) for sequence in self._sequences), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The stream ended: what was held back goes out after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, sequence: str) -> int:
    """Length of the longest end of `text` that is a beginning of `sequence`."""
    for size in range(min(len(text), len(sequence) - 1), 0, -1):
        if text.endswith(sequence[:size]):
            return size
    return 0
