"""What an upstream's error messages must not show: keys, and whatever stands in configured headers and queries.

Upstreams quote what they were sent ("Incorrect API key provided: sk-..."), and their words go to clients and logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote, quote_plus

from asynclm.adapters.models.protocol import ModelError

AUTHORIZING: Final = frozenset({"authorization", "api-key", "x-api-key"})
_MIN_LENGTH: Final = 8  # shorter values are words ("true", "eu-1") more often than keys
_MAX_MESSAGE: Final = 2000


class Secrets:
    """The secrets of one upstream, or of one request to it.

    `keys` and the credentials in authorizing headers count at any length, other values of `headers` and `query` from
    8 characters on; each also as a URL would have it.
    """

    def __init__(
        self,
        keys: Iterable[str | None],
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> None:
        words = {key for key in keys if key}
        for name, value in (headers or {}).items():
            if name.lower() in AUTHORIZING:
                words |= {value, value.split()[-1]} if value.strip() else set()
            words |= {word for word in (value, *value.split()) if len(word) >= _MIN_LENGTH}
        words |= {value for value in (query or {}).values() if len(value) >= _MIN_LENGTH}
        self._set(words)

    def with_key(self, key: str | None) -> Secrets:
        """These, and the key of one client."""
        if not key or key in self._words:
            return self
        more = Secrets(())
        more._set({*self._words, key})
        return more

    def keep(self, error: ModelError) -> ModelError:
        """The same error, in place, without any secret, and with a message of bounded length."""
        # Cut behind the masking: half a key would not be found.
        message = self._masked(error.message)
        error.message = message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "..."
        error.args = (error.message,)
        error.type = self._masked(error.type)
        error.code = error.code and self._masked(error.code)
        error.param = error.param and self._masked(error.param)
        return error

    def _set(self, words: Iterable[str]) -> None:
        self._words = frozenset(words)
        forms = {form for word in self._words for form in (word, quote(word, safe=""), quote_plus(word))}
        self._forms = sorted(forms, key=len, reverse=True)  # what holds another one goes first

    def _masked(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, "[key]")
        return text
