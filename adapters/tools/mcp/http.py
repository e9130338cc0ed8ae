"""The streamable HTTP transport: the SDK's, on an HTTP client that bounds what it takes in and how long it waits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import httpx2
from mcp.client._transport import TransportStreams
from mcp.client.streamable_http import streamable_http_client
from mcp_types import INTERNAL_ERROR, REQUEST_TIMEOUT

from asynclm.adapters.tools.mcp.pace import Pace
from asynclm.adapters.tools.mcp.settings import McpSettings

_CONNECT_S: Final = 10.0
_NOTIFY_S: Final = 10.0  # a notification is answered at once (202), and what comes after it waits for that
_ANSWER_S: Final = 3600.0  # calls are bounded one by one; this only lets go of requests that were given up
_BYTES_A_SECOND: Final = 32 * 2**20


class TooLargeError(httpx2.StreamError):
    """A body that is not read to its end. The SDK makes it the error of the request."""


class HttpServer:
    """One connection to a server. `connect` may be used once."""

    stderr: Final = ""
    pid: Final = None

    def __init__(self, settings: McpSettings, environ: Mapping[str, str]) -> None:
        assert settings.url is not None
        self._url = settings.url
        self._headers = settings.request_headers(environ)
        self._max = settings.max_message_bytes

    def ended(self) -> str | None:
        """There is no process that could have ended."""
        return None

    async def settled(self) -> None:
        """There is nothing to wait for."""

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[TransportStreams]:
        """The server's messages in and out."""
        async with _Client(self._headers, self._max) as client:
            transport = streamable_http_client(self._url, http_client=client, max_sse_event_size=self._max)
            async with transport as streams:
                yield streams


class _Client(httpx2.AsyncClient):
    def __init__(self, headers: Mapping[str, str], max_bytes: int) -> None:
        super().__init__(
            # No compression: what is bounded is what arrives.
            headers={"accept-encoding": "identity", **headers},
            timeout=httpx2.Timeout(_CONNECT_S, read=None),
            limits=httpx2.Limits(max_connections=256),
        )
        self._max = max_bytes

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send, with bounds.

        What goes wrong with one request becomes its JSON-RPC error where the SDK's transport would end the connection,
        or not say what it was.
        """
        id = _bind(request)
        try:
            response = await super().send(request, **options)
        except httpx2.ReadTimeout:
            if id is None:
                raise
            return _error(request, id, 504, REQUEST_TIMEOUT, "the server did not answer")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            raise httpx2.DecodingError("the server compresses its answers, though it was told not to", request=request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        events = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        response.stream = _Bounded(response.stream, None if events else self._max)
        status = response.status_code
        # To the SDK a 404 means that the session is gone, or that the method isn't known.
        if id is None or status < 400 or status == 404 or await _is_json_rpc(response):
            return response
        await response.aclose()
        hint = "; are its key and headers right?" if status in (401, 403) else ""
        return _error(request, id, status, INTERNAL_ERROR, f"it answered with HTTP status {status}{hint}")


async def _is_json_rpc(response: httpx2.Response) -> bool:
    try:
        body = json.loads(await response.aread())
    except (ValueError, RecursionError, httpx2.StreamError):
        return False
    return isinstance(body, dict) and "jsonrpc" in body


def _error(request: httpx2.Request, id: Any, status: int, code: int, message: str) -> httpx2.Response:
    error = {"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}
    return httpx2.Response(status, json=error, request=request)


def _bind(request: httpx2.Request) -> Any:
    """Bound how long the answer may take to begin. Returns the id of the JSON-RPC request, None if it is none."""
    if request.method == "GET":
        return None  # a stream of events, which may be silent for hours
    id = None
    with contextlib.suppress(ValueError):
        id = json.loads(request.content).get("id") if request.content else None
    bound = _NOTIFY_S if id is None else _ANSWER_S
    request.extensions = {**request.extensions, "timeout": {**request.extensions.get("timeout", {}), "read": bound}}
    return id


class _Bounded(httpx2.AsyncByteStream):
    """A body read no faster than `_BYTES_A_SECOND`, and no further than `most` bytes."""

    def __init__(self, stream: httpx2.AsyncByteStream, most: int | None) -> None:
        self._stream = stream
        self._most = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pace, size = Pace(_BYTES_A_SECOND, _BYTES_A_SECOND), 0
        async for chunk in self._stream:
            size += len(chunk)
            if self._most is not None and size > self._most:
                raise TooLargeError(f"it has more than max_message_bytes ({self._most}) bytes")
            await pace.spend(len(chunk))
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
