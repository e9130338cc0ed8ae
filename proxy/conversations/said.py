"""Conversations as hashes: whoever says the same, with the same key, has had the same conversation. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

_encode = msgspec.json.Encoder(order="deterministic").encode


def digests(key: str | None, messages: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    """A digest of the conversation up to each message, and of the client's key; the first is that of no message."""
    digest = hashlib.sha256(_encode(key)).digest()
    yield digest
    for message in messages:
        digest = hashlib.sha256(digest + _encode(_said(message))).digest()
        yield digest


def digest(key: str | None, messages: Sequence[dict[str, Any]]) -> bytes:
    """The digest of a whole conversation."""
    *_, last = digests(key, messages)
    return last


def _said(message: dict[str, Any]) -> list[Any]:
    """What counts of a message: not how a client writes it down."""
    said = [message["role"], _content(message.get("content")), _calls(message), message.get("tool_call_id")]
    if message["role"] != "assistant" and message.get("name"):  # of an assistant, only its client knows a name
        said.append(message["name"])
    return said


def _content(content: Any) -> Any:
    if isinstance(content, list):
        parts = [part["text"] if isinstance(part.get("text"), str) else part for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else parts
    return content.strip() if isinstance(content, str) else content or ""


def _calls(message: dict[str, Any]) -> list[Any]:
    """Each call's id, name and arguments; a call of the older kind (`function_call`) as it is."""
    calls = [
        [call.get("id"), function.get("name"), function.get("arguments")]
        for call in message.get("tool_calls") or []
        if isinstance(call, dict) and isinstance(function := call.get("function"), dict)
    ]
    return [*calls, message["function_call"]] if message.get("function_call") else calls
