"""A stream opened ahead of its time: on the transcript as it will be if the open branches bring nothing new.

When the last pending result has come while branches are still open, nobody knows yet whether one of them will write a
further call. If none does, the answer needs one more stream, and that would begin a whole time to the first token after
the last branch has ended. So it is opened at once, and what it writes is held back until the branches have been folded:
if they bring nothing new, it is the stream that goes on; otherwise it is dropped, unread.
"""

from __future__ import annotations

from ..transcript import Segment
from .events import ReasoningArrived, StreamEnded, TextArrived
from .stream import Stream

Held = TextArrived | ReasoningArrived | StreamEnded


class Ahead:
    """The stream, the transcript that it was opened on, and what has come from it; when it `ended` (s), if it has."""

    __slots__ = ("ended", "held", "stream", "transcript")

    def __init__(self, number: int, transcript: tuple[Segment, ...], now: float) -> None:
        self.stream = Stream(number, now)
        self.transcript = transcript
        self.held: list[Held] = []
        self.ended: float | None = None

    def hold(self, event: Held, now: float) -> None:
        """Keep an event for the time when the stream goes on."""
        self.held.append(event)
        if type(event) is StreamEnded:
            self.ended = now
