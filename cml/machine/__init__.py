"""The run machine: what happens in one run, events in and actions out. `run.py` explains it."""

from .events import RunError
from .policies import POLICIES, Policy
from .run import Limits, Run

__all__ = ["POLICIES", "Limits", "Policy", "Run", "RunError"]
