"""What the config says of an MCP server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, urlsplit

import msgspec

from asynclm.adapters.address import address_problem
from asynclm.adapters.tools.credentials import named_as_secret as _secret

_YEAR_S: Final = 31_536_000
_MIN_KEY: Final = 8
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_RUNNERS: Final = frozenset(
    {"python", "python3", "node", "npx", "uvx", "uv", "bunx", "bun", "deno", "sh", "bash", "env"}
)

Seconds = Annotated[float, msgspec.Meta(gt=0, le=_YEAR_S)]


class McpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[tools]] mcp = {...}`: an MCP server that is started (`command`), or one that is reached over HTTP (`url`).

    `env` is added to the few variables that a server inherits (PATH, HOME and the like), `env_from` names variables of
    the proxy that it gets too; `cwd` is relative to the config's folder, which is the default. `headers` go along with
    every HTTP request, `headers_env` says which variable holds the value of a header, `bearer_env` which holds a key
    that is sent as `Authorization: Bearer`. `name` is what errors and prefixes call the server. With `required` the
    proxy doesn't start without it. `start_timeout_s` bounds connecting and listing, `silence_s` how long a call may
    hear nothing (None: `limits.tool_timeout_s`), `max_message_bytes` the size of a message.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    command: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    env_from: tuple[str, ...] = ()
    cwd: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    headers_env: dict[str, str] = {}
    bearer_env: str | None = None
    required: bool = False
    start_timeout_s: Seconds = 30.0
    silence_s: Seconds | None = None
    max_message_bytes: Annotated[int, msgspec.Meta(ge=4096, le=2**30)] = 4 * 2**20

    @property
    def shown(self) -> str:
        """The server's name: the one given, else one made from its address or command."""
        if self.name is not None:
            return self.name
        if self.url is not None:
            return urlsplit(self.url).hostname or "mcp"
        words = [self.command or "", *self.args]
        plain = [PurePath(word).stem for word in words if word and not word.startswith("-")]
        return next((word for word in plain if word and word not in _RUNNERS), plain[0] if plain else "mcp")

    def problem(self) -> tuple[str, str] | None:
        """The key that makes no sense, and why; never quotes what may hold a secret."""
        if (self.command is None) == (self.url is None):
            return "", "must say how to reach the server: command (it is started) or url (streamable HTTP), one of them"
        ours, theirs = ("url", _OF_STDIO) if self.command is None else ("command", _OF_HTTP)
        for key in theirs:
            if getattr(self, key):
                return key, f"makes no sense with {ours}"
        if self.url is not None and (problem := _url_problem(self.url)):
            return "url", problem
        for key in ("env_from", "headers_env", "bearer_env"):
            value = getattr(self, key)
            names = (value,) if isinstance(value, str) else value.values() if isinstance(value, Mapping) else value
            if not all(_VARIABLE.fullmatch(name) for name in names or ()):
                return key, "must name environment variables; secrets themselves don't go into the config"
        for key in ("headers", "headers_env"):
            for header, value in getattr(self, key).items():
                if not _HEADER.fullmatch(header):
                    return key, f"{header[:40]!r} can't be the name of a header"
                if not (value.isascii() and value.isprintable()):
                    return key, f"the value of {header!r} holds characters that a header can't have"
        if "\0" in "".join((self.command or "", *self.args, self.cwd or "", *self.env, *self.env.values())):
            return "command", "must not hold a null character"
        return None

    def missing(self, environ: Mapping[str, str]) -> list[str]:
        """The variables that are named here and not set."""
        named = [*self.env_from, *self.headers_env.values(), *([self.bearer_env] if self.bearer_env else [])]
        return [name for name in dict.fromkeys(named) if not environ.get(name, "").strip()]

    def request_headers(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What goes along with every HTTP request."""
        found = dict(self.headers)
        if self.bearer_env and (key := environ.get(self.bearer_env, "").strip()):
            found["Authorization"] = f"Bearer {key}"
        for header, variable in self.headers_env.items():
            if value := environ.get(variable, "").strip():
                found[header] = value
        return found

    def secrets(self, environ: Mapping[str, str]) -> list[str]:
        """Values that must not be shown."""
        named = [*self.env_from, *self.headers_env.values(), *([self.bearer_env] if self.bearer_env else [])]
        query = [value for _, value in parse_qsl(urlsplit(self.url).query)] if self.url else []
        found = [*self.env.values(), *self.headers.values(), *query]
        return [*found, *(environ.get(name, "").strip() for name in named)]

    def keys(self, environ: Mapping[str, str]) -> list[str]:
        """Of the secrets, those that are keys beyond doubt: neither short, nor perhaps a folder or a mode."""
        named = {name: environ.get(name, "") for name in self.env_from}
        found = [value for name, value in (*self.env.items(), *self.headers.items(), *named.items()) if _secret(name)]
        found += [environ.get(name, "") for name in (*self.headers_env.values(), self.bearer_env or "")]
        words = {word for value in found for word in (value.strip(), *value.split())}
        return sorted((word for word in words if len(word) >= _MIN_KEY), key=len, reverse=True)

    def __repr__(self) -> str:
        return f"McpSettings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = msgspec.structs.asdict(self)
        for name in ("env", "headers"):  # keys may stand in there
            shown[name] = dict.fromkeys(shown[name], "...")
        shown["args"] = f"<{len(self.args)}>"
        shown["url"] = self.url and self.url.partition("?")[0]
        return list(shown.items())


_OF_STDIO: Final = ("args", "env", "env_from", "cwd")
_OF_HTTP: Final = ("headers", "headers_env", "bearer_env")


def _url_problem(url: str) -> str | None:
    return address_problem(url, example="https://mcp.example.com/mcp", keys="bearer_env or headers_env")
