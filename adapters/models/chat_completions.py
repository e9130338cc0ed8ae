"""Answers of OpenAI's chat completions API and of the many servers that speak it: bytes in, stream events out. Pure.

Servers differ; what is read here is what they have in common, and the fields not named below are never looked at.

- Text is `choices[0].delta.content`, and `refusal` too: the model's words all the same. Null, absent and empty are
  nothing. Mistral's lists of parts are read.
- Reasoning is `reasoning_content` (DeepSeek, vLLM) or `reasoning` (OpenRouter, Groq, newer vLLM).
- Other choices than the one with index 0 are left out: nobody asked for them.
- `finish_reason` is passed on as it is, `tool_calls` included, although deltas of native tool calls are not read:
  nobody who asks through this adapter offers native tools. Text behind it is dropped. `[DONE]` without one counts as
  `stop`.
- Usage comes out once, last, however often it was sent.
- An emoji that a server escapes as two surrogates and cuts between them is put together again. For other leniences
  see `lenient`.
- `{"error": ...}`, and `{"message": ...}` or `{"detail": ...}` without choices, fail the stream with the
  HTTP status that the `code` names, 502 otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from asynclm.adapters.models import errors, lenient
from asynclm.adapters.models.decoding import DocumentDecoder, EventDecoder
from asynclm.adapters.models.protocol import Ended, ReasoningDelta, StreamEvent, TextDelta
from asynclm.cml.usage import Usage


class _Part(msgspec.Struct, gc=False):
    type: str = "text"
    text: str = ""
    thinking: list[_Part] | None = None


class _Delta(msgspec.Struct):
    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class ChatUsage(msgspec.Struct):
    """`usage`, in all the shapes it comes in."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's word for cached_tokens

    def read(self) -> Usage:
        """The counts that matter here."""
        prompt, completion = self.prompt_tokens_details, self.completion_tokens_details
        return Usage(
            self.prompt_tokens or 0,
            self.completion_tokens or 0,
            (prompt and prompt.cached_tokens) or self.prompt_cache_hit_tokens or 0,
            (completion and completion.reasoning_tokens) or 0,
        )


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: ChatUsage | None = None
    error: Any = None
    message: Any = None
    detail: Any = None


_TEXTS: Final = ("content", "reasoning_content", "reasoning", "refusal")
_decode: Final = msgspec.json.Decoder(_Chunk).decode


class ChatDecoder(EventDecoder):
    """Decodes a streamed answer."""

    def __init__(self, max_event_bytes: int) -> None:
        super().__init__(max_event_bytes)
        self._usage: ChatUsage | None = None
        self._halves: dict[str, str] = {}  # by field: the first half of a surrogate pair, waiting for the other

    def read(self, data: bytes, events: list[StreamEvent]) -> None:
        """Append what one chunk says."""
        if data.startswith(b"[DONE]"):
            self.complete(events)
            return
        chunk = _read_chunk(data, self._join, bool(self._halves))
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not chunk.choices or self.ended:
            return
        for choice in chunk.choices:
            if not choice.index:
                if choice.delta is not None:
                    _add_text(choice.delta, events)
                if choice.finish_reason:
                    self.stop(choice.finish_reason, events)
                return

    def usage(self) -> Usage | None:
        """The tokens, as they were last sent."""
        return None if self._usage is None else self._usage.read()

    def _join(self, chunk: dict[str, Any]) -> None:
        """Put halves of surrogate pairs together that came in two chunks."""
        choice = next((choice for choice in chunk.get("choices") or () if not choice.get("index")), None)
        if choice is None:
            return
        if choice.get("delta") is None:
            choice["delta"] = {}
        delta = choice["delta"]
        for field in _TEXTS:
            text = delta.get(field) or ""
            if not isinstance(text, str):
                continue
            text = self._halves.pop(field, "") + text
            if lenient.has_half(text) and not choice.get("finish_reason"):
                self._halves[field] = text[-1]
                text = text[:-1]
            if text:
                delta[field] = text
            else:
                delta.pop(field, None)


class ChatDocumentDecoder(DocumentDecoder):
    """Decodes an answer from a server that doesn't stream."""

    def read(self, data: bytes, events: list[StreamEvent]) -> None:
        """Append the whole answer."""
        chunk = _read_chunk(data)
        choice = next((choice for choice in chunk.choices or () if not choice.index), None)
        if choice is None or choice.message is None:
            raise errors.malformed("an answer without a message")
        _add_text(choice.message, events)
        events.append(Ended(choice.finish_reason or "stop"))
        if chunk.usage is not None:
            events.append(chunk.usage.read())


def _read_chunk(data: bytes, join: Callable[[dict[str, Any]], None] | None = None, unfinished: bool = False) -> _Chunk:
    try:
        try:
            if unfinished:
                raise ValueError
            chunk = _decode(data)
        except ValueError:
            body = lenient.load(data)
            if join is not None:
                join(body)
            chunk = lenient.convert(body, _Chunk, ChatUsage)
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise errors.malformed("an event that is not what the chat completions API sends") from None
    if chunk.error:
        body = {"error": chunk.error}
        raise errors.from_body(body, status=errors.status_in(body, 502))
    if chunk.choices is None and (chunk.message or chunk.detail):
        body = lenient.mended(lenient.load(data))
        if errors.is_error(body):
            raise errors.from_body(body, status=errors.status_in(body, 502))
    return chunk


def _add_text(delta: _Delta, events: list[StreamEvent]) -> None:
    if delta.reasoning_content:
        events.append(ReasoningDelta(delta.reasoning_content))
    elif delta.reasoning:
        events.append(ReasoningDelta(delta.reasoning, "reasoning"))
    content = delta.content
    if content:
        if isinstance(content, str):
            events.append(TextDelta(content))
        else:
            _add_parts(content, events)
    if delta.refusal:
        events.append(TextDelta(delta.refusal))


def _add_parts(parts: list[_Part], events: list[StreamEvent]) -> None:
    for part in parts:
        if part.thinking:
            events.append(ReasoningDelta("".join(piece.text for piece in part.thinking)))
        elif part.text:
            events.append(TextDelta(part.text))
