"""Tools that the proxy runs itself: `tool` declares on a Python function what its signature can't say."""

from asynclm.adapters.tools.options import tool

__all__ = ["tool"]
