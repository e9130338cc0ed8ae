"""Answers of the completions APIs of self-hosted servers, with their tokens: bytes in, stream events out. Pure.

Two formats: llama.cpp's own (`/completion`), since only that one gives tokens, and OpenAI's (`/v1/completions`) as vLLM
and SGLang extend it (`token_ids` beside `text`). The text is raw, so a `<think>` section at its beginning is told from
the answer here. What was written is noted in a `Written`, piece by piece.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from asynclm.adapters.models import errors
from asynclm.adapters.models.chat_completions import ChatUsage
from asynclm.adapters.models.decoding import DocumentDecoder, EventDecoder
from asynclm.adapters.models.protocol import Ended, ReasoningDelta, StreamEvent, TextDelta
from asynclm.adapters.models.written import Written
from asynclm.cml.usage import Usage

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"


class Thinking:
    """Tells a `<think>` section at the beginning of an answer from the answer, in text that comes in pieces."""

    __slots__ = ("_began", "_held", "_inside")

    def __init__(self, opened: bool) -> None:
        self._began = opened
        self._inside = opened
        self._held = ""

    @property
    def holds(self) -> bool:
        """Something is held back, since it may become a tag."""
        return bool(self._held)

    def feed(self, text: str) -> tuple[str, str]:
        """Take a piece; return what it adds to the reasoning and to the answer."""
        if self._began and not self._inside:
            return "", text
        text = self._held + text
        self._held = ""
        if not self._began:
            start = text.lstrip()
            if start.startswith(_OPEN):
                self._began = self._inside = True
                text = start[len(_OPEN) :]
            elif _OPEN.startswith(start):
                self._held = text
                return "", ""
            else:
                self._began = True
                return "", text
        end = text.find(_CLOSE)
        if end >= 0:
            self._inside = False
            return text[:end], text[end + len(_CLOSE) :]
        keep = next((n for n in range(min(len(_CLOSE) - 1, len(text)), 0, -1) if _CLOSE.startswith(text[-n:])), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def finish(self) -> tuple[str, str]:
        """The answer has ended: what was held back."""
        held, self._held = self._held, ""
        return (held, "") if self._inside else ("", held)


class _Pieces:
    """Puts texts and tokens together: a text stands for its own tokens and those that came before it without one."""

    def __init__(self, written: Written) -> None:
        self._written = written
        self._thinking = Thinking(written.opened_thinking)
        self._tokens: list[int] = []
        self._raw = ""
        self._shown = ""
        self._count = 0
        self._lost = False

    def add(self, text: str, tokens: list[int] | None, events: list[StreamEvent], count: int | None = None) -> None:
        """A chunk: its text, its tokens, and how many there should be by now."""
        shown = self._emit(*self._thinking.feed(text), events) if text else ""
        if self._lost:
            return
        if tokens:
            self._tokens += tokens
            self._count += len(tokens)
        self._raw += text
        self._shown += shown
        # llama.cpp gives only the last token of a character that took several. Other servers may give none at all.
        self._lost = bool(text) and not tokens if count is None else count != self._count
        if self._lost:
            self._written.lose()
        elif self._raw and not self._thinking.holds:
            self._written.add(self._tokens, self._raw, self._shown)
            self._tokens.clear()
            self._raw = self._shown = ""

    def finish(self, events: list[StreamEvent]) -> None:
        self._written.ended = True
        self._emit(*self._thinking.finish(), events)

    def _emit(self, reasoning: str, text: str, events: list[StreamEvent]) -> str:
        if reasoning:
            events.append(ReasoningDelta(reasoning))
        if text:
            events.append(TextDelta(text))
        return text


# ------------------------------------------------------------------ OpenAI's format, as vLLM and SGLang extend it


class _Choice(msgspec.Struct):
    index: int | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: ChatUsage | None = None
    error: Any = None
    message: Any = None
    detail: Any = None


_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode


class CompletionsDecoder(EventDecoder):
    """Decodes a streamed answer of `/v1/completions`, and notes it in `written`."""

    def __init__(self, max_event_bytes: int, written: Written) -> None:
        super().__init__(max_event_bytes)
        self._pieces = _Pieces(written)
        self._usage: ChatUsage | None = None

    def read(self, data: bytes, events: list[StreamEvent]) -> None:
        """Append what one chunk says."""
        if data.startswith(b"[DONE]"):
            if not self.ended:
                self._pieces.finish(events)
            self.complete(events)
            return
        chunk = _read_chunk(data)
        if chunk.usage is not None:
            self._usage = chunk.usage
        if self.ended:
            return
        for choice in chunk.choices or ():
            if not choice.index:
                self._pieces.add(choice.text or "", choice.token_ids, events)
                if choice.finish_reason:
                    self._pieces.finish(events)
                    self.stop(choice.finish_reason, events)
                return

    def usage(self) -> Usage | None:
        """The tokens, as they were last sent."""
        return None if self._usage is None else self._usage.read()


def _read_chunk(data: bytes) -> _Chunk:
    try:
        chunk = _decode_chunk(data)
    except (ValueError, RecursionError):
        raise errors.malformed("an event that is not what the completions API sends") from None
    if chunk.error or (chunk.choices is None and (chunk.message or chunk.detail)):
        body = {"error": chunk.error} if chunk.error else {"message": chunk.message, "detail": chunk.detail}
        raise errors.from_body(body, status=errors.status_in(body, 502))
    return chunk


class CompletionsDocumentDecoder(DocumentDecoder):
    """Decodes an answer of `/v1/completions` that was not streamed."""

    def __init__(self, max_bytes: int, written: Written) -> None:
        super().__init__(max_bytes)
        self._pieces = _Pieces(written)

    def read(self, data: bytes, events: list[StreamEvent]) -> None:
        """Append the whole answer."""
        chunk = _read_chunk(data)
        choice = next((choice for choice in chunk.choices or () if not choice.index), None)
        if choice is None:
            raise errors.malformed("an answer without a choice")
        self._pieces.add(choice.text or "", choice.token_ids, events)
        self._pieces.finish(events)
        events.append(Ended(choice.finish_reason or "stop"))
        if chunk.usage is not None:
            events.append(chunk.usage.read())


# ------------------------------------------------------------------ llama.cpp's own format


class _Timings(msgspec.Struct):
    cache_n: int | None = None


class _Native(msgspec.Struct):
    content: str | None = None
    tokens: list[int] | None = None
    stop: bool = False
    stop_type: str | None = None
    tokens_predicted: int | None = None
    tokens_evaluated: int | None = None
    timings: _Timings | None = None
    error: Any = None


_decode_native: Final = msgspec.json.Decoder(_Native).decode


class NativeDecoder(EventDecoder):
    """Decodes a streamed answer of llama.cpp's `/completion`, and notes it in `written`."""

    def __init__(self, max_event_bytes: int, written: Written) -> None:
        super().__init__(max_event_bytes)
        self._pieces = _Pieces(written)
        self._usage: Usage | None = None

    def read(self, data: bytes, events: list[StreamEvent]) -> None:
        """Append what one event says; the one that says `stop` is the last."""
        native = _read_native(data)
        if not native.stop:
            self._pieces.add(native.content or "", native.tokens, events, native.tokens_predicted)
            return
        self._usage = _native_usage(native)
        _finish_native(native, self._pieces, events)
        self.stop(_reason(native), events)
        self.complete(events)

    def usage(self) -> Usage | None:
        """The tokens, as the last event counts them."""
        return self._usage


