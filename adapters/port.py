"""A TCP port on the command line."""

from __future__ import annotations

import argparse


def port(text: str) -> int:
    """The port that an option's value names, 0 (any free one) to 65535. For argparse, which words the error."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, not {text[:20]!r}")
    return int(text)
