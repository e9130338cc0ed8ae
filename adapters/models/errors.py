"""Upstreams' error answers, in the shape that clients are given (`ModelError`).

They come as OpenAI's `{"error": {"message", "type", "param", "code"}}`, Anthropic's `{"type": "error", "error":
{...}}`, a bare `{"error": "..."}`, `{"message": ...}` or `{"detail": ...}` of the self-hosted servers, or as no JSON
at all.
"""

from __future__ import annotations

import email.utils
import http
import math
import time
from collections.abc import Mapping
from typing import Any, Final

import httpx2
import msgspec

from asynclm.adapters.models.protocol import ModelError

MALFORMED: Final = "upstream_malformed"
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


def from_response(response: httpx2.Response) -> ModelError:
    """What the upstream refused the request with, in its words (see `secrets`). `response` has been read."""
    status = response.status_code
    if status < 400:
        return ModelError(
            f"The upstream answered with a redirect ({status}) to {_target(response)}: "
            "set the upstream's base_url to where it really is.",
            code="upstream_redirect",
        )
    try:
        body = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        body = None
    error = from_body(body, status=status)
    error.retry_after = retry_after(response.headers)
    if body is None and not response.headers.get("content-type", "").startswith("text/html"):
        text = response.text.strip()
        if text:
            error.message = text
            error.args = (error.message,)
    return error


def from_body(body: Any, *, status: int) -> ModelError:
    """Read an error answer or an error event that was decoded. `status` is what it came with."""
    fields: Any = body
    if isinstance(body, dict):
        fields = body.get("error") or body
    message: Any = None
    type = code = param = None
    if isinstance(fields, str):
        message = fields
    elif isinstance(fields, dict):
        message = fields.get("message") or fields.get("detail")
        type, code, param = fields.get("type"), fields.get("code"), fields.get("param")
    if not message:
        message = f"The upstream answered with status {status} ({_phrase(status)})."
    elif not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    return ModelError(
        message,
        status=status,
        type=type if isinstance(type, str) and type else _TYPES.get(status, "upstream_error"),
        code=None if code is None else str(code),
        param=param if isinstance(param, str) else None,
    )


def is_error(body: Any) -> bool:
    """Whether a decoded answer is an error of the kind that has its message at the top."""
    if not isinstance(body, dict):
        return False
    message = body.get("message")
    return (isinstance(message, str) and message != "") or bool(body.get("detail"))


def from_event(data: bytes) -> ModelError:
    """An event that is named `error`, whatever it holds."""
    try:
        body = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        body = data.decode(errors="replace").strip()
    if not body:
        return ModelError("The upstream reported an error without a word about it.", status=502)
    return from_body({"error": body} if isinstance(body, str) else body, status=status_in(body, 502))


def status_in(body: Any, default: int) -> int:
    """The HTTP status that an error event names in its `code` or `status`, or `default`."""
    fields = body.get("error", body) if isinstance(body, dict) else None
    if isinstance(fields, dict):
        for name in ("code", "status", "status_code"):
            value = fields.get(name)
            if isinstance(value, str) and value.isdecimal() and len(value) == 3:
                value = int(value)
            if isinstance(value, int) and 400 <= value <= 599:
                return value
    return default


def unreachable(error: BaseException) -> ModelError:
    """No answer came: the connection failed before the headers. `error` is the SDK's, or the transport's."""
    cause = error if isinstance(error, httpx2.TransportError) else error.__cause__
    reason = f": {cause}" if isinstance(cause, httpx2.TransportError) and str(cause) else ""
    return ModelError(f"The upstream could not be reached{reason}.", status=502, code="upstream_unreachable")


def silent(seconds: float, *, what: str) -> ModelError:
    """Nothing came for `seconds`; `what` was being waited for."""
    return ModelError(
        f"The upstream sent nothing for {seconds:g} s ({what}).",
        status=504,
        type="timeout_error",
        code="upstream_timeout",
    )


def disconnected() -> ModelError:
    """The stream ended before the model had."""
    return ModelError("The upstream broke off the stream.", status=502, code="upstream_disconnected")


def malformed(what: str) -> ModelError:
    """The upstream sent what can't be read; `what` says what, without quoting it."""
    return ModelError(f"The upstream sent {what}.", status=502, code=MALFORMED)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the upstream asks to wait (`retry-after-ms`, `retry-after` in seconds or as a date), or None."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(date.timestamp() - time.time(), 0.0)


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "no standard status"


def _target(response: httpx2.Response) -> str:
    # Without the query: it may hold a key.
    try:
        url = response.request.url.join(response.headers.get("location", ""))
        return str(url.copy_with(query=None, fragment=None, username=None, password=None))
    except httpx2.InvalidURL:
        return "a place that is no URL"
