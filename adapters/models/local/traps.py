"""What becomes of a sequence's cache while the model waits at a trap (paper, section 5).

The paper keeps the cache if both swapping it and computing it again would take longer than the wait, and else takes the
cheaper of the two. We keep it, too, as long as nobody needs its memory: to put it away would only cost time then. What
was kept can still go when memory runs short in the middle of the wait; then the cache goes first that is worth least.
"""

from __future__ import annotations

import enum
import math
from statistics import NormalDist
from typing import Final, Literal, NamedTuple, Protocol

from .costs import Costs

Rule = Literal["auto", "paper", "keep", "swap", "recompute"]

_UNKNOWN_S: Final = 1.0  # how long a wait is taken to be where nobody knows: a tool that calls a service
_SPREAD: Final = 1.0  # of the logarithm of waits: two of three are between 0.37 and 2.7 times what was expected
_NORMAL: Final = NormalDist()
_FAR: Final = 8.0  # standard deviations
_LEAST_WAIT_S: Final = 1e-3


class Choice(enum.StrEnum):
    """Leave the cache on the device; move it to the host's memory and back; forget it and compute it again."""

    KEEP = "keep"
    SWAP = "swap"
    RECOMPUTE = "recompute"


class Decision(NamedTuple):
    """A choice, why it was made, and what each way is expected to cost the run (ms; none if never measured)."""

    choice: Choice
    why: str
    costs_ms: dict[str, float]


class TrapHandler(Protocol):
    """Decides for one sequence after the other."""

    def decide(self, tokens: int, wait: float, *, crowded: bool, must: bool) -> Decision:
        """For a sequence of so many tokens, expected to wait for so many seconds more.

        `crowded`: others want the memory. `must`: it has to go, so that `keep` is no answer.
        """
        ...

    def worth(self, tokens: int, wait: float) -> float:
        """What it is worth to have that sequence's cache at hand: under pressure the one that is worth least goes."""
        ...


class CostHandler:
    """Decides by measured costs, and by `rule`.

    "auto": see above. "paper": the paper's rule, even where nobody needs the memory. The others do what they say; under
    "keep" a cache that has to go goes the cheaper way. Without `costs` a cache is kept, and computed again if it had to
    go.
    """

    def __init__(self, costs: Costs | None = None, rule: Rule = "auto") -> None:
        self._costs = costs
        self._rule = rule

    def decide(self, tokens: int, wait: float, *, crowded: bool, must: bool) -> Decision:
        """See `TrapHandler`."""
        costs = self._weigh(tokens)
        known = {str(choice): round(cost, 3) for choice, cost in costs.items()}
        if self._rule == "swap" or self._rule == "recompute":
            return Decision(Choice(self._rule), "as configured", known)
        cheaper = min(costs, key=costs.__getitem__, default=Choice.RECOMPUTE)
        if must:
            return Decision(cheaper, "its memory is needed", known)
        if self._rule == "keep":
            return Decision(Choice.KEEP, "as configured", known)
        if self._rule == "auto" and not crowded:
            return Decision(Choice.KEEP, "nobody needs its memory", known)
        if not costs:
            return Decision(Choice.KEEP, "nothing is known of what else would cost", known)
        if costs[cheaper] > wait * 1000:
            return Decision(Choice.KEEP, "all else would take longer than the wait", known)
        return Decision(cheaper, "the cheapest way for such a wait", known)

    def worth(self, tokens: int, wait: float) -> float:
        """See `TrapHandler`."""
        costs = self._weigh(tokens)
        # Without measurements each token costs the same: what is needed last goes first.
        cost = min(costs.values()) if costs else float(tokens)
        return worth(cost, tokens, wait)

    def _weigh(self, tokens: int) -> dict[Choice, float]:
        if self._costs is None:
            return {}
        return {Choice.SWAP: self._costs.swap(tokens), Choice.RECOMPUTE: self._costs.recompute(tokens)}


def worth(cost_ms: float, tokens: int, wait: float) -> float:
    """What a cache is worth that waits: the cost of bringing it back for each token-second of memory that it takes up.

    That is the value of GreedyDual-Size (cost by size), and by time, since what is needed soon frees its memory for
    that long only.
    """
    return cost_ms / (max(tokens, 1) * max(wait, _LEAST_WAIT_S))


def left(expected: float | None, waited: float) -> float:
    """How much longer a wait will be (s; the median) that was expected to take `expected` and has taken `waited`.

    Tools' times are about log-normal: one that was quick most of the time can still take long, and the longer it has
    taken the longer it may yet take. So this isn't just the difference, which would be 0 for whatever is late.
    """
    median = max(_UNKNOWN_S if expected is None else expected, _LEAST_WAIT_S)
    if waited <= median * math.exp(-_SPREAD * _FAR):
        return median
    gone = min(math.log(waited / median) / _SPREAD, _FAR)
    rest = _NORMAL.cdf(-gone)  # how likely it was to take as long
    return max(waited * math.expm1(_SPREAD * (-_NORMAL.inv_cdf(rest / 2) - gone)), _LEAST_WAIT_S)
