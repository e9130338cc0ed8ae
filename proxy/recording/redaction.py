"""Secrets are taken out before anything is written. Headers never get this far at all.

What counts as a secret: the keys that this proxy knows (the client's, the upstreams'), what looks like a key, a token
or a private key, passwords in URLs, the values of fields, headers and parameters whose name says so, and what the
config's patterns match. Pure.

Whatever a text holds, searching it takes time in proportion to its length: this happens in the event loop, and the
texts are those of strangers. So no pattern may go over the same characters again and again.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

REDACTED: Final = "[redacted]"

_MAX_NAME: Final = 40
_MIN_KEY: Final = 8  # shorter ones are words more often than keys
_MIN_PARAMETER: Final = 16  # of a URL, where its name says less

# Names of fields that hold secrets, with dashes, underscores or neither; other words may stand before (db_password).
_NAME: Final = re.compile(
    r"(?:.*[^a-z])?(?:(?:api|auth|access|secret|private|session|refresh|bearer|client|id|security|csrf)[-_]?"
    r"(?:access[-_]?)?(?:key|token|secret|password)|password|passwd|passphrase|pwd|authorization|cookie|secret)",
    re.IGNORECASE | re.DOTALL,
)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "api-key", "cookie", "set-cookie"})
_PARAMETERS: Final = frozenset({"key", "sig", "signature"})

# What looks like a secret, and how each begins, in small letters.
_LOOKS: Final = [
    (begins, re.compile(pattern, re.DOTALL))
    for begins, pattern in (
        # OpenAI, Anthropic, Stripe
        (("sk-", "sk_", "pk-", "pk_", "rk-", "rk_"), r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}"),
        (("gho_", "ghp_", "ghr_", "ghs_", "ghu_", "github_pat_"), r"\b(?:gh[opsur]|github_pat)_[A-Za-z0-9_]{20,}"),
        (("glpat-",), r"\bglpat-[A-Za-z0-9_-]{16,}"),
        (("xox",), r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
        (("akia", "asia"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
        (("aiza",), r"\bAIza[0-9A-Za-z_-]{35}"),
        (("bearer", "basic"), r"(?i:\b(?:bearer|basic)\s+[A-Za-z0-9._~+/-]{16,}=*)"),
        (("-----begin ",), r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|$)"),
        # https://name:...@host
        (("://",), r"""://[^\s/:@"'\\]{0,256}:(?P<it>[^\s/@"'\\]{1,256})@"""),
    )
]

# A JSON Web Token. Where a word turns out to hold none, no other place in it is tried.
_JWT: Final = re.compile(
    r"(?<![A-Za-z0-9_-])(?>(?:[A-Za-z0-9_-]*?[-_])??eyJ[A-Za-z0-9_-]{8,})\.[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{4,}"
)

# The last word of a name and what parts it from its value, for
#   "password": "...", password='...', \"password\": \"...\"        https://host/?api_key=...        X-Api-Key: ...
_LAST_WORDS: Final = (
    *("key", "token", "secret", "password", "passwd", "passphrase", "pwd", "authorization", "cookie"),
    *("sig=", "signature="),
)
_NAMED: Final = re.compile(
    r"""(?i:(key|token|secret|password|passwd|passphrase|pwd|authorization|cookie|signature|sig)"""
    r"""(?:\\*["']?\s*[:=]\s*(?=["'\\])|=|[ \t]*:[ \t]*))"""
)
_QUOTED: Final = re.compile(r"""\"((?:[^\"\\]|\\.)+)\"|'((?:[^'\\]|\\.)+)'|\\+\"([^\"\\]+)\\+\"""", re.DOTALL)
_PARAMETER: Final = re.compile(r"""[^&;#\s"'<>\\]+""")
_TOKEN: Final = "token"  # may be a word of a text, too: a field of that name holds a secret if it looks random
_RANDOM: Final = re.compile(r"(?=[^0-9]*[0-9])[A-Za-z0-9._~+/=-]{16,}")
_LINE: Final = re.compile(r"""[^\s"'\\][^\r\n"'\\]*""")

