"""What the config says of an HTTP service that tools speak to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec

from asynclm.adapters.address import address_problem
from asynclm.adapters.tools.outbound import Outbound

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[tools]] http = {...}`: where a service is, who the proxy is there, and what is put up with.

    `base_url` stands in for the servers that the document names. Keys stand in environment variables: `bearer_env`
    names the one with a token, `basic_env` the one with `user:password`, `headers_env` and `query_env` those with the
    values of headers and query parameters. `headers` and `query` are fixed ones. `retries` is how often a request that
    may be repeated is sent again, `max_bytes` the size of an answer. `allow_private` opens the network that the proxy
    stands in: all of it, or these hosts and networks.
    """

    base_url: str | None = None
    bearer_env: str | None = None
    basic_env: str | None = None
    headers: dict[str, str] = {}
    headers_env: dict[str, str] = {}
    query: dict[str, str] = {}
    query_env: dict[str, str] = {}
    retries: Annotated[int, msgspec.Meta(ge=0, le=20)] = 2
    max_bytes: Annotated[int, msgspec.Meta(ge=1024, le=2**30)] = 8 * 2**20
    allow_private: bool | tuple[str, ...] = False

    @property
    def names(self) -> frozenset[str]:
        """The headers and query parameters that are given here, in lower case."""
        given = (self.headers, self.headers_env, self.query, self.query_env)
        return frozenset(name.lower() for names in given for name in names)

    def problem(self) -> tuple[str, str] | None:
        """The key that makes no sense, and why; never quotes what may hold a secret."""
        if self.base_url is not None and (why := _url_problem(self.base_url)):
            return "base_url", why
        if self.bearer_env is not None and self.basic_env is not None:
            return "basic_env", "makes no sense with bearer_env: both are the header Authorization"
        for key in ("bearer_env", "basic_env", "headers_env", "query_env"):
            value = getattr(self, key) or ()
            if not all(_VARIABLE.fullmatch(name) for name in ((value,) if isinstance(value, str) else _values(value))):
                return key, "must name environment variables; secrets themselves don't go into the config"
        for key in ("headers", "headers_env"):
            for header, value in getattr(self, key).items():
                if not _HEADER.fullmatch(header):
                    return key, f"{header[:40]!r} can't be the name of a header"
                if not (value.isascii() and value.isprintable()):
                    return key, f"the value of {header!r} holds characters that a header can't have"
        try:
            Outbound(self.allow_private)
        except ValueError as error:
            return "allow_private", str(error)
        return None

    def missing(self, environ: Mapping[str, str]) -> list[str]:
        """The variables that are named here and not set."""
        named = (self.bearer_env, self.basic_env, *self.headers_env.values(), *self.query_env.values())
        return [name for name in dict.fromkeys(named) if name and not environ.get(name, "").strip()]

    def __repr__(self) -> str:
        return f"HttpSettings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = msgspec.structs.asdict(self)
        for name in ("headers", "query"):  # keys may stand in there
            shown[name] = dict.fromkeys(shown[name], "...")
        return list(shown.items())


def _values(names: Any) -> list[str]:
    return list(names.values()) if isinstance(names, Mapping) else []


def _url_problem(url: str) -> str | None:
    problem = address_problem(url, example="https://api.example.com/v1", keys="basic_env", forbidden=" {}")
    if problem is None and (urlsplit(url).query or urlsplit(url).fragment):
        return "must end with its path: use query for parameters"
    return problem
