"""Where the evaluation's cases come from, and what is right in a run of one."""

from .case import Case, Expected
from .datasets import DATASETS, load_cases
from .workshop import Workshop

__all__ = ["DATASETS", "Case", "Expected", "Workshop", "load_cases"]