Span = tuple[int, int]


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
        lower = text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")  # of the same length
        found = [match.span("it" if match.lastgroup else 0) for match in _looks(text, lower)]
        found += _named(text, lower)
        if "eyj" in lower:
            found += [match.span() for match in _JWT.finditer(text)]
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
        spans = self.spans(text)
        return without([text], spans)[0] if spans else text

    def value(self, value: Any) -> Any:
        """A JSON value without secrets, in strings, in names and behind names that say so."""
        match value:
            case str():
                return self.text(value)
            case list() | tuple():
                return [self.value(each) for each in value]
            case dict():
                return {
                    self.value(name): REDACTED if _is_secret(name, each) else self.value(each)
                    for name, each in value.items()
                }
            case _:
                return value


def without(pieces: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[str]:
    """The pieces of one text without these spans of it, which are in order and apart; as many pieces as there were."""
    cleaned: list[str] = []
    at = 0
    first = 0  # of the spans, the first that may reach into the piece
    for piece in pieces:
        end = at + len(piece)
        left, rest = at, []
        while first < len(spans) and spans[first][1] <= at:
            first += 1
        for number in range(first, len(spans)):
            start, stop = spans[number]
            if start >= end:
                break
            rest.append(piece[left - at : max(start, left) - at])
            if start >= at:
                rest.append(REDACTED)
            left = min(stop, end)
        rest.append(piece[left - at :])
        cleaned.append("".join(rest))
        at = end
    return cleaned


def _looks(text: str, lower: str) -> Iterator[re.Match[str]]:
    """What looks like a secret wherever it stands."""
    for begins, pattern in _LOOKS:
        for begin in begins:
            at = lower.find(begin)
            while at >= 0:
                match = pattern.match(text, at)
                if match is not None:
                    yield match
                at = lower.find(begin, at + len(begin) if match is None else match.end())


def _named(text: str, lower: str) -> Iterator[Span]:
    """The values of what is named like a secret."""
    for word in _LAST_WORDS:
        at = lower.find(word)
        while at >= 0:
            named = _NAMED.match(text, at)
            value = None if named is None else _value(text, named)
            if value is not None:
                yield value
            at = lower.find(word, at + len(word) if value is None else value[1])


def _value(text: str, named: re.Match[str]) -> Span | None:
    """Where the value is; None if the name isn't that of a secret."""
    begin = named.start()
    while begin > 0 and named.start() - begin < _MAX_NAME and (text[begin - 1].isalnum() or text[begin - 1] in "_-."):
        begin -= 1
    name = text[begin : named.end(1)]
    before = text[begin - 1] if begin else ""
    at = named.end()
    if text[at : at + 1] in ('"', "'", "\\"):
        token = name.lower() == _TOKEN
        if token or _secret(name):
            quoted = _QUOTED.match(text, at)
            span = quoted and quoted.span(quoted.lastindex or 0)
            return span if span and (not token or _RANDOM.fullmatch(text, *span)) else None
    elif text[at - 1] == "=":
        last = re.split("[-_.]", name.lower())[-1]
        if before in ("?", "&", ";") and (last in _PARAMETERS or last == _TOKEN or _secret(name)):
            value = _PARAMETER.match(text, at)
            least = _MIN_PARAMETER if last in _PARAMETERS and not _secret(name) else 1
            return value.span() if value is not None and len(value[0]) >= least else None
    elif name.lower() in _HEADERS or (name[:2].lower() == "x-" and _secret(name)):
        line = _LINE.match(text, at)
        return line and line.span()
    return None


def _is_secret(name: object, value: object) -> bool:
    if not isinstance(name, str) or not isinstance(value, str):
        return False
    return _secret(name) or (name.lower() == _TOKEN and _RANDOM.fullmatch(value) is not None)


@functools.lru_cache(1024)
def _secret(name: str) -> bool:
    return len(name) <= 2 * _MAX_NAME and _NAME.fullmatch(_CAMEL.sub("_", name)) is not None
