"""What goes wrong, in OpenAI's error shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from asynclm.adapters.models.protocol import ModelError
from asynclm.cml.machine import RunError

SERVER_ERROR = "server_error"
INVALID_REQUEST = "invalid_request_error"


class APIError(Exception):
    """A request that can't be answered. `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID_REQUEST,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self._headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON document."""
        return error_body(self.message, self.type, self.code, self.param)

    def headers(self) -> dict[str, str]:
        """What belongs into the response's headers."""
        wait = {} if self.retry_after is None else {"retry-after": str(math.ceil(self.retry_after))}
        return {**self._headers, **wait}


def error_body(message: str, type: str, code: str | None, param: str | None) -> bytes:
    """An error as a JSON document; the same stands in a stream behind `data: `."""
    return msgspec.json.encode({"error": {"message": message, "type": type, "param": param, "code": code}})


def run_error(error: ModelError) -> RunError:
    """A model's error as the run machine carries it."""
    return RunError(error.message, error.status, error.type, error.code, error.param, error.retry_after)


def api_error(error: RunError, headers: Mapping[str, str]) -> APIError:
    """A run's error as the answer to its request, with `headers` that name the run."""
    return APIError(
        error.status,
        error.message,
        type=error.type,
        code=error.code,
        param=error.param,
        retry_after=error.retry_after,
        headers=headers,
    )


def invalid(message: str, param: str | None = None, code: str | None = None, status: int = 400) -> APIError:
    """A request that is wrong by itself."""
    return APIError(status, message, param=param, code=code)


def own_fault(error: BaseException) -> RunError:
    """The end of a run in which the proxy itself broke down."""
    message = f"The proxy failed: {type(error).__name__}. This is a fault of its own; its log says more."
    return RunError(message, 500, SERVER_ERROR, "internal_error")