class NativeDocumentDecoder(DocumentDecoder):
    """Decodes an answer of llama.cpp's `/completion` that was not streamed."""

    def __init__(self, max_bytes: int, written: Written) -> None:
        super().__init__(max_bytes)
        self._pieces = _Pieces(written)

    def read(self, data: bytes, events: list[StreamEvent]) -> None:
        """Append the whole answer."""
        native = _read_native(data)
        if native.content is None:
            raise errors.malformed("an answer without content")
        _finish_native(native, self._pieces, events)
        events += (Ended(_reason(native)), _native_usage(native))


def _read_native(data: bytes) -> _Native:
    try:
        native = _decode_native(data)
    except (ValueError, RecursionError):
        raise errors.malformed("an event that is not what llama.cpp's completion API sends") from None
    if native.error:
        body = {"error": native.error}
        raise errors.from_body(body, status=errors.status_in(body, 502))
    return native


def _finish_native(native: _Native, pieces: _Pieces, events: list[StreamEvent]) -> None:
    if native.content:
        pieces.add(native.content, None, events)
    pieces.finish(events)


def _reason(native: _Native) -> str:
    return "length" if native.stop_type == "limit" else "stop"


def _native_usage(native: _Native) -> Usage:
    cached = native.timings.cache_n if native.timings is not None else None
    return Usage(native.tokens_evaluated or 0, native.tokens_predicted or 0, cached or 0)
