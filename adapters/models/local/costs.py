"""What it costs to bring a sequence's cache back: curves over its length, fitted to what was measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

import msgspec

_POWERS: Final = (1, 0, 2)  # the likeliest first: where two fit alike, the earlier is taken


class Curve(msgspec.Struct, frozen=True):
    """Milliseconds for n tokens: `fixed + each * n + square * n**2`. None of the three is negative."""

    fixed: float = 0.0
    each: float = 0.0
    square: float = 0.0

    def __call__(self, tokens: float) -> float:
        """Milliseconds for so many tokens."""
        return self.fixed + tokens * (self.each + tokens * self.square)


class Costs(msgspec.Struct, frozen=True):
    """The cost curves of one model on one device (paper, section 5).

    `swap`: to the host's memory and back, linear. `recompute`: a prefill, which attention makes quadratic.
    """

    swap: Curve
    recompute: Curve


def fit(points: Sequence[tuple[int, float]], degree: int) -> Curve:
    """The curve of that degree (1 or 2) closest to the points: (tokens, milliseconds), both above 0.

    Distances count relative to a point's cost, as what is measured of it errs by some per cent of it. Raises ValueError
    for no points at all; of few points, a curve with fewer terms than its degree allows is made.
    """
    if not points:
        raise ValueError("a curve is fitted to one point at the least")
    if any(tokens <= 0 or not 0 < cost < math.inf for tokens, cost in points):
        raise ValueError("a curve is fitted to points above 0")
    most = max(tokens for tokens, _ in points)
    # Scaled so that everything is around 1: a row for each point, which the terms together should bring to 1.
    rows = [[(tokens / most) ** power / cost for power in range(degree + 1)] for tokens, cost in points]
    distinct = len({tokens for tokens, _ in points})
    best, closest = [0.0] * (degree + 1), math.inf
    # Least squares without negative terms: the best of all sets of terms whose own least squares has none. With three
    # terms that is 7 sets.
    powers = [power for power in _POWERS if power <= degree]
    for size in range(1, min(len(powers), distinct) + 1):
        for chosen in itertools.combinations(powers, size):
            found = _least_squares([[row[power] for power in chosen] for row in rows])
            if found is None or min(found) < 0:
                continue
            terms = dict(zip(chosen, found, strict=True))
            off = sum((sum(row[power] * term for power, term in terms.items()) - 1) ** 2 for row in rows)
            if off < closest - 1e-12:
                closest = off
                best = [terms.get(power, 0.0) for power in range(degree + 1)]
    return Curve(*(term / most**power for power, term in enumerate(best)))


def _least_squares(rows: list[list[float]]) -> list[float] | None:
    """The terms that bring each row closest to 1, by the normal equations; None where they are singular."""
    size = len(rows[0])
    matrix = [
        [math.fsum(row[i] * row[j] for row in rows) for j in range(size)] + [math.fsum(row[i] for row in rows)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda j: abs(matrix[j][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        if abs(matrix[i][i]) < 1e-300:
            return None
        for j in range(size):
            if j != i:
                share = matrix[j][i] / matrix[i][i]
                matrix[j] = [a - share * b for a, b in zip(matrix[j], matrix[i], strict=True)]
    return [matrix[i][size] / matrix[i][i] for i in range(size)]
