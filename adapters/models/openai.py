"""Any server that speaks OpenAI's chat completions API: OpenAI, Azure, OpenRouter, vLLM, llama.cpp and many more.

The official SDK gives authentication, base URL and error types. The request goes through its `post` as bytes that are
ready, and the answer's bytes are read where they arrive: neither is ever an SDK object, which would cost 20 times as
much a chunk as all the rest here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, cast

import httpx2
import msgspec
import openai

from asynclm.adapters.models.cache_key import cache_key_for, knows_cache_key
from asynclm.adapters.models.chat_completions import ChatDecoder, ChatDocumentDecoder
from asynclm.adapters.models.protocol import Abilities, ModelError, Request, Stream
from asynclm.adapters.models.retry import refused, unreachable
from asynclm.adapters.models.stream import Decoder
from asynclm.adapters.models.token_server import TokenServer, TokenStream, takes_tokens
from asynclm.adapters.models.upstream import Upstream
from asynclm.cml.transcript import as_continued, as_prefill, as_turns

PrefillStyle = Literal["none", "prefix", "continue_final_message", "tokens"]

# OpenAI's reasoning models refuse `stop`. The SDK's reference names o3 and o4-mini; it is taken to hold for the whole
# o-series, codex and everything since gpt-5, since without a stop sequence the proxy itself cuts the stream at a trap,
# and with a refused one nothing works. Not for gpt-oss, which is served by others.
_NO_STOP: Final = re.compile(r"(?:.*/)?(?:ft:)?(?:o\d|codex|gpt-(?:[5-9]|[12]\d)(?!\d))")
_encode: Final = msgspec.json.Encoder().encode
_CACHE_KEY: Final = "prompt_cache_key"

_log = logging.getLogger(__name__)


class OpenAIModel:
    """An OpenAI-compatible upstream (`protocol.Model`).

    `base_url` ends before `/chat/completions`; a query in it goes along with every request, as do `query` and `headers`
    (Azure: `api-version` and `api-key`). `api_key` is sent as a bearer token; without one, and without an authorizing
    header in `headers`, the client's own key goes through, and without that no authorization at all. Nothing is taken
    from `OPENAI_*` variables, which belong to another upstream as like as not.

    `default_abilities` replaces what is assumed by a model's name. `prefill_style` says how the server is told to
    continue an assistant message: with `"prefix": true` (Mistral, DeepSeek) or with `continue_final_message` (vLLM,
    SGLang); with `tokens` (llama.cpp, vLLM, SGLang) everything goes to the completions API as the very tokens that the
    server has in its cache (see `token_server`); with `none` it is not asked to, unless `default_abilities` say that it
    continues a last assistant message by itself. `include_usage=False` leaves out `stream_options`, which some old
    servers refuse. `prompt_cache_key` says whether requests carry one, so that those of a conversation find its prompts
    cached (see `cache_key`); None: if the API at that host is known to take it. The client's own key goes through in
    any case. For a model that refuses the parameter all the same, the request is sent again without, and so are all
    that follow.

    Times in seconds: `connect_timeout_s` for name lookup, TCP and TLS; `first_byte_timeout_s` until the answer begins
    (default: the idle timeout); `idle_timeout_s` between two reads of it. `retries` is how often a request is sent at
    most, `max_backoff_s` the longest wait between two attempts (see `retry`). `max_event_bytes` bounds one event of
    the answer. Raises ValueError for a base URL that is none.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        default_abilities: Abilities | None = None,
        prefill_style: PrefillStyle = "none",
        include_usage: bool = True,
        prompt_cache_key: bool | None = None,
        organization: str | None = None,
        project: str | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        connect_timeout_s: float = 10.0,
        first_byte_timeout_s: float | None = None,
        idle_timeout_s: float = 300.0,
        retries: int = 3,
        max_backoff_s: float = 8.0,
        max_event_bytes: int = 16 << 20,
    ) -> None:
        self._upstream = Upstream(
            base_url,
            api_key,
            headers={
                **({"OpenAI-Organization": organization} if organization else {}),
                **({"OpenAI-Project": project} if project else {}),
                **(headers or {}),
            },
            query=query,
            connect_timeout_s=connect_timeout_s,
            first_byte_timeout_s=first_byte_timeout_s,
            idle_timeout_s=idle_timeout_s,
            retries=retries,
            max_backoff_s=max_backoff_s,
        )
        self._abilities = default_abilities
        self._prefill_style = prefill_style
        self._include_usage = include_usage
        self._max_event_bytes = max_event_bytes
        self._host = self._upstream.url.host
        self._cache_key = knows_cache_key(self._host) if prompt_cache_key is None else prompt_cache_key
        self._keyless: set[str] = set()  # models that refuse it
        self._client = _Client(
            base_url=self._upstream.url,
            api_key="never sent",  # each request brings its own key, or says that there is none
            default_query=self._upstream.query,
            max_retries=0,
            timeout=None,
            http_client=self._upstream.http_client,
        )
        self._client.headers = self._upstream.headers
        url = str(self._upstream.url)
        self._tokens = TokenServer(url, self._fetch) if prefill_style == "tokens" else None

    def abilities(self, model: str) -> Abilities:
        """What `model` can do: configured, or by OpenAI's names. Unknown ones take stop sequences."""
        if self._abilities is not None:
            return self._abilities
        stop = 0 if _NO_STOP.match(model) else 4
        return Abilities(prefill=self._prefill_style != "none", stop_sequences=stop)

    async def open(self, request: Request) -> Stream:
        """Send the request; return once the upstream has accepted it. Raises `ModelError`."""
        if self._tokens is not None and takes_tokens(request):
            return await self._continue(self._tokens, request)
        cache_key = self._cache_key_of(request)
        try:
            return await self._send(request, cache_key)
        except ModelError as error:
            if cache_key is None or not _is_about_cache_key(error):
                raise
        self._keyless.add(request.model)
        _log.warning(
            "%s refuses %s for the model %r, where it is left out from now on", self._host, _CACHE_KEY, request.model
        )
        return await self._send(request, None)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def _send(self, request: Request, cache_key: str | None) -> Stream:
        content = self._body(request, cache_key)
        return await self._upstream.open(request, self._sender(request, "/chat/completions", content), self._decoder)

    async def _continue(self, server: TokenServer, request: Request) -> Stream:
        prompt = await server.prompt(request)
        try:
            stream = await self._upstream.open(
                request,
                self._sender(request, prompt.url, prompt.body),
                lambda whole: prompt.decoder(whole, self._max_event_bytes),
            )
        except ModelError:
            server.forget(request.model)
            raise
        return TokenStream(stream, prompt.written)

    async def _fetch(self, url: str, body: bytes | None, request: Request, *, retry: bool = True) -> bytes:
        sender = self._sender(request, url, body)
        return await self._upstream.fetch(request, sender, max_bytes=self._max_event_bytes, retry=retry)

    def _sender(self, request: Request, url: str, content: bytes | None) -> Callable[[], Awaitable[httpx2.Response]]:
        """One attempt to send: a POST, or a GET without `content`. It fails by raising `AttemptFailed`."""
        key = self._upstream.key_for(request)
        headers: dict[str, str | openai.Omit] = {}
        if not self._upstream.has_header("authorization"):
            headers["Authorization"] = f"Bearer {key}" if key else openai.Omit()

        async def send() -> httpx2.Response:
            try:
                if content is None:
                    response = await self._client.get(
                        url,
                        cast_to=httpx2.Response,
                        options={"headers": headers},
                        stream=True,
                        stream_cls=openai.AsyncStream[Any],
                    )
                else:
                    response = await self._client.post(
                        url,
                        cast_to=httpx2.Response,
                        content=content,
                        options={"headers": headers},
                        stream=True,
                        stream_cls=openai.AsyncStream[Any],
                    )
                # Told to cast to the response itself, the SDK hands it back unread and makes no stream of its own.
                return cast(httpx2.Response, response)
            except openai.APIStatusError as error:
                raise refused(error.response) from error
            except openai.APIConnectionError as error:
                raise unreachable(error) from error

        return send

    def _decoder(self, whole: bool) -> Decoder:
        return ChatDocumentDecoder(self._max_event_bytes) if whole else ChatDecoder(self._max_event_bytes)

    def _cache_key_of(self, request: Request) -> str | None:
        """The key to add to the request; None for none."""
        if not self._cache_key or request.model in self._keyless or request.parameters.get(_CACHE_KEY) is not None:
            return None
        return cache_key_for(request.messages, request.parameters)

    def _body(self, request: Request, cache_key: str | None) -> bytes:
        body: dict[str, Any] = {"model": request.model, **request.parameters, "stream": True}
        if cache_key is not None:
            body[_CACHE_KEY] = cache_key
        messages = list(request.messages)
        if request.transcript:
            if self.abilities(request.model).prefill:
                style = self._prefill_style
                exact = style in ("continue_final_message", "tokens")
                text = (as_continued if exact else as_prefill)(request.transcript)
                if text:
                    message: dict[str, Any] = {"role": "assistant", "content": text}
                    if exact:
                        body["continue_final_message"] = True
                        body["add_generation_prompt"] = False
                    elif style == "prefix":
                        message["prefix"] = True
                    messages.append(message)
            else:
                messages += as_turns(request.transcript)
        body["messages"] = messages
        if self._include_usage:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        else:
            body.pop("stream_options", None)
        if request.stop:
            body["stop"] = list(request.stop)
        if request.max_tokens is not None:
            body[request.max_tokens_key] = request.max_tokens
        return _encode(body)


def _is_about_cache_key(error: ModelError) -> bool:
    return error.status in (400, 422) and _CACHE_KEY in f"{error.param} {error.message}"


class _Client(openai.AsyncOpenAI):
    """The SDK's client with fixed headers and addresses: nothing from the environment, nothing made anew each time.

    Putting the same address together is a fifth of what the SDK takes for a request.
    """

    headers: Mapping[str, str] = {}
    _urls: dict[str, httpx2.URL] | None = None

    def _prepare_url(self, url: str) -> httpx2.URL:
        if self._urls is None:
            self._urls = {}
        if url not in self._urls:
            self._urls[url] = super()._prepare_url(url)
        return self._urls[url]

    @property
    def default_headers(self) -> dict[str, str | openai.Omit]:
        return dict(self.headers)
