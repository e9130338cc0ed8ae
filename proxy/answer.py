"""The answer as OpenAI's API gives it: chunks of a stream, or one document. Pure; what is sent when, is the driver's.

A chunk is put together from parts that are the same for all of a run's and one JSON string: no object is built for
it. Order and shape are what clients need: the role first, content deltas, one `finish_reason`, usage (if asked for)
in a last chunk without choices, `[DONE]`. An error in mid-stream is an event of its own, because clients take a bare
end for success.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from asynclm.cml.machine import RunError
from asynclm.cml.usage import Usage
from asynclm.proxy.errors import error_body

DONE: Final = b"data: [DONE]\n\n"
HEARTBEAT: Final = b": keep-alive\n\n"

# OpenAI's own finish reasons; an upstream may know others, which clients' types don't.
_REASONS: Final = frozenset({"stop", "length", "content_filter", "tool_calls"})

_encode: Final = msgspec.json.Encoder().encode


class StreamedAnswer:
    """Builds the events of one streamed answer. What was built is taken with `take`."""

    def __init__(self, id: str, model: str, *, include_usage: bool) -> None:
        head = _encode({"id": id, "object": "chat.completion.chunk", "created": int(time.time()), "model": model})[:-1]
        usage = b',"usage":null' if include_usage else b""
        self._head = b"data: " + head
        self._delta = self._head + b',"choices":[{"index":0,"delta":{"content":'
        self._end = b'},"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"
        self._no_usage = usage
        self._include_usage = include_usage
        self._parts: list[bytes] = []
        self._calls = 0

    def begin(self) -> None:
        """The role, before anything else, whatever was noted already."""
        noted, self._parts = self._parts, []
        self._raw(b'{"role":"assistant","content":"","refusal":null}')
        self._parts += noted

    def text(self, text: str) -> None:
        """A content delta."""
        self._parts += (self._delta, _encode(text), self._end)

    def reasoning(self, text: str, field: str) -> None:
        """A delta of the model's reasoning, under the upstream's name for it."""
        self._raw(_encode({field: text}))

    def tool_call(self, id: str, name: str, arguments: str) -> None:
        """A call to a tool of the client's own, whole; `arguments` is JSON text."""
        self._raw(_encode({"tool_calls": [{"index": self._calls, **_tool_call(id, name, arguments)}]}))
        self._calls += 1

    def finish(self, reason: str, usage: Usage, extra: Mapping[str, Any]) -> None:
        """The end of the answer."""
        delta = b',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":'
        self._parts += (self._head, delta, _encode(_reason(reason)), b"}]", self._no_usage, b"}\n\n")
        if self._include_usage:
            document = _encode(usage_document(usage, extra))
            self._parts += (self._head, b',"choices":[],"usage":', document, b"}\n\n")
        self._parts.append(DONE)

    def fail(self, error: RunError) -> None:
        """The end of an answer that broke off."""
        self._parts += (b"data: ", error_body(error.message, error.type, error.code, error.param), b"\n\n")

    def take(self) -> bytes:
        """Everything built since the last time."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def __bool__(self) -> bool:
        return bool(self._parts)

    def _raw(self, delta: bytes) -> None:
        parts = (self._head, b',"choices":[{"index":0,"delta":', delta, b',"logprobs":null,"finish_reason":null}]')
        self._parts += (*parts, self._no_usage, b"}\n\n")


class WholeAnswer:
    """Collects an answer that is not streamed."""

    def __init__(self, id: str, model: str) -> None:
        self._id = id
        self._model = model
        self._text: list[str] = []
        self._reasoning: dict[str, list[str]] = {}
        self._calls: list[dict[str, Any]] = []

    def text(self, text: str) -> None:
        """More of the content."""
        self._text.append(text)

    def reasoning(self, text: str, field: str) -> None:
        """More of the reasoning."""
        self._reasoning.setdefault(field, []).append(text)

    def tool_call(self, id: str, name: str, arguments: str) -> None:
        """A call to a tool of the client's own; `arguments` is JSON text."""
        self._calls.append(_tool_call(id, name, arguments))

    def document(self, reason: str, usage: Usage, extra: Mapping[str, Any]) -> bytes:
        """The whole `chat.completion`, as JSON."""
        text = "".join(self._text)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._calls:
            message |= {"content": text or None, "tool_calls": self._calls}
        message.update((field, "".join(parts)) for field, parts in self._reasoning.items())
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(reason)}
        return _encode(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": int(time.time()),
                "model": self._model,
                "choices": [choice],
                "usage": usage_document(usage, extra),
            }
        )


def usage_document(usage: Usage, extra: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's `usage`, summed over the run; `asynclm` holds what only this proxy knows of it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "asynclm": {**extra, "estimated": usage.estimated},
    }


def _tool_call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _reason(reason: str) -> str:
    return reason if reason in _REASONS else "stop"
