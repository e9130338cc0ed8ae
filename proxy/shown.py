"""The visible text of an answer, on its way into the timeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from asynclm.cml.timeline import Timeline

_PIECE_S: Final = 0.01


class Shown:
    """Collects what the client was shown, and notes it in pieces of a few milliseconds, not of a few characters.

    `elapsed` tells the time since the run began (s). `stream` is the one that the text comes from.
    """

    def __init__(self, timeline: Timeline, elapsed: Callable[[], float]) -> None:
        self._timeline = timeline
        self._elapsed = elapsed
        self._pieces: list[str] = []  # not in the timeline yet
        self._noted: list[str] = []
        self._since = 0.0
        self.stream = 0
        self.add = self._pieces.append  # called for each chunk

    @property
    def text(self) -> str:
        """All that was noted since the last `clear`."""
        return "".join(self._noted)

    def pace(self, now: float) -> None:
        """Note what is there, if the last time is long enough ago; `now` is the event loop's time (s)."""
        if self._pieces and now - self._since > _PIECE_S:
            self._since = now
            self.note()

    def note(self) -> None:
        """Note what is there."""
        if self._pieces:
            text = "".join(self._pieces)
            self._noted.append(text)
            self._timeline.add(self._elapsed(), "text", stream=self.stream, text=text)
            self._pieces.clear()

    def clear(self) -> None:
        """A further answer begins."""
        self._noted.clear()
