"""Which requests are the same: a hash of what is asked, not of how it is carried. Pure."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from asynclm.cml.tools import ToolSpec
from asynclm.proxy.cache.key import tool_version
from asynclm.proxy.chat import ChatRequest

# What says who asks, where it is billed or how it is cached, and changes no answer.
IGNORED: Final = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)


_DEEPEST: Final = 100  # more than any request has, and less than what Python's recursion takes everywhere


class TooDeepError(ValueError):
    """A request is nested too deeply to be written down."""


class Asked(msgspec.Struct, frozen=True):
    """A request as it is compared: its hash (32 hexadecimal digits), its canonical form, and the tools' versions."""

    key: str
    request: dict[str, Any]
    tools: dict[str, str]


def asked(chat: ChatRequest, specs: Iterable[ToolSpec], client: str | None = None) -> Asked:
    """The canonical form of a chat request to a proxy with these tools; for one client's key only, if it is given.

    What counts: the model's name, the messages, the client's own tools, the bounds (`stop`, `max_tokens`), all further
    parameters but those that change no answer (`IGNORED`), and the names and versions of the proxy's tools. Whether it
    is streamed does not, nor do its headers. Raises `TooDeepError`.
    """
    request: dict[str, Any] = {
        "model": chat.model,
        "messages": [_message(message) for message in chat.messages],
        "stop": list(chat.stop),
        "max_tokens": chat.max_tokens,
        "tools": msgspec.to_builtins(chat.functions),
        "parallel_tool_calls": False if chat.single else None,
        **{name: value for name, value in chat.parameters.items() if name not in IGNORED},
    }
    request = _plain({name: value for name, value in request.items() if value is not None and value not in ([], ())})
    tools = {spec.name: tool_version(spec) for spec in specs}
    owner = None if client is None else hmac.new(client.encode("utf-8", "surrogateescape"), b"", "sha256").hexdigest()
    whole = json.dumps([request, tools, owner], sort_keys=True, separators=(",", ":"))
    return Asked(hashlib.sha256(whole.encode()).hexdigest()[:32], request, tools)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what says nothing: clients give an assistant's back with more or less of it."""
    plain = {name: value for name, value in message.items() if value is not None and value not in ("", [])}
    calls = plain.get("tool_calls")
    if isinstance(calls, list):
        plain["tool_calls"] = [_call(call) if isinstance(call, dict) else call for call in calls]
    return plain


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict):
        return dict(call)
    return {"id": call.get("id"), "name": function.get("name"), "arguments": function.get("arguments")}


def _plain(value: Any, depth: int = 0) -> Any:
    """Numbers by their value: 1.0 is 1."""
    if depth > _DEEPEST:
        raise TooDeepError(f"it is nested in more than {_DEEPEST} levels")
    match value:
        case dict():
            return {name: _plain(each, depth + 1) for name, each in value.items()}
        case list():
            return [_plain(each, depth + 1) for each in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
