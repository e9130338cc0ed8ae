"""The run machine: what happens in one run, events in and actions out. `run.py` explains it."""

from .core import Limits
from .events import RunError
from .policies import POLICIES, Policy
from .run import Run

__all__ = ["POLICIES", "Limits", "Policy", "Run", "RunError"]
