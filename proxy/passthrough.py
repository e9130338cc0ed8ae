"""Requests that are not the proxy's business: sent on as they are, answered byte for byte, streamed through.

No SDK stands between here: it is the same protocol on both sides. What changes are hop-by-hop headers, the address,
and the key if the upstream has one of its own. A stream of events that breaks off upstream ends with an error event,
because clients take a bare end for success; any other body that breaks off takes the client's connection down with
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from asynclm.proxy.errors import APIError, error_body

# RFC 9110, section 7.6.1, and what the HTTP library writes by itself.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_SENT_ON: Final = _HOP_BY_HOP | {"host", "content-length", "content-encoding", "expect"}
_KEYS: Final = frozenset({"authorization", "x-api-key", "api-key"})
_OUR_PREFIX: Final = "x-asynclm-"


class Target:
    """Where an upstream is, and the headers that carry its key (empty: the client's own goes through)."""

    def __init__(
        self,
        base_url: str,
        key_headers: Mapping[str, str],
        *,
        query: Mapping[str, str] | None = None,
        connect_timeout_s: float,
        idle_timeout_s: float,
    ) -> None:
        base, _, own_query = base_url.partition("?")
        self.base = base.rstrip("/")
        self.query = own_query
        self.extra_query = dict(query or {})
        self.key_headers = dict(key_headers)
        self.timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s, sock_read=idle_timeout_s)


class Passthrough:
    """Sends requests on, over connections of its own that are kept alive and reused."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._open: set[aiohttp.ClientResponse] = set()  # answers being streamed through
        self._waiting: set[asyncio.Timeout] = set()  # requests whose answer has not begun
        self._abandoned = False
        self._idle = asyncio.Event()
        self._idle.set()

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:  # it must be made inside the event loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        return self._session

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    async def idle(self) -> None:
        """Wait until nothing is being streamed through."""
        await self._idle.wait()

    def abandon(self) -> None:
        """End every stream that is under way; streams of events end with an error event."""
        self._abandoned = True
        for patience in self._waiting:
            if patience.when() is None:  # not told yet: a timeout that is running out can't be set again
                patience.reschedule(0)
        for upstream in list(self._open):
            upstream.close()

    async def fetch(
        self, request: web.Request, path: str, target: Target, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """The body of a small answer to the same request, sent to `path`. Raises `APIError`, also if it is no 200."""
        more = {**(headers or {}), "accept-encoding": "identity"}
        upstream = await self._send(request, path, b"", target, more)
        try:
            if upstream.status != 200:
                raise APIError(
                    502,
                    f"The upstream answered with status {upstream.status}.",
                    type="upstream_error",
                    code="bad_upstream",
                )
            return await upstream.read()
        except (aiohttp.ClientError, TimeoutError):
            raise APIError(
                502, "The upstream broke off its answer.", type="upstream_error", code="upstream_disconnected"
            ) from None
        finally:
            upstream.close()

    async def forward(self, request: web.Request, path: str, body: bytes, target: Target) -> web.StreamResponse:
        """Send the request to `path` (behind the base URL) and stream the answer back. Raises `APIError`."""
        upstream = None
        self._idle.clear()
        try:
            upstream = await self._accepted(request, path, body, target)
            self._open.add(upstream)
            return await self._answer(request, upstream)
        finally:
            if upstream is not None:
                # Nothing but closing: a connection with an answer half read can't be used again.
                upstream.close()
                self._open.discard(upstream)
            if not self._open and not self._waiting:
                self._idle.set()

    async def _accepted(self, request: web.Request, path: str, body: bytes, target: Target) -> aiohttp.ClientResponse:
        """Send, unless the proxy shuts down before the answer begins."""
        patience = asyncio.timeout(None)
        try:
            async with patience:
                self._waiting.add(patience)
                return await self._send(request, path, body, target)
        except TimeoutError:
            raise APIError(503, "The proxy is shutting down.", type="server_error", code="server_shutdown") from None
        finally:
            self._waiting.discard(patience)

    async def _send(
        self, request: web.Request, path: str, body: bytes, target: Target, more: Mapping[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        headers = _headers(request, target)
        headers.update(more or {})
        try:
            return await self._connected().request(
                request.method,
                self._url(request, path, target),
                headers=headers,
                data=body or None,
                timeout=target.timeout,
                allow_redirects=False,
            )
        except TimeoutError:  # aiohttp's own are subclasses
            raise APIError(
                504, "The upstream did not answer in time.", type="upstream_error", code="upstream_timeout"
            ) from None
        except aiohttp.ClientConnectionError as error:
            reason = error.strerror if isinstance(error, aiohttp.ClientConnectorError) else "the connection broke"
            raise APIError(
                502, f"The upstream can't be reached: {reason}.", type="upstream_error", code="upstream_unreachable"
            ) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise APIError(
                502,
                f"The upstream's answer is not HTTP: {type(error).__name__}.",
                type="upstream_error",
                code="bad_upstream",
            ) from None

    def _url(self, request: web.Request, path: str, target: Target) -> URL:
        query = "&".join(part for part in (target.query, request.raw_path.partition("?")[2]) if part)
        address = f"{target.base}{path}"
        url = URL(f"{address}?{query}" if query else address, encoded=True)  # as the client wrote it
        return url.update_query(target.extra_query) if target.extra_query else url

    async def _answer(self, request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        headers = CIMultiDict(
            (name, value) for name, value in upstream.headers.items() if name.lower() not in _HOP_BY_HOP
        )
        response = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
        await response.prepare(request)
        read, write = upstream.content.readany, response.write
        try:
            while data := await read():
                await write(data)
        except (aiohttp.ClientError, TimeoutError) as error:
            if request.transport is None or request.transport.is_closing():
                return response  # it was the client who left
            message, code = "The upstream broke off the stream.", "upstream_disconnected"
            if self._abandoned:
                message, code = "The proxy is shutting down.", "server_shutdown"
            elif isinstance(error, TimeoutError):
                message, code = "The upstream fell silent.", "upstream_timeout"
            if upstream.content_type != "text/event-stream" or "content-encoding" in upstream.headers:
                request.transport.abort()
                return response
            await response.write(b"\n\ndata: " + error_body(message, "upstream_error", code, None) + b"\n\n")
        await response.write_eof()
        return response


def _headers(request: web.Request, target: Target) -> CIMultiDict[str]:
    drop = _NOT_SENT_ON
    if target.key_headers:
        drop = drop | _KEYS
    headers = CIMultiDict(
        (name, value)
        for name, value in request.headers.items()
        if (lower := name.lower()) not in drop and not lower.startswith(_OUR_PREFIX)
    )
    headers.update(target.key_headers)
    return headers
