"""A JSON schema's `pattern` as a regular expression that llguidance takes, where that is possible."""

from __future__ import annotations

import functools
import re
from typing import Final

import llguidance

_CLASS_OPERATORS: Final = ("[", "&&", "--", "~~")  # mean something in a class there, and nothing here
_LETTERS: Final = frozenset("dDsSwWnrtfvx")  # escapes that both know
_MAX_CHARS: Final = 500

SPECIAL: Final = r"['\"\\\x00-\x1f\x7f]"
"""What doesn't stand for itself in every literal, as a regular expression."""


@functools.lru_cache(maxsize=1024)
def whole(pattern: str) -> str | None:
    """A regular expression for all strings in which `pattern` is found, between slashes as Lark writes it.

    None if it can't be told so (it looks around, refers back, or anchors in the middle), or if there may be characters
    in such a string that don't stand for themselves in a literal.
    """
    if len(pattern) > _MAX_CHARS:
        return None
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return None
    body = pattern
    begins = body.startswith("^")
    body = body[1:] if begins else body
    ends = body.endswith("$") and not _escaped(body, len(body) - 1)
    body = body[:-1] if ends else body
    if not _plain(body, choices=not (begins or ends)):
        return None
    before, after = ("" if begins else "(?s:.*)"), ("" if ends else "(?s:.*)")
    written = f"/{before}({_slashes(body)}){after}/"
    return written if _free_of_escapes(written) else None


def _free_of_escapes(written: str) -> bool:
    any_others = f"/(?s:.*){SPECIAL}(?s:.*)/"
    grammar = f"start: A\nA: {written} & {any_others}"
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    if matcher.is_error():  # no regular expression for llguidance
        return False
    matcher.compute_bitmask()
    return matcher.is_error()  # there is no way to begin: nothing fits both


def _plain(body: str, *, choices: bool) -> bool:
    """Whether nothing stands in `body` that the two dialects read differently."""
    at = depth = 0
    size = len(body)
    while at < size:
        char = body[at]
        if char == "\\":
            following = body[at + 1 : at + 2]
            if following.isalnum() and following not in _LETTERS:
                return False
            at += 2
            continue
        if char == "[":
            end = _class_end(body, at)
            inside = body[at + 1 : end]
            if any(operator in inside for operator in _CLASS_OPERATORS) or re.search(r"\\[^dDsSwWnrtfvx\W]", inside):
                return False
            at = end + 1
            continue
        if char == "(":
            if body.startswith("(?", at) and not body.startswith("(?:", at):
                return False
            depth += 1
        elif char == ")":
            depth -= 1
        elif char in "^$" or (char == "|" and not depth and not choices):
            return False
        at += 1
    return True


def _class_end(body: str, at: int) -> int:
    at += 1
    if body[at : at + 1] == "^":
        at += 1
    at += 1  # a bracket right here is a member
    while body[at] != "]" or _escaped(body, at):
        at += 1
    return at


def _escaped(text: str, at: int) -> bool:
    slashes = len(text[:at]) - len(text[:at].rstrip("\\"))
    return slashes % 2 == 1


def _slashes(body: str) -> str:
    return re.sub(r"\\.|/|\n", lambda m: {"/": r"\/", "\n": r"\n"}.get(m[0], m[0]), body, flags=re.DOTALL)
