"""What the proxy asks of a model: open a stream for a prompt, yield what it writes, close when told.

A model declares what its API can do (`Abilities`); the run machine and the driver choose by that alone. Protocol only:
no module here knows which vendor stands behind it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from asynclm.cml.tools import ToolSpec
from asynclm.cml.transcript import Segment
from asynclm.cml.usage import Usage


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """How interrupts can reach the model.

    `inject`: into the live sequence (`Stream.inject`). `prefill`: the last assistant message can be continued.
    `interleave`: the interrupt goes in as the next user turn. `stop_sequences`: how many the API takes (0: none).
    """

    inject: bool = False
    prefill: bool = False
    interleave: bool = True
    stop_sequences: int = 0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream request.

    `model` is the upstream's name for it. `messages` are OpenAI-shaped: the client's own, with the CML instructions
    already in the system message. `transcript` is what was written and told in this run so far, empty at first; the
    adapter renders it by its abilities. `parameters` are the client's further body keys under OpenAI's names
    (temperature, seed, ...), never `stream`, `stop`, `max_tokens` or `max_completion_tokens`. `max_tokens` bounds
    this one stream (tokens); `max_tokens_key` is the name the client used for it. `api_key` is the client's own key,
    used where the upstream has none configured. `tools` are those that the model was told of in CML (never native
    ones): a model that is run here writes no call that they don't take.
    """

    model: str
    messages: Sequence[dict[str, Any]]
    transcript: Sequence[Segment] = ()
    parameters: dict[str, Any] = {}
    max_tokens: int | None = None
    max_tokens_key: str = "max_tokens"
    stop: tuple[str, ...] = ()
    api_key: str | None = None
    tools: Sequence[ToolSpec] = ()


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of the model's text."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of the model's reasoning that the API keeps apart from its text; `field` is the delta's key upstream."""

    text: str
    field: str = "reasoning_content"


class Ended(msgspec.Struct, frozen=True, gc=False):
    """The model stopped: `stop`, `length`, `content_filter` (OpenAI's words, whatever the API). Usage may still
    follow.
    """

    reason: str


class Noted(msgspec.Struct, frozen=True, gc=False):
    """Something that the run's timeline should tell of: an entry of this kind, with this data."""

    kind: str
    data: dict[str, Any]


StreamEvent = TextDelta | ReasoningDelta | Ended | Noted | Usage


class Stream(Protocol):
    """One open stream. Iterating yields batches, one for each read of the socket, so that one read costs one write.

    Iteration ends after `Ended`; a stream that breaks off without it raises `ModelError`.
    """

    def __aiter__(self) -> AsyncIterator[Sequence[StreamEvent]]: ...

    async def aclose(self) -> None:
        """Close, upstream too: the connection is dropped if the model is still writing. Safe to call twice."""
        ...


class InjectableStream(Stream, Protocol):
    """A stream whose sequence can be added to while it lives (`Abilities.inject`).

    It yields one token a batch and writes the next only when asked for it, so that a pause takes effect at once.
    """

    def pause(self, expected: float | None = None) -> None:
        """Write nothing more until something is injected, which is expected in so many seconds (None: who knows)."""
        ...

    def inject(self, text: str) -> None:
        """Append `text` to the live sequence; the model goes on writing behind it."""
        ...


@runtime_checkable
class KeepableStream(Protocol):
    """A stream whose model may remember what it has computed for it."""

    def keep(self) -> None:
        """It is closed next, but no client has left: a later prompt may well begin like it."""
        ...


class Model(Protocol):
    """An upstream. Connections are pooled in it and reused."""

    def abilities(self, model: str) -> Abilities:
        """What `model` (the upstream's name) can do."""
        ...

    async def open(self, request: Request) -> Stream:
        """Send the request; return once the upstream has accepted it (response headers).

        Retries before the first token are made in here: on 429, 5xx and connection errors, with `retry-after` honoured.
        Raises `ModelError`.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


class LoadError(Exception):
    """A model that was to run in this process can't be loaded. One line: what is wrong, and what to do."""


class ModelError(Exception):
    """The upstream refused, broke off or fell silent.

    `status` is the HTTP status to answer with if nothing was sent to the client yet: the upstream's own where it
    answered, 502 for a connection that failed or broke, 504 for silence. `type` and `code` are as in OpenAI's error
    shape; `retry_after` (s) is passed on. The message never holds a key.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        type: str = "upstream_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.retry_after = retry_after
