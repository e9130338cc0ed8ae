"""One hosted upstream, whatever its API: its address and credentials, its connections, and how a request gets through.

The official SDK of the API sends; this is what stands around it, for both of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import httpx2
import yarl

from asynclm.adapters.models import errors
from asynclm.adapters.models.protocol import ModelError, Request
from asynclm.adapters.models.retry import AttemptFailed, RetryPolicy, unreachable, with_retries
from asynclm.adapters.models.secrets import AUTHORIZING, Secrets
from asynclm.adapters.models.stream import Decoder, Endings, HTTPStream
from asynclm.adapters.models.transport import Transport, body_of

_USER_AGENT: Final = "asynclm"


class Upstream:
    """Where requests go. The parameters are those of `OpenAIModel`; raises ValueError for a base URL that is none."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        headers: Mapping[str, str] | None,
        query: Mapping[str, str] | None,
        connect_timeout_s: float,
        first_byte_timeout_s: float | None,
        idle_timeout_s: float,
        retries: int,
        max_backoff_s: float,
    ) -> None:
        url = _parse(base_url)
        self.url = url.copy_with(query=None, fragment=None)
        self.query = {**dict(url.params.items()), **(query or {})}
        self.headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # a chunk of text is not worth compressing, and would wait for the next one
            "Content-Type": "application/json",
            "User-Agent": _USER_AGENT,
            **(headers or {}),
        }
        self.http_client = httpx2.AsyncClient(
            transport=Transport(self.url, connect_timeout_s=connect_timeout_s), timeout=None, follow_redirects=False
        )
        self._api_key = api_key or None
        self._secrets = Secrets((api_key,), headers, self.query)
        self._names = {name.lower() for name in self.headers}
        self._first_byte_timeout_s = first_byte_timeout_s or idle_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._endings = Endings()
        self._retries = RetryPolicy(attempts=retries, max_backoff_s=max_backoff_s)

    def has_header(self, name: str) -> bool:
        """Whether the configured headers hold `name` (in lower case)."""
        return name in self._names

    def key_for(self, request: Request) -> str | None:
        """The key to send: the upstream's own, else the client's; None where there is none, or `headers` hold one.

        Raises `ModelError` (401) for a client's key that can't stand in a header.
        """
        if self._api_key or not AUTHORIZING.isdisjoint(self._names):
            return self._api_key
        key = request.api_key
        if key and not (key.isascii() and key.isprintable()):
            raise ModelError(
                "The API key holds characters that a key can't have.",
                status=401,
                type="authentication_error",
                code="invalid_api_key",
            )
        return key or None

    async def open(
        self,
        request: Request,
        send: Callable[[], Awaitable[httpx2.Response]],
        decoder: Callable[[bool], Decoder],
    ) -> HTTPStream:
        """Send until it succeeds or the retries are used up, and return the answer as a stream. Raises `ModelError`.

        No error shows a secret of the upstream or the key of `request`, neither here nor in the stream, whatever the
        upstream says. `send` makes one attempt; it raises `AttemptFailed` for the SDK's exceptions. `decoder` is given
        whether the answer came whole, as one JSON document, though a stream was asked for.
        """
        secrets = self._secrets.with_key(request.api_key)
        await self._endings.first()
        response = await with_retries(self._retries, lambda: self._attempt(send, secrets))
        body = body_of(response)
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == "text/html":
            body.abort()
            raise errors.malformed("a web page instead of an answer: check the upstream's base_url")
        whole = media_type == "application/json"
        return HTTPStream(body, decoder(whole), secrets, self._endings, idle_timeout_s=self._idle_timeout_s)

    async def fetch(
        self, request: Request, send: Callable[[], Awaitable[httpx2.Response]], *, max_bytes: int, retry: bool = True
    ) -> bytes:
        """Send as `open` does, and return the whole answer, of `max_bytes` at most. Raises `ModelError`."""
        secrets = self._secrets.with_key(request.api_key)
        retries = self._retries if retry else RetryPolicy(attempts=1)
        body = body_of(await with_retries(retries, lambda: self._attempt(send, secrets)))
        read = bytearray()
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                while data := await body.read():
                    read += data
                    if len(read) > max_bytes:
                        raise errors.malformed("an answer that is too large")
        except TimeoutError:
            raise errors.silent(self._idle_timeout_s, what="in the middle of the answer") from None
        except httpx2.TransportError:
            raise errors.disconnected() from None
        finally:
            if not body.ended:
                body.abort()
        return bytes(read)

    async def _attempt(self, send: Callable[[], Awaitable[httpx2.Response]], secrets: Secrets) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._first_byte_timeout_s):
                return await send()
        except TimeoutError:
            error = errors.silent(self._first_byte_timeout_s, what="before the answer began")
            raise AttemptFailed(error, again=False) from None
        except httpx2.TransportError as error:
            raise unreachable(error) from error
        except AttemptFailed as failed:
            # Anew, since what it says of itself is logged.
            raise AttemptFailed(
                secrets.keep(failed.error), again=failed.again, after=failed.after, dropped=failed.dropped
            ) from None


def _parse(base_url: str) -> httpx2.URL:
    try:
        url = httpx2.URL(base_url)
        yarl.URL(base_url)  # aiohttp's view of it is stricter
    except (httpx2.InvalidURL, ValueError):
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("base_url must be an http:// or https:// address")
    if url.userinfo:
        raise ValueError("base_url must not hold a user name or password: use api_key or headers")
    return url
