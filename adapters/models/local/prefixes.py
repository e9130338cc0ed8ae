"""How far two sequences are the same."""

from __future__ import annotations

from collections.abc import Sequence


def shared(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the longest common beginning, in tokens. By bisection: slices compare faster than items."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:  # the same up to `low`, but not up to `high`
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
