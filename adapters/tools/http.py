"""HTTP requests of tools: to known hosts only, with the source's credentials, bounded in size, retried where that is
safe. What goes wrong is a `CallError` that a model can read.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Final
from urllib.parse import urlencode

import aiohttp
import msgspec
import tenacity
from yarl import URL

from asynclm.adapters.tools.credentials import Credentials
from asynclm.adapters.tools.http_answer import HttpAnswer, problem
from asynclm.adapters.tools.http_settings import HttpSettings
from asynclm.adapters.tools.outbound import Outbound
from asynclm.cml.tools import CallError

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS: Final = 5
_TRANSIENT: Final = frozenset({408, 425, 429, 502, 503, 504})
_MAX_WAIT_S: Final = 8.0
_CONNECT_S: Final = 10.0
_CHUNK: Final = 65_536
_ERROR_BYTES: Final = 65_536  # of the body of an answer that is an error
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CREDENTIAL: Final = frozenset({"authorization", "cookie"})
_HEADERS: Final = {
    "User-Agent": f"asynclm/{version('asynclm')}",
    "Accept": "application/json, text/*;q=0.9, */*;q=0.5",
}

logger = logging.getLogger(__name__)


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request without its credentials. `url` is encoded; `repeatable` says whether it may be sent again."""

    method: str
    url: URL
    headers: dict[str, str] = {}
    body: bytes | None = None
    repeatable: bool = False


class HttpClient:
    """Sends requests. Redirects are followed hop by hop, to known hosts, where nothing is sent twice by it.

    `max_bytes` of the settings bounds an answer after its decompression. Keeps no cookies, and uses no proxy of the
    environment: the addresses that are checked must be those that are connected to. Raises ValueError for a key that
    can't stand in a header. Close it with `aclose`.
    """

    def __init__(self, settings: HttpSettings, environ: Mapping[str, str]) -> None:
        self._credentials = Credentials(settings, environ)
        self._outbound = Outbound(settings.allow_private)
        self._retries = settings.retries
        self._max_bytes = settings.max_bytes
        self._known: set[tuple[str, int]] = set()
        self._sessions: dict[bool, aiohttp.ClientSession] = {}  # by whether the host is trusted with any address

    def identity(self) -> str:
        """A hash of what goes along with every request."""
        return self._credentials.fingerprint()

    def allow(self, urls: Iterable[URL]) -> None:
        """Let requests go to the hosts of these addresses."""
        for url in urls:
            assert url.host is not None, "checked when the address was read"
            self._known |= {(url.host, url.port or 80), (url.host, 443)}

    async def send(self, request: HttpRequest, *, authorized: bool = True, max_bytes: int | None = None) -> HttpAnswer:
        """The answer, of status 2xx. Raises `CallError` (`tool_error`) for any other, and for what went wrong."""

        async def attempt() -> HttpAnswer:
            return await self._attempt(request, authorized, max_bytes or self._max_bytes)

        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(1 + (self._retries if request.repeatable else 0)),
            retry=tenacity.retry_if_exception(_may_help),
            wait=_wait,
            sleep=asyncio.sleep,
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except _Failed as failed:
            said = f"{request.method} {request.url.raw_path}: {failed}"
            raise CallError("tool_error", self._credentials.masked(said)) from None

    async def aclose(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def _attempt(self, request: HttpRequest, authorized: bool, max_bytes: int) -> HttpAnswer:
        method, url, body = request.method, request.url, request.body
        headers = {**_HEADERS, **request.headers}
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(url)
            own = authorized and url.origin() == request.url.origin()
            answer = await self._exchange(method, url, headers, body, own, max_bytes)
            if answer.status not in _REDIRECTS:
                break
            url = _next(url, answer)
            if answer.status == 303 and method not in _SAFE:
                method, body = "GET", None
                headers.pop("Content-Type", None)
            elif method not in _SAFE:
                raise _Failed(f"answered with a redirect to {url.origin()}, which is not followed for {method}")
            if url.origin() != request.url.origin():
                headers = {name: value for name, value in headers.items() if name.lower() not in _CREDENTIAL}
        else:
            raise _Failed(f"answered with more than {_MAX_REDIRECTS} redirects")
        if 200 <= answer.status < 300:
            return msgspec.structs.replace(answer, body=self._credentials.masked_body(answer.body))
        raise _Failed(
            f"answered {problem(answer)}", again=answer.status in _TRANSIENT, after=_seconds(answer.retry_after)
        )

    def _check(self, url: URL) -> None:
        if url.scheme not in ("http", "https") or not url.host:
            raise _Failed("only http and https addresses are requested")
        if (url.host, url.port) not in self._known:
            raise _Failed(f"{url.host}:{url.port} is not a host of the document, so it is not requested")

    async def _exchange(
        self, method: str, url: URL, headers: dict[str, str], body: bytes | None, authorized: bool, max_bytes: int
    ) -> HttpAnswer:
        if authorized:
            headers = {**headers, **self._credentials.headers}
            url = with_query(url, self._credentials.query)
        try:
            async with self._session(url).request(
                method, url, headers=headers, data=body, allow_redirects=False
            ) as response:
                return HttpAnswer(
                    status=response.status,
                    reason=response.reason or "",
                    content_type=response.content_type,
                    charset=response.charset,
                    body=await _body(response, max_bytes),
                    location=response.headers.get("Location"),
                    retry_after=response.headers.get("Retry-After"),
                )
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            refused = isinstance(error, ValueError) or getattr(error, "errno", None) == errno.EACCES
            raise _Failed(_said(error, url.host or ""), again=not refused) from None

    def _session(self, url: URL) -> aiohttp.ClientSession:
        trusted = self._outbound.trusts(url.host or "")
        session = self._sessions.get(trusted)
        if session is None:
            session = self._sessions[trusted] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector() if trusted else self._outbound.connector(),
                # How long a call may take in all is the executor's business.
                timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=_CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("Content-Type",),
                trust_env=False,
            )
        return session


