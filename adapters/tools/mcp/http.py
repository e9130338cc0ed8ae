"""The streamable HTTP transport: the SDK's, on an HTTP client that bounds what it takes in and how long it waits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import httpx2
from mcp.client._transport import TransportStreams
from mcp.client.streamable_http import streamable_http_client
from mcp_types import REQUEST_TIMEOUT

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
        self._client: _Client | None = None
        self.problem = ""

    def ended(self) -> str | None:
        """The status with which the server last refused a request."""
        status = self._client.refused if self._client is not None else None
        if status is None:
            return None
        hint = "; are its key and headers right?" if status in (401, 403) else ""
        return f"it answered with HTTP status {status}{hint}"

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[TransportStreams]:
        """The server's messages in and out."""
        async with _Client(self._headers, self._max) as client:
            self._client = client
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
        self.refused: int | None = None

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        id = _read_bound(request)
        try:
            response = await super().send(request, **options)
        except httpx2.ReadTimeout:
            if id is None:
                raise
            # Out of the SDK's transport this would end the connection, and every other call with it.
            error = {"code": REQUEST_TIMEOUT, "message": "the server did not answer"}
            return httpx2.Response(504, json={"jsonrpc": "2.0", "id": id, "error": error}, request=request)
        self.refused = response.status_code if response.status_code >= 400 else None
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        events = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            raise httpx2.DecodingError("the server compresses its answers, though it was told not to", request=request)
        response.stream = _Bounded(response.stream, None if events else self._max)
        return response


def _read_bound(request: httpx2.Request) -> Any:
    """Set how long the answer may take to begin; the id of the JSON-RPC request, if it is one."""
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
