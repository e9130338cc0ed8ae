"""What a resume costs and how long tools take: measured as runs go on, and shared by them. `auto` decides by it.

Times are in seconds. Nothing here reads a clock: the run machine says what it has seen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from typing import Final

import msgspec

from ..tools import ToolSpec

_WEIGHT: Final = 0.2  # of the newest observation; about the last ten count
_SLOW: Final = 4.0  # times what is expected
_REMEMBERED: Final = 64  # running times of a tool
_MAX_TOOLS: Final = 1024


class Average:
    """An exponential moving average. A seed is what is expected before anything was seen; it fades like the rest."""

    __slots__ = ("value",)

    def __init__(self, seed: float | None = None) -> None:
        self.value = seed

    def add(self, seen: float) -> None:
        """Take in one observation."""
        self.value = seen if self.value is None else self.value + _WEIGHT * (seen - self.value)


class Speed:
    """One model's speed: time to the first token of a request, and time for each further token. None: not yet known."""

    __slots__ = ("_token", "_ttft")

    def __init__(self, ttft: float | None = None, token: float | None = None) -> None:
        self._ttft = Average(ttft)
        self._token = Average(token)

    @property
    def ttft(self) -> float | None:
        """Expected time from a request to its first token (s)."""
        return self._ttft.value

    @property
    def token(self) -> float | None:
        """Expected time for each further token (s)."""
        return self._token.value

    def began(self, after: float) -> None:
        """A stream's first token came `after` seconds."""
        expected = self._ttft.value
        # One that waited for retries says little about the next: it counts for no more than a slow one.
        self._ttft.add(max(0.0, after if expected is None else min(after, _SLOW * expected + 0.05)))

    def wrote(self, tokens: int, within: float) -> None:
        """That many tokens followed the first one, in `within` seconds."""
        if tokens >= 4 and within >= 0:  # fewer say nothing: they may have come in one packet
            self._token.add(within / tokens)


class ToolRecord:
    """What one tool was like: how long it runs, and how often its result leads on to a further call.

    Running times are what it declares, until times were measured; of these the last 64. `leads` is the part of its
    results that the model answered with a call; it begins at 1, since a wrong guess that way costs tokens and not time.
    """

    __slots__ = ("_declared", "_leads", "_recent", "_sorted")

    def __init__(self, declared: float | None = None) -> None:
        self._leads = Average(1.0)
        self._declared = declared
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        """A call took that long."""
        self._recent.append(seconds)
        self._sorted = sorted(self._recent)

    @property
    def leads(self) -> float:
        """How likely it is that the model writes a call when it is told a result of this tool (0 to 1)."""
        return self._leads.value or 0.0

    def led(self, on: bool) -> None:
        """The model was told a result, alone or with others, and wrote a call or none."""
        self._leads.add(float(on))

    def remaining(self, elapsed: float, quantile: float = 0.5) -> float | None:
        """How much longer a call takes that has been running for `elapsed` seconds; None if nothing is known.

        The quantile of the times of those calls that took longer than that. A call that has outlasted them all is
        taken to run for as long again.
        """
        times = self._sorted or ([self._declared] if self._declared is not None else [])
        if not times:
            return None
        longer = times[bisect_right(times, elapsed) :]
        if not longer:
            return elapsed
        return longer[min(int(quantile * len(longer)), len(longer) - 1)] - elapsed


class ToolRecords:
    """The record of every tool, by name; of the last thousand or so that were used."""

    def __init__(self) -> None:
        self._tools: OrderedDict[str, ToolRecord] = OrderedDict()

    def of(self, spec: ToolSpec) -> ToolRecord:
        """The tool's record."""
        found = self._tools.get(spec.name)
        if found is None:
            declared = None if spec.estimate_ms is None else spec.estimate_ms / 1000
            found = self._tools[spec.name] = ToolRecord(declared)
            if len(self._tools) > _MAX_TOOLS:
                self._tools.popitem(last=False)
        else:
            self._tools.move_to_end(spec.name)
        return found


class Costs:
    """What a run knows of the model that it uses and of the tools; what it sees, it adds."""

    __slots__ = ("speed", "tools")

    def __init__(self, speed: Speed | None = None, tools: ToolRecords | None = None) -> None:
        self.speed = speed or Speed()
        self.tools = tools or ToolRecords()


class Forecast(msgspec.Struct, frozen=True, gc=False):
    """What is expected at a decision (s). None: unknown.

    `ttft`: what a new stream takes to its first token. `next`: the time until one of the pending results is there, as
    far as their tools are known. `leads`: how likely it is that what is queued leads to a further call (0 to 1).
    `age`: how long the oldest of the branches whose model has not begun has been open; `age_leads`: how likely it is
    that one of those brings a further call.
    """

    ttft: float | None = None
    next: float | None = None
    leads: float = 1.0
    age: float = 0.0
    age_leads: float = 1.0
