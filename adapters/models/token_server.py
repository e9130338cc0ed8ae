"""Self-hosted servers that take a prompt as tokens: llama.cpp, vLLM and SGLang, each in its own words.

A run's requests all go to the server's completions API. The first prompt is the messages in the model's chat template,
rendered and tokenized by the server itself; a resume's is the tokens of the stream before it, as far as they count, and
behind them what was told (see `written`). So the server finds all but the new tokens in its cache, and the model goes
on with exactly what it wrote.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Final, Literal, Protocol, TypeVar, cast

import msgspec

from asynclm.adapters.models import errors
from asynclm.adapters.models.completions import (
    CompletionsDecoder,
    CompletionsDocumentDecoder,
    NativeDecoder,
    NativeDocumentDecoder,
)
from asynclm.adapters.models.protocol import ModelError, Request, Stream, StreamEvent
from asynclm.adapters.models.stream import Decoder
from asynclm.adapters.models.written import Known, Memory, Written, keys_of
from asynclm.cml.transcript import as_continued

T = TypeVar("T")

Server = Literal["llamacpp", "vllm", "sglang"]
"""What the servers call themselves in `owned_by` of their list of models."""

_NAMES: Final = {"llamacpp": "llama.cpp", "vllm": "vLLM", "sglang": "SGLang"}
# Of the chat API; what it says of the template goes into that, the rest means nothing or something else here.
_CHAT_ONLY: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "documents",
        "function_call",
        "functions",
        "include_reasoning",
        "logprobs",
        "n",
        "parallel_tool_calls",
        "reasoning_effort",
        "response_format",
        "separate_reasoning",
        "stream_options",
        "tool_choice",
        "tools",
        "top_logprobs",
    }
)
_CLOSE: Final = "</think>\n\n"
_ANCHOR: Final = "\n"
_PATIENCE_S: Final = 2.0
_POLL_S: Final = 0.003
_TAIL: Final = 4  # tokens of a prompt's end in which a <think> would stand
_encode: Final = msgspec.json.Encoder().encode


class Fetch(Protocol):
    """Sends one small request and reads the whole answer. `body` None: a GET. Raises `ModelError`."""

    def __call__(self, url: str, body: bytes | None, request: Request, /, *, retry: bool = True) -> Awaitable[bytes]:
        """Send `body` to `url`, with the key that goes with `request`."""
        ...


class _ServedModel(msgspec.Struct):
    """What was found out about one model: whose server it is, the context (tokens), what tokenizing needs."""

    server: Server
    context: int | None
    anchor: list[int] | None = None
    slots: bool = True  # it tells about them
    thinking: dict[bytes, bool] = {}


class Prompt(msgspec.Struct):
    """A request that is ready: where it goes, its body, and how its answer is read."""

    url: str
    body: bytes
    written: Written
    server: Server

    def decoder(self, whole: bool, max_event_bytes: int) -> Decoder:
        """What reads the answer; `whole`: it was not streamed."""
        if self.server == "llamacpp":
            return (NativeDocumentDecoder if whole else NativeDecoder)(max_event_bytes, self.written)
        return (CompletionsDocumentDecoder if whole else CompletionsDecoder)(max_event_bytes, self.written)


def takes_tokens(request: Request) -> bool:
    """Whether a request can go as tokens: text only, nothing that the chat API alone can do."""
    parameters = request.parameters
    kind = parameters.get("response_format")
    return not (
        any(parameters.get(name) for name in ("logprobs", "tools", "functions"))
        or parameters.get("n") not in (None, 1)
        or not (kind is None or (isinstance(kind, dict) and kind.get("type") == "text"))
        or any(
            isinstance(part, dict) and part.get("type") != "text"
            for message in request.messages
            if isinstance(message.get("content"), list)
            for part in message["content"]
        )
    )


class TokenStream:
    """A stream whose end is noted in what it has `written` (`protocol.Stream`)."""

    def __init__(self, stream: Stream, written: Written) -> None:
        self._stream = stream
        self._written = written

    def __aiter__(self) -> AsyncIterator[Sequence[StreamEvent]]:
        return self._stream.__aiter__()

    async def aclose(self) -> None:
        """Close, upstream too."""
        self._written.closed = True
        await self._stream.aclose()


class TokenServer:
    """One server. `base_url` is that of its OpenAI API; what is its own stands beside the `/v1` at its end."""

    def __init__(self, base_url: str, fetch: Fetch) -> None:
        self._base = base_url.rstrip("/")
        self._root = self._base.removesuffix("/v1")
        self._fetch = fetch
        self._models: dict[str, _ServedModel] = {}
        self._memory = Memory()

    async def prompt(self, request: Request) -> Prompt:
        """Put the prompt of a request together. Raises `ModelError`."""
        found = await self._found(request)
        template = _template_kwargs(request)
        keys = keys_of([request.model, request.messages, template], request.transcript)
        known = self._memory.find(keys, request.transcript)
        if known is None:
            tokens, opened = await self._render(found, request, template)
            known = Known(array("I", tokens), as_continued(request.transcript), opened, 0)
        elif known.cut and found.server == "llamacpp":
            await self._released(found, request, known.cut)
        prompt = known.tokens
        if known.rest:
            # Text that the model has begun is no part of a <think> that it, or its template, has opened.
            rest = _CLOSE + known.rest if known.thinking else known.rest
            prompt = prompt + array("I", await self._tokenize(found, request, rest))
        written = Written(prompt, opened_thinking=known.thinking and not known.rest)
        body = _body(found, request, prompt)
        self._memory.keep(keys[-1], written)
        url = f"{self._root}/completion" if found.server == "llamacpp" else f"{self._base}/completions"
        return Prompt(url, body, written, found.server)

    def forget(self, model: str) -> None:
        """The server refused a request: it may have been started anew with another model, or other bounds."""
        self._models.pop(model, None)

    # ------------------------------------------------------------------ what the server is asked

    async def _found(self, request: Request) -> _ServedModel:
        found = self._models.get(request.model)
        if found is None:
            cards = _read(await self._fetch(f"{self._base}/models", None, request), _Cards, "list of models").data
            card = next((card for card in cards if card.id == request.model), cards[0] if cards else _Card())
            if card.owned_by not in _NAMES:
                says = f" calls itself {card.owned_by[:60]!r} and" if card.owned_by else ""
                raise ModelError(
                    f'prefill = "tokens" is for llama.cpp, vLLM and SGLang; this upstream{says} is none of them. '
                    'Use "continue_final_message", "prefix" or "none".',
                    code="upstream_unsupported",
                )
            found = self._models[request.model] = _ServedModel(cast(Server, card.owned_by), card.max_model_len)
        return found

    async def _render(self, found: _ServedModel, request: Request, template: dict[str, Any]) -> tuple[list[int], bool]:
        """The tokens of the messages in the model's chat template, and whether they end in an opened <think>."""
        body: dict[str, Any] = {"model": request.model, "messages": request.messages}
        if template:
            body["chat_template_kwargs"] = template
        if found.server == "llamacpp":
            answer = await self._ask("apply-template", body, request, "apply its chat template")
            text = _read(answer, _Applied, "rendered prompt").prompt
            body = {"model": request.model, "content": text, "add_special": True, "parse_special": True}
            tokens = _read(await self._ask("tokenize", body, request, "tokenize"), _Tokens, "list of tokens").tokens
            return tokens, text.rstrip().endswith("<think>")
        body["add_generation_prompt"] = True
        answer = await self._ask("tokenize", body, request, "apply its chat template")
        tokens = _read(answer, _Tokens, "list of tokens").tokens
        key = _encode(template)
        opened = found.thinking.get(key)
        if opened is None:
            body = {"model": request.model, "tokens": tokens[-_TAIL:], "skip_special_tokens": False}
            answer = await self._ask("detokenize", body, request, "detokenize")
            tail = _read(answer, _Detokenized, "text of tokens")
            opened = (tail.prompt or tail.text or "").rstrip().endswith("<think>")
            if len(found.thinking) < 64:  # clients choose what stands in the template
                found.thinking[key] = opened
        return tokens, opened

    async def _tokenize(self, found: _ServedModel, request: Request, text: str) -> list[int]:
        """The tokens of text that stands behind other text."""

        async def ask(text: str) -> list[int]:
            if found.server == "llamacpp":
                body = {"model": request.model, "content": text, "add_special": False, "parse_special": True}
            else:
                body = {"model": request.model, "prompt": text, "add_special_tokens": False}
            return _read(await self._ask("tokenize", body, request, "tokenize"), _Tokens, "list of tokens").tokens

        if found.anchor is None:
            found.anchor = await ask(_ANCHOR)
        anchor = found.anchor
        if len(anchor) == 1:
            return await ask(text)
        # A tokenizer that puts a space before every text, as SentencePiece does: it comes before the anchor now.
        tokens = await ask(_ANCHOR + text)
        return tokens[len(anchor) :] if tokens[: len(anchor)] == anchor else await ask(text)

    async def _released(self, found: _ServedModel, request: Request, prompt: int) -> None:
        """Wait until llama.cpp has noticed that a stream, whose prompt had so many tokens, was cut.

        It looks after each token whether anybody still listens. A resume that comes before that finds the slot with
        its cache busy, goes to another one, and the whole prompt is evaluated there.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE_S
        while found.slots and loop.time() < until:
            try:
                answer = await self._fetch(f"{self._root}/slots", None, request, retry=False)
                slots = msgspec.json.decode(answer, type=list[_Slot])
            except (ModelError, ValueError) as error:
                if not isinstance(error, ModelError) or error.code != "upstream_unreachable":
                    found.slots = False  # it was told not to, or is too old
                    return
                slots = None
            if slots is not None and not any(slot.works_on(prompt) for slot in slots):
                return
            await asyncio.sleep(_POLL_S)

    async def _ask(self, what: str, body: dict[str, Any], request: Request, doing: str) -> bytes:
        try:
            return await self._fetch(f"{self._root}/{what}", _encode(body), request)
        except ModelError as error:
            if error.status == 404:
                message = (
                    f'The upstream has no /{what}, which prefill = "tokens" needs. '
                    'Use "continue_final_message", or a newer server.'
                )
                raise ModelError(message, code="upstream_unsupported") from None
            if error.status < 500 or error.code is None:
                error.message = f"The upstream could not {doing}: {error.message}"
                error.args = (error.message,)
            raise


class _Card(msgspec.Struct):
    id: str = ""
    owned_by: str = ""
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card] = []


class _Next(msgspec.Struct):
    n_decoded: int


class _Slot(msgspec.Struct):
    """`n_prompt_tokens` counts what was written, too; a slot that was never used has none."""

    is_processing: bool
    n_prompt_tokens: int | None = None
    next_token: list[_Next] = []

    def works_on(self, prompt: int) -> bool:
        """Whether it is at work on a prompt of so many tokens, give or take the one that is just being written."""
        if not self.is_processing or self.n_prompt_tokens is None:
            return False
        return abs(self.n_prompt_tokens - sum(token.n_decoded for token in self.next_token) - prompt) <= 1


class _Applied(msgspec.Struct):
    prompt: str


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Detokenized(msgspec.Struct):
    prompt: str | None = None
    text: str | None = None


def _read(data: bytes, type: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=type)
    except (ValueError, RecursionError):
        raise errors.malformed(f"no {what}") from None


def _template_kwargs(request: Request) -> dict[str, Any]:
    """What the client says to the chat template."""
    given = request.parameters.get("chat_template_kwargs")
    template = dict(given) if isinstance(given, dict) else {}
    effort = request.parameters.get("reasoning_effort")
    return {"reasoning_effort": effort, **template} if effort is not None else template


def _body(found: _ServedModel, request: Request, prompt: Sequence[int]) -> bytes:
    body = {name: value for name, value in request.parameters.items() if name not in _CHAT_ONLY}
    body |= {"model": request.model, "prompt": list(prompt), "stream": True}
    max_tokens = request.max_tokens
    if found.server == "llamacpp":
        body |= {"return_tokens": True, "cache_prompt": True}
    else:
        body |= {"return_token_ids": True, "stream_options": {"include_usage": True}}
        # Without its end a stop sequence would hold all text back by its own length.
        body["include_stop_str_in_output" if found.server == "vllm" else "no_stop_trim"] = True
        if found.context is not None:
            room = found.context - len(prompt)
            if room <= 0:
                raise ModelError(
                    f"The prompt has {len(prompt)} tokens; the context of the model {request.model!r} takes "
                    f"{found.context}, its answer included.",
                    status=400,
                    type="invalid_request_error",
                    code="context_length_exceeded",
                )
            max_tokens = room if max_tokens is None else min(max_tokens, room)  # theirs would be 16
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    return _encode(body)
