"""The HTTP transport under both SDKs: aiohttp, behind httpx2's transport interface.

The SDKs carry such a transport of their own. This one differs where a proxy's needs do: any number of connections at
once (aiohttp's default would queue the 101st stream), no cookies (one client's would go out with the next one's
request), no redirects, connection errors told from timeouts, compressed bodies decoded where they arrive, and a
response whose bytes can be read without any layer between (`Body.read`) and whose connection can be dropped at once
(`Body.abort`).
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Callable
from typing import Final
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import yarl

# aiohttp warns about larger bodies that come as bytes, and writes them in one piece.
_LARGE_BODY: Final = 1 << 20
_MAX_ERROR_BODY: Final = 1 << 20
_BODY: Final = "asynclm.body"
# What httpx2 must not see: it would keep the cookies, and decode what aiohttp has decoded already.
_KEPT_BACK: Final = frozenset({b"set-cookie", b"content-encoding"})


class Body(httpx2.AsyncByteStream):
    """The body of a response, as it comes in."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def read(self) -> bytes:
        """Whatever has arrived, waiting for the first byte of it; empty at the end.

        Raises an `httpx2.TransportError` when the connection breaks, or is aborted.
        """
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise _mapped(error) from error
        except RuntimeError as error:
            # aiohttp's word for reading from a connection that was closed on this side.
            raise httpx2.ReadError("the connection was closed") from error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        # Only error answers are read this way, by the SDK: they are short, or not worth more memory.
        left = _MAX_ERROR_BODY
        while left > 0 and (data := await self.read()):
            yield data[:left]
            left -= len(data)

    @property
    def ended(self) -> bool:
        """All of it has arrived, read or not, and the connection is back in the pool."""
        return self._response.content.is_eof()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` when all of it has arrived. Not called if the connection breaks or is aborted."""
        self._response.content.on_eof(callback)

    def abort(self) -> None:
        """Drop the connection at once, with whatever was not read. After the end, the connection is not this body's."""
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self._response.close()

    async def aclose(self) -> None:
        """The same as `abort`, for httpx2."""
        self.abort()


def body_of(response: httpx2.Response) -> Body:
    """The body of a response that came through `Transport`."""
    body = response.extensions[_BODY]
    assert isinstance(body, Body)
    return body


class Transport(httpx2.AsyncBaseTransport):
    """Connections to one origin, kept and reused. `connect_timeout_s` bounds name lookup, TCP and TLS together (s).

    A proxy from the environment (`HTTPS_PROXY` and so on, `NO_PROXY`) is taken when the transport is made. There is no
    limit on how long an answer may take: that is for whoever reads it. Made in any thread, used in one event loop.
    """

    def __init__(self, url: httpx2.URL, *, connect_timeout_s: float, keepalive_s: float = 30.0) -> None:
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout_s)
        self._keepalive_s = keepalive_s
        self._proxy = _proxy_for(url)
        self._ssl = httpx2.create_ssl_context() if url.scheme == "https" else True
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send, and return once the headers are there. Raises `httpx2.TransportError`."""
        session = self._session
        if session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=self._keepalive_s, ssl=self._ssl)
            session = self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        content = request.content
        try:
            response = await session.request(
                request.method,
                yarl.URL(str(request.url), encoded=True),
                headers=request.headers,
                data=content if len(content) <= _LARGE_BODY else io.BytesIO(content),
                allow_redirects=False,
                timeout=self._timeout,
                proxy=self._proxy,
            )
        except (aiohttp.ClientError, OSError) as error:
            raise _mapped(error) from error
        body = Body(response)
        headers = [pair for pair in response.raw_headers if pair[0].lower() not in _KEPT_BACK]
        return httpx2.Response(response.status, headers=headers, stream=body, extensions={_BODY: body})

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()


def _mapped(error: Exception) -> httpx2.TransportError:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return httpx2.ConnectTimeout("the connection could not be made in time")
    if isinstance(error, aiohttp.ClientConnectorError):
        return httpx2.ConnectError(_reason(error))
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
        return httpx2.RemoteProtocolError("what came is not proper HTTP, or was cut short")
    return httpx2.ReadError("the connection was closed")


def _reason(error: aiohttp.ClientConnectorError) -> str:
    # The system's own words ("Connection refused"): the exception's text would add the whole TLS context.
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host name could not be resolved"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "the TLS certificate was not accepted"
    return os.strerror(error.os_error.errno) if error.os_error.errno else type(error.os_error).__name__


def _proxy_for(url: httpx2.URL) -> str | None:
    if proxy_bypass(url.host):
        return None
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy is None:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise ValueError(f"the proxy in the environment for {url.host} is not an http:// or https:// one; set NO_PROXY")
    return proxy
