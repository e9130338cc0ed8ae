"""How long a call runs: drawn once for each call of a case, the same under all methods."""

from __future__ import annotations

import math
import random
from typing import Final

# The paper measured 30 to 500 ms, 110 ms in the mean (section 6): a log-normal law, cut there.
MEAN_MS: Final = 110.0
_MIN_MS: Final = 30.0
_MAX_MS: Final = 500.0
_MEDIAN_MS: Final = 90.42  # before the cut, after which the mean is the one above
_SIGMA: Final = 0.6


def running_ms(key: str, mean_ms: float) -> float:
    """What the call of that name takes, where the mean of all is `mean_ms`: to a tenth of a millisecond.

    For other means than the paper's the whole law is stretched, so that a call that is slow under one is so under all.
    """
    chance = random.Random(key)
    while True:
        drawn = chance.lognormvariate(math.log(_MEDIAN_MS), _SIGMA)
        if _MIN_MS <= drawn <= _MAX_MS:
            return round(drawn * mean_ms / MEAN_MS, 1)
