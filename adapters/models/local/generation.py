"""One sequence that is being written, as the step loop sees it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from .engine import Sampled, Sampling


class Wrote(NamedTuple):
    """The model has written a token. `end`: it ends the answer, and stands for no text.

    `era` counts the reader's injections and pauses: a token that was drawn before it knew of the last one was taken
    back, and is not to be heard.
    """

    sampled: Sampled
    end: bool
    era: int


class Full(NamedTuple):
    """The sequence is as long as the model's context: nothing more can be written."""


class Broke(NamedTuple):
    """The generation failed; the others go on. `status` is HTTP's."""

    message: str
    status: int = 500
    code: str = "engine_error"


class Remark(NamedTuple):
    """Something worth noting in the run's timeline: what was done with the cache, and what it cost."""

    kind: str
    data: dict[str, Any]


class Began(NamedTuple):
    """Its turn has come; the first `shared` tokens of the prompt were taken over from another sequence."""

    shared: int


News = Wrote | Full | Broke | Remark | Began


class Monitor(Protocol):
    """What may be written next: see `monitor.Monitor`."""

    def take(self, token: int) -> None:
        """The model has written a token."""
        ...

    def told(self, tokens: Sequence[int]) -> None:
        """The runtime has put tokens in."""
        ...

    def mask(self) -> Any | None:
        """Which tokens may come next (see `Pick.mask`); None: all."""
        ...


class Place(enum.Enum):
    """Where the cache of a sequence is."""

    NOWHERE = "nowhere"  # not begun, or dropped: everything is to be computed
    DEVICE = "device"
    HOST = "host"


class Generation:
    """A prompt and what is written behind it.

    Made by the reader, with `hear`, which is called in the event loop's thread with what happens; from then on it is
    the step loop's, which alone touches what follows.
    """

    __slots__ = (
        "asked",
        "closed",
        "drawn",
        "era",
        "expected",
        "hear",
        "last",
        "left",
        "lost",
        "monitor",
        "number",
        "over",
        "paused",
        "place",
        "ready",
        "regaining",
        "sampling",
        "settled",
        "since",
        "todo",
        "tokens",
        "wrote",
    )

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        hear: Callable[[News], None],
        *,
        max_tokens: int | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self.hear = hear
        self.sampling = sampling
        self.monitor = monitor
        self.tokens: list[int] = []  # computed
        self.todo: list[int] = list(prompt)  # to be computed
        self.left = max_tokens  # tokens that it may still write
        self.number: int | None = None  # the engine's
        self.place = Place.NOWHERE
        self.drawn = 0  # tokens that were sent to the reader
        self.last: int | None = None  # the last of them, which the reader may not know yet
        self.over = False  # it ended the answer
        self.era = 0
        self.asked = False  # the reader waits for a token
        self.paused = False
        self.closed = False
        self.ready = False  # everything is computed: the next token can be drawn
        self.wrote = False  # anything yet
        self.settled = True  # what is to become of the cache during the pause was decided
        self.expected: float | None = None  # how long the pause will last (s)
        self.since = 0.0  # when it began
        self.lost = 0  # tokens to be computed again, since the cache was dropped
        self.regaining: float | None = None  # since when that is under way

    @property
    def length(self) -> int:
        """All tokens, computed or not."""
        return len(self.tokens) + len(self.todo)
