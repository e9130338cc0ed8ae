"""An HTTP answer as a tool's result, and as words about what was wrong."""

from __future__ import annotations

import http
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import msgspec

_MAX_PROBLEM: Final = 600
_TEXTUAL: Final = ("application/xml", "application/yaml", "application/x-yaml", "application/javascript")
_TEXTUAL_ENDS: Final = ("+xml", "+yaml", "ndjson", "jsonl", "jsonlines", "json-seq", "-www-form-urlencoded")
# Where APIs put their words about an error, the most telling first.
_SAYING: Final = ("message", "detail", "error_description", "error", "title", "errors", "reason", "msg", "description")


class HttpAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Status line, what matters of the headers, and the body, read to its end and decompressed."""

    status: int
    reason: str = ""
    content_type: str = ""
    charset: str | None = None
    body: bytes = b""
    location: str | None = None
    retry_after: str | None = None


def value(answer: HttpAnswer) -> Any:
    """The body: JSON decoded, text as a string; of anything else what it is. Without a body, the status."""
    if not answer.body:
        return {"status": answer.status}
    kind = answer.content_type.lower()
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return msgspec.json.decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _text(answer)
    if kind.startswith("text/") or kind in _TEXTUAL or kind.endswith(_TEXTUAL_ENDS):
        return _text(answer)
    return {"content_type": answer.content_type, "bytes": len(answer.body), "note": "binary data is not shown"}


def problem(answer: HttpAnswer) -> str:
    """An error status and what the service says about it: `404 Not Found: no such pet`."""
    reason = answer.reason
    if not reason:
        with suppress(ValueError):  # a status that nobody knows
            reason = http.HTTPStatus(answer.status).phrase
    said = _words(answer)
    return f"{answer.status} {reason}".strip() + (f": {said}" if said else "")


def _words(answer: HttpAnswer) -> str:
    kind = answer.content_type.lower()
    text = ""
    if "json" in kind:
        try:
            document = msgspec.json.decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            text = _text(answer)
        else:
            text = "; ".join(dict.fromkeys(_sayings(document, 0))) or _text(answer)
    elif kind == "text/plain":
        text = _text(answer)
    text = " ".join(text.split())
    return text if len(text) <= _MAX_PROBLEM else f"{text[:_MAX_PROBLEM]}..."


def _sayings(document: Any, depth: int) -> Iterator[str]:
    match document:
        case str() if document.strip() and depth:
            yield document
        case list() if depth < 4:
            for each in document[:5]:
                yield from _sayings(each, depth + 1)
        case dict() if depth < 4:
            said = ([*_sayings(document[key], depth + 1)] for key in _SAYING if key in document)
            yield from next(filter(None, said), [])


def _text(answer: HttpAnswer) -> str:
    try:
        return answer.body.decode(answer.charset or "utf-8", "replace")
    except LookupError:  # a charset that nobody knows
        return answer.body.decode("utf-8", "replace")
