"""Secrets are taken out before anything is written. Headers never get this far at all.

What counts as a secret: the keys that this proxy knows (the client's, the upstreams'), what looks like a key, a token
or a private key, the values of fields whose name says so, and what the config's patterns match. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

REDACTED: Final = "[redacted]"

_MAX_NAME: Final = 40
_MIN_KEY: Final = 8  # shorter ones are words more often than keys

# Names of fields that hold secrets, in any case, with dashes, underscores or neither.
_NAME: Final = (
    r"(?:(?:x|proxy)[-_]?)?(?:(?:api|auth|access|secret|private|session|refresh|bearer|client|id)[-_]?"
    r"(?:key|token|secret|password)|password|passwd|passphrase|authorization|cookie|secret)"
)
_FIELD: Final = re.compile(_NAME, re.IGNORECASE)

# What looks like a secret, and words of which one stands in each: most texts hold none, and are not searched further.
_LOOKS: Final = [
    (hints, re.compile(pattern, re.DOTALL))
    for hints, pattern in (
        # OpenAI, Anthropic, Stripe
        (("sk-", "sk_", "pk_", "rk_"), r"\b(?:sk|pk|rk)[-_](?:[A-Za-z0-9]+[-_])*[A-Za-z0-9_-]{16,}"),
        (("gh", "github_pat_"), r"\b(?:gh[opsur]|github_pat)_[A-Za-z0-9_]{20,}"),
        (("glpat-",), r"\bglpat-[A-Za-z0-9_-]{16,}"),
        (("xox",), r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
        (("akia", "asia"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
        (("aiza",), r"\bAIza[0-9A-Za-z_-]{35}"),
        (("eyj",), r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}"),  # a JSON Web Token
        (("bearer", "basic"), r"(?i:\b(?:bearer|basic)\s+[A-Za-z0-9._~+/-]{16,}=*)"),
        (("private key",), r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"),
        # "password": "...", password='...'
        (
            ("key", "token", "secret", "passw", "passphrase", "authorization", "cookie"),
            rf"""(?i:(?<![A-Za-z]){_NAME}["']?\s*[:=]\s*(?:"(?P<a>(?:[^"\\]|\\.)+)"|'(?P<b>(?:[^'\\]|\\.)+)'))""",
        ),
    )
]


class Redactor:
    """Finds secrets. `patterns` are regular expressions beside the built-in ones, `keys` are known secrets."""

    def __init__(self, patterns: Iterable[str] = (), keys: Iterable[str | None] = ()) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._keys = sorted({key for key in keys if key and len(key) >= _MIN_KEY}, key=len, reverse=True)

    def with_key(self, key: str | None) -> Redactor:
        """The same, and one more key."""
        other = Redactor()
        other._patterns = self._patterns
        other._keys = sorted({*self._keys, *([key] if key and len(key) >= _MIN_KEY else [])}, key=len, reverse=True)
        return other

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where secrets stand in a text, in order, none overlapping another."""
        lower = text.lower()
        patterns = [pattern for hints, pattern in _LOOKS if any(hint in lower for hint in hints)]
        found = [match.span(match.lastgroup or 0) for pattern in patterns for match in pattern.finditer(text)]
        found += [match.span() for pattern in self._patterns for match in pattern.finditer(text) if match[0]]
        for key in self._keys:
            at = text.find(key)
            while at >= 0:
                found.append((at, at + len(key)))
                at = text.find(key, at + len(key))
        merged: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def text(self, text: str) -> str:
        """A text without its secrets."""
        for start, end in reversed(self.spans(text)):
            text = text[:start] + REDACTED + text[end:]
        return text

    def value(self, value: Any) -> Any:
        """A JSON value without secrets, in strings, in names and behind names that say so."""
        match value:
            case str():
                return self.text(value)
            case list() | tuple():
                return [self.value(each) for each in value]
            case dict():
                return {
                    self.value(name): REDACTED if _secret(name) and isinstance(each, str) else self.value(each)
                    for name, each in value.items()
                }
            case _:
                return value


def without(pieces: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[str]:
    """The pieces of one text without these spans of it, as many pieces as there were."""
    cleaned: list[str] = []
    at = 0
    for piece in pieces:
        end = at + len(piece)
        left, rest = at, []
        for start, stop in spans:
            if stop <= at or start >= end:
                continue
            rest.append(piece[left - at : max(start, left) - at])
            if start >= at:
                rest.append(REDACTED)
            left = min(stop, end)
        rest.append(piece[left - at :])
        cleaned.append("".join(rest))
        at = end
    return cleaned


def _secret(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= _MAX_NAME and _FIELD.fullmatch(name) is not None
