"""How the proxy proves to an HTTP service who it is, and how that stays out of what models and logs see."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, quote_plus

from asynclm.adapters.tools.http_settings import HttpSettings

_MASK: Final = "[key]"
_MIN_MASKED: Final = 8  # in results and of fixed headers: shorter values are words more often than keys
_SECRET: Final = re.compile(r"auth|key|token|secret|passw|cookie|credential|signature|session", re.IGNORECASE)


def named_as_secret(name: str) -> bool:
    """Whether a header, parameter or variable of this name holds a key: most hold versions, paths and the like."""
    return _SECRET.search(name) is not None


class Credentials:
    """What goes along with every request to a service: `headers` and `query`, keys included.

    Keys whose variable is not set in `environ` are left out. Raises ValueError naming the variable whose value can't
    stand in a header.
    """

    def __init__(self, settings: HttpSettings, environ: Mapping[str, str]) -> None:
        self.headers = dict(settings.headers)
        self.query = dict(settings.query)
        keys: set[str] = set()

        def key(variable: str | None) -> str:
            value = environ.get(variable or "", "").strip()
            if not value.isprintable():
                raise ValueError(f"the value of {variable} holds characters that a header can't have")
            keys.add(value)
            return value

        if token := key(settings.bearer_env):
            self.headers["Authorization"] = f"Bearer {token}"
        if pair := key(settings.basic_env):
            encoded = base64.b64encode(pair.encode()).decode()
            self.headers["Authorization"] = f"Basic {encoded}"
            keys |= {encoded, pair.partition(":")[2]}
        for target, variables in ((self.headers, settings.headers_env), (self.query, settings.query_env)):
            for name, variable in variables.items():
                if value := key(variable):
                    target[name] = value
        fixed = (*settings.headers.items(), *settings.query.items())
        secret = [value for name, value in fixed if named_as_secret(name)]
        keys |= {word for value in secret for word in (value, *value.split()) if len(word) >= _MIN_MASKED}
        forms = {form for word in keys if word for form in (word, quote(word, safe=""), quote_plus(word))}
        self._forms = sorted(forms, key=len, reverse=True)  # what holds another one goes first

    def fingerprint(self) -> str:
        """Who the proxy is to the service, as a hash: what another one was answered may not hold for this one."""
        told = repr((sorted(self.headers.items()), sorted(self.query.items())))
        return hashlib.sha256(told.encode()).hexdigest()

    def masked(self, text: str) -> str:
        """A text for people or models, without any key."""
        for form in self._forms:
            text = text.replace(form, _MASK)
        return text

    def masked_body(self, body: bytes) -> bytes:
        """What a service answered, without keys that it echoes (those long enough to be known for what they are)."""
        for form in self._forms:
            if len(form) >= _MIN_MASKED:
                body = body.replace(form.encode(), _MASK.encode())
        return body
