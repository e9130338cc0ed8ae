"""The simulated model's sampling loop, without the time it takes: one token for each call of `next`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from asynclm.adapters.models.stops import Stops

from .plan import Progress, Step
from .tokens import Splitter


class Writer:
    """Writes what the plan says, token by token.

    A `live` writer stays at a trap (`waiting`) until something is injected; others are done with it. The plan is asked
    at each block's border, so what was injected in between counts for the next block.
    """

    def __init__(
        self, progress: Progress, *, stop: Sequence[str] = (), max_tokens: int | None = None, live: bool = False
    ) -> None:
        self._progress = progress
        self._stops = Stops(stop)
        self._max_tokens = max_tokens
        self._live = live
        self._splitter = Splitter()
        self._step: Step | None = None
        self._tokens: deque[str] = deque()  # of the step, still to be written
        self._unread: list[str] = []  # tokens of the step that the progress was not told of
        self._started = False
        self.completion_tokens = 0
        self.waiting = False
        self.finish_reason: str | None = None

    def next(self) -> str:
        """The next token; "" when there is none, or while it may become a stop sequence.

        Sets `finish_reason` or `waiting` when nothing more is to come for now.
        """
        if self.finish_reason is not None or self.waiting or not (self._tokens or self._turn()):
            return ""
        token = self._tokens.popleft()
        self._unread.append(token)
        self.completion_tokens += 1
        text = self._stops.feed(token)
        if self._stops.hit:
            self.finish_reason = "stop"
        elif self._step is not None and self._step.kind == "trap" and not self._tokens:
            text += self._stops.flush()
            if self._live:
                self.waiting = True
            else:
                self.finish_reason = "stop"
        elif self.completion_tokens == self._max_tokens:
            text += self._stops.flush()
            self.finish_reason = "length"
        return text

    def flush(self) -> str:
        """What was held back when the text ended."""
        return self._stops.flush()

    def inject(self, text: str) -> None:
        """Interrupts arrive behind what was written."""
        if self._step is not None and self._step.kind == "text":
            self._progress.wrote("".join(self._unread))
            self._unread.clear()
        self._progress.told(text)
        self.waiting = False

    def _turn(self) -> bool:
        """A block is complete: ask the plan for the next."""
        if self._step is not None:
            self._progress.finished(self._step)
            self._unread.clear()
        self._step = self._progress.next()
        if self._step is None:
            self.finish_reason = "stop"
            return False
        self._tokens.extend(self._splitter.split(f"\n{self._step.text}" if self._started else self._step.text))
        self._started = True
        return True
