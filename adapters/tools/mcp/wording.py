"""What is said about a server: short, in one line, and without its secrets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import httpx2
from mcp import MCPError
from pydantic import ValidationError

_SHORTEST_SECRET: Final = 6  # shorter ones are words like "debug", found everywhere
_MAX: Final = 400


class JunkError(ValueError):
    """What came is no message; says what it is, in words that follow "sent"."""


class Wording:
    """Puts foreign text into one line of bounded length, `secrets` left out."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        found = {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
        # `Bearer KEY` may be quoted without its first word.
        found |= {word for secret in found for word in secret.split() if len(word) >= _SHORTEST_SECRET}
        self._secrets = sorted(found, key=len, reverse=True)

    def line(self, text: str, limit: int = _MAX) -> str:
        """The text in one line, its end cut off where it is too long."""
        text = self._plain(text)
        return text if len(text) <= limit else f"{text[:limit]}..."

    def end(self, text: str, limit: int = _MAX) -> str:
        """The end of the text, in one line."""
        text = self._plain(text)
        return text if len(text) <= limit else f"...{text[-limit:]}"

    def error(self, error: BaseException) -> str:
        """What went wrong, out of what the SDK and its transports raise."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        return self.line(_said(error))

    def _plain(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[...]")
        return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def _said(error: BaseException) -> str:
    match error:
        case MCPError():
            return error.message
        case ValidationError():
            # pydantic's own text quotes it at length
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            return f"it sent what the protocol doesn't allow ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            return f"it can't be reached ({str(error) or type(error).__name__})"
        case httpx2.TransportError():
            return f"the connection failed ({str(error) or type(error).__name__})"
        case OSError(strerror=str()):
            return f"it can't be started: {error.strerror}" + (f": {error.filename}" if error.filename else "")
        case JunkError():
            return str(error)
        case _:
            message = str(error)
            return f"{type(error).__name__}: {message}" if message else type(error).__name__