def with_query(url: URL, parameters: Mapping[str, str]) -> URL:
    """The address with these behind its query, whose own encoding stays as it is."""
    if not parameters:
        return url
    return URL(f"{url}{'&' if url.raw_query_string else '?'}{urlencode(parameters)}", encoded=True)


class _Failed(Exception):  # noqa: N818 - it never leaves this module
    """One attempt failed. `again`: another may help; `after`: the wait that was asked for before it (s)."""

    def __init__(self, message: str, *, again: bool = False, after: float | None = None) -> None:
        super().__init__(message)
        self.again = again
        self.after = after


def _may_help(failed: BaseException) -> bool:
    return isinstance(failed, _Failed) and failed.again and (failed.after or 0) <= _MAX_WAIT_S


def _wait(state: tenacity.RetryCallState) -> float:
    failed = state.outcome and state.outcome.exception()
    if isinstance(failed, _Failed):
        logger.info("attempt %d failed", state.attempt_number)
        if failed.after is not None:
            return failed.after
    return float(min(0.25 * 2 ** (state.attempt_number - 1), _MAX_WAIT_S)) * random.uniform(0.75, 1.0)


def _seconds(retry_after: str | None) -> float | None:
    seconds = None
    with suppress(ValueError):  # a date, which is rare and would need a clock that agrees
        seconds = float(retry_after or "")
    return seconds if seconds is not None and seconds >= 0 else None


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    if response.status in _REDIRECTS:
        return b""
    if response.status < 400:
        return await _read(response, max_bytes)
    body = await response.content.read(_ERROR_BYTES)  # the beginning says what is wrong
    while len(body) < _ERROR_BYTES and (more := await response.content.read(_ERROR_BYTES - len(body))):
        body += more
    if not response.content.at_eof():
        response.close()
    return body


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    too_large = _Failed(f"the answer is larger than {max_bytes} bytes; ask for less")
    if response.content_length is not None and response.content_length > max_bytes and response.method != "HEAD":
        response.close()
        raise too_large
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        body += chunk
        if len(body) > max_bytes:
            response.close()  # what has not been read is never to come
            raise too_large
    return bytes(body)


def _next(url: URL, answer: HttpAnswer) -> URL:
    try:
        to = url.join(URL(answer.location or ""))
    except ValueError:
        to = URL()
    if not answer.location or not to.host:
        raise _Failed(f"answered {answer.status} without saying where to go")
    if url.scheme == "https" and to.scheme != "https":
        raise _Failed("answered with a redirect out of https, which is not followed")
    return to.with_fragment(None)


def _said(error: Exception, host: str) -> str:
    """What went wrong with the connection; never the address in full, in which a key may stand."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return f"the name {host} can't be resolved"
        case aiohttp.ClientConnectorCertificateError():
            return f"the certificate of {host} is not valid"
        case aiohttp.ClientConnectorError():
            return f"{host} can't be reached: {_reason(error.os_error)}"
        case TimeoutError():
            return f"{host} can't be reached in time"
        case aiohttp.ServerDisconnectedError():
            return f"{host} closed the connection without an answer"
        case aiohttp.ClientPayloadError():
            return f"the answer of {host} broke off, or is not encoded as it says"
        case aiohttp.ClientResponseError():
            return f"{host} did not answer in proper HTTP"
        case OSError():
            return f"the connection to {host} failed: {_reason(error)}"
    return f"the request is not possible: {type(error).__name__}"


def _reason(error: OSError) -> str:
    if error.errno and error.errno > 0 and error.errno != errno.EACCES:
        return os.strerror(error.errno)  # asyncio's own text would say the address again
    return error.strerror or type(error).__name__
