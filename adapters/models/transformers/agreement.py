"""Are two logits the same but for rounding?"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

# How far logits may be off: in float32 the order of sums, in shorter types their few digits.
_TOLERANCE: Final = {torch.float32: 2e-3, torch.bfloat16: 0.15, torch.float16: 0.05}


def alike(logits: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether the logits of a model in `dtype` are those expected, measured by their spread. NaN is like nothing."""
    spread = expected.std().clamp(min=1e-3)
    return bool(((logits - expected).abs().max() / spread) < _TOLERANCE.get(dtype, 0.15))
