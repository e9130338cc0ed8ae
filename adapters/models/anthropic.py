"""Anthropic's Messages API, for clients that speak OpenAI's.

As in `openai`, the official SDK gives authentication, base URL and error types, the request goes through its `post`
as bytes that are ready, and the answer's bytes are read where they arrive. What is said in those bytes:
`anthropic_prompt` and `anthropic_events`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import anthropic
import httpx2
import msgspec

from asynclm.adapters.models import anthropic_prompt
from asynclm.adapters.models.anthropic_events import MessageDecoder, MessageDocumentDecoder
from asynclm.adapters.models.protocol import Abilities, Request, Stream
from asynclm.adapters.models.retry import refused, unreachable
from asynclm.adapters.models.stream import Decoder
from asynclm.adapters.models.upstream import Upstream

# The last version of the API that takes sampling parameters; the SDK's own refuses them for every model, at any value.
_SAMPLING_VERSION: Final = "2023-06-01"
_STOP_SEQUENCES: Final = 16
_encode: Final = msgspec.json.Encoder().encode


class AnthropicModel:
    """Anthropic, or a server that speaks its Messages API (`protocol.Model`).

    `base_url` ends before `/v1/messages`. `api_key`, `headers`, `query`, times and retries as for `OpenAIModel`; the
    key goes out as a bearer token, as the SDK sends it. `max_tokens` is the bound for clients that give none: the API
    asks for one.

    Abilities go by the model's name unless `default_abilities` says otherwise: Claude up to 4.5 continues an
    assistant turn (`prefill`), newer ones don't. Sampling parameters are sent to the Claudes that take them (up to
    4.6) and to other names, by API version 2023-06-01; requests without any, and to newer Claudes, use the SDK's
    version. `prompt_cache` marks what the provider may cache. The SDK reads further headers from
    ANTHROPIC_CUSTOM_HEADERS; nothing else is taken from the environment.
    """

    def __init__(
        self,
        base_url: str = "https://api.anthropic.com",
        api_key: str | None = None,
        *,
        default_abilities: Abilities | None = None,
        max_tokens: int = 4096,
        prompt_cache: bool = True,
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
            base_url.rstrip("/").removesuffix("/v1"),
            api_key,
            headers=headers,
            query=query,
            connect_timeout_s=connect_timeout_s,
            first_byte_timeout_s=first_byte_timeout_s,
            idle_timeout_s=idle_timeout_s,
            retries=retries,
            max_backoff_s=max_backoff_s,
        )
        self._abilities = default_abilities
        self._max_tokens = max_tokens
        self._prompt_cache = prompt_cache
        self._max_event_bytes = max_event_bytes
        self._client = anthropic.AsyncAnthropic(
            base_url=self._upstream.url,
            api_key="never sent",  # each request brings its own key, or says that there is none
            default_headers=self._upstream.headers,
            default_query=self._upstream.query,
            max_retries=0,
            timeout=None,
            open_telemetry=False,
            http_client=self._upstream.http_client,
        )

    def abilities(self, model: str) -> Abilities:
        """What `model` can do: configured, or by its name."""
        if self._abilities is not None:
            return self._abilities
        return Abilities(prefill=anthropic_prompt.takes_prefill(model), stop_sequences=_STOP_SEQUENCES)

    async def open(self, request: Request) -> Stream:
        """Send the request; return once the upstream has accepted it. Raises `ModelError`."""
        body = anthropic_prompt.body_of(
            request,
            prefill=self.abilities(request.model).prefill,
            sampling=anthropic_prompt.takes_sampling(request.model),
            cache=self._prompt_cache,
            max_tokens=self._max_tokens,
        )
        content = _encode(body)
        key = self._upstream.key_for(request)
        headers: dict[str, str | anthropic.Omit] = {}
        if not self._upstream.has_header("authorization"):
            headers["Authorization"] = f"Bearer {key}" if key else anthropic.Omit()
        if not body.keys().isdisjoint(("temperature", "top_p", "top_k")) and not self._upstream.has_header(
            "anthropic-version"
        ):
            headers["anthropic-version"] = _SAMPLING_VERSION

        async def send() -> httpx2.Response:
            try:
                response = await self._client.post(
                    "/v1/messages",
                    cast_to=httpx2.Response,
                    content=content,
                    options={"headers": headers},
                    stream=True,
                    stream_cls=anthropic.AsyncStream[Any],
                )
                # Told to cast to the response itself, the SDK hands it back unread and makes no stream of its own.
                return cast(httpx2.Response, response)
            except anthropic.APIStatusError as error:
                raise refused(error.response) from error
            except anthropic.APIConnectionError as error:
                raise unreachable(error) from error

        return await self._upstream.open(request, send, self._decoder)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.close()

    def _decoder(self, whole: bool) -> Decoder:
        return MessageDocumentDecoder(self._max_event_bytes) if whole else MessageDecoder(self._max_event_bytes)
