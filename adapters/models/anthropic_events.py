"""Answers of Anthropic's Messages API: bytes in, stream events out. Pure.

Stop reasons in OpenAI's words: `end_turn`, `stop_sequence` and `pause_turn` are `stop`; `max_tokens` and a full
context window are `length`; `refusal` is `content_filter`; `tool_use` is `tool_calls`. A stop sequence that holds a
CML control token is put back behind the text, since here it is known which one matched. Thinking is reasoning.
`prompt_tokens` counts what was read from the cache and written to it, too.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from asynclm.adapters.models import errors, lenient
from asynclm.adapters.models.decoding import DocumentDecoder, EventDecoder
from asynclm.adapters.models.protocol import Ended, ReasoningDelta, StreamEvent, TextDelta
from asynclm.cml.tokens import CONTROL_TOKENS
from asynclm.cml.usage import Usage

T = TypeVar("T")

_REASONS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
    "tool_use": "tool_calls",
}
# Error events come behind a 200: this is what the same errors have as status when they come before it.
_STATUSES: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class _Details(msgspec.Struct, gc=False):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: _Details | None = None

    def update(self, newer: _Usage) -> None:
        for name in self.__struct_fields__:
            value = getattr(newer, name)
            if value is not None:
                setattr(self, name, value)

    def read(self) -> Usage:
        cached = self.cache_read_input_tokens or 0
        details = self.output_tokens_details
        return Usage(
            (self.input_tokens or 0) + cached + (self.cache_creation_input_tokens or 0),
            self.output_tokens or 0,
            cached,
            (details and details.thinking_tokens) or 0,
        )


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    thinking: str | None = None


class _Delta(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Message(msgspec.Struct):
    usage: _Usage | None = None


class _Event(msgspec.Struct):
    type: str = ""
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: _Usage | None = None
    error: Any = None
    detail: Any = None


class _Document(msgspec.Struct):
    content: list[_Block] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: _Usage | None = None
    error: Any = None


_decode_event: Final = msgspec.json.Decoder(_Event).decode
_decode_document: Final = msgspec.json.Decoder(_Document).decode


class MessageDecoder(EventDecoder):
    """Decodes a streamed answer."""

    def __init__(self, max_event_bytes: int) -> None:
        super().__init__(max_event_bytes)
        self._usage = _Usage()

    def read(self, data: bytes, events: list[StreamEvent]) -> None:
        """Append what one event says. Unknown events and deltas say nothing: the API adds new ones."""
        try:
            event = _decode_event(data)
        except (ValueError, RecursionError):
            event = _read_odd(data, _Event, "an event")
        kind = event.type
        if kind == "content_block_delta":
            if event.delta is not None:
                _add_text(event.delta, events)
        elif kind == "content_block_start":
            if event.content_block is not None:
                _add_text(event.content_block, events)
        elif kind == "message_start":
            if event.message is not None and event.message.usage is not None:
                self._usage.update(event.message.usage)
        elif kind == "message_delta":
            if event.usage is not None:
                self._usage.update(event.usage)
            if event.delta is not None and event.delta.stop_reason:
                _add_stop_sequence(event.delta.stop_sequence, events)
                self.stop(_REASONS.get(event.delta.stop_reason, "stop"), events)
        elif kind == "message_stop":
            self.complete(events)
        elif kind == "error":
            raise _error(event.error)
        elif event.detail:
            raise _error({"detail": event.detail})

    def usage(self) -> Usage | None:
        """The tokens, as far as they were sent."""
        return self._usage.read()


class MessageDocumentDecoder(DocumentDecoder):
    """Decodes an answer from a server that doesn't stream."""

    def read(self, data: bytes, events: list[StreamEvent]) -> None:
        """Append the whole answer."""
        try:
            document = _decode_document(data)
        except (ValueError, RecursionError):
            document = _read_odd(data, _Document, "an answer")
        if document.error:
            raise _error(document.error)
        if document.content is None:
            body = lenient.mended(lenient.load(data))
            if errors.is_error(body):
                raise _error(body)
            raise errors.malformed("an answer without content")
        for block in document.content:
            _add_text(block, events)
        _add_stop_sequence(document.stop_sequence, events)
        events.append(Ended(_REASONS.get(document.stop_reason or "", "stop")))
        if document.usage is not None:
            events.append(document.usage.read())


def _read_odd(data: bytes, type: type[T], what: str) -> T:
    try:
        body = lenient.load(data)
        if isinstance(body.get("message"), str):  # an object in the API's own events
            raise _error(lenient.mended(body))
        return lenient.convert(body, type, _Usage)
    except (ValueError, RecursionError):
        raise errors.malformed(f"{what} that is not what the Messages API sends") from None


def _add_text(delta: _Delta | _Block, events: list[StreamEvent]) -> None:
    if delta.text:
        events.append(TextDelta(delta.text))
    elif delta.thinking:
        events.append(ReasoningDelta(delta.thinking))


def _add_stop_sequence(sequence: str | None, events: list[StreamEvent]) -> None:
    if sequence and any(token in sequence for token in CONTROL_TOKENS):
        events.append(TextDelta(sequence))


def _error(error: Any) -> Exception:
    kind = error.get("type") if isinstance(error, dict) else None
    status = _STATUSES.get(kind, 502) if isinstance(kind, str) else 502
    return errors.from_body({"error": error}, status=status)
