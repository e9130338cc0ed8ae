"""The configuration: `asynclm.toml`, and over it environment variables.

```toml
[server]
port = 8787

[upstreams.main]
kind = "openai"
base_url = "https://api.openai.com/v1"
api_key_env = "OPENAI_API_KEY"

[models."*"]
upstream = "main"

[[tools]]
python = "tools/weather.py:forecast"
```

Every key is also an environment variable: `ASYNCLM_SERVER_PORT`, `ASYNCLM_UPSTREAMS_MAIN_BASE_URL`,
`ASYNCLM_MODELS_ANY_POLICY` (`ANY` is the model "*"); what is no plain value is JSON, and so is a whole section
(`ASYNCLM_TOOLS`). See `asynclm.proxy.environment`.

Keys are never held here: `api_key_env` only names the variable, and headers and queries stay out of every `repr`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import msgspec

from asynclm.adapters.address import address_problem
from asynclm.adapters.stores import BadURLError, check_url
from asynclm.proxy.config_error import ConfigError, Key, did_you_mean, dotted, listed
from asynclm.proxy.config_reader import Reader
from asynclm.proxy.config_sections import (
    Cache,
    Conversations,
    Limits,
    Model,
    Override,
    PolicyName,
    Recording,
    Replay,
    Runs,
    Server,
    Store,
    Tool,
    Upstream,
)
from asynclm.proxy.environment import Layout, read_environment

__all__ = [
    "FILE_NAME",
    "Cache",
    "Config",
    "ConfigError",
    "Conversations",
    "Limits",
    "Model",
    "Override",
    "PolicyName",
    "Recording",
    "Replay",
    "Resolved",
    "Runs",
    "Server",
    "Store",
    "Tool",
    "UnknownModelError",
    "Upstream",
    "load",
]

FILE_NAME: Final = "asynclm.toml"

_BASE_URLS: Final = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
_IN_PROCESS: Final = ("simulated", "transformers")
_SOURCES: Final = ("python", "openapi", "mcp")
_OF_SOURCES: Final = {
    "name": ("python",),
    "description": ("python",),
    "include": ("openapi", "mcp"),
    "exclude": ("openapi", "mcp"),
    "prefix": ("openapi", "mcp"),
    "http": ("openapi",),
    "overrides": ("openapi", "mcp"),
}
_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]*")
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class UnknownModelError(LookupError):
    """No `[models]` entry takes this name."""


class Resolved(NamedTuple):
    """What a client's model name stands for: its entry, the upstream's name, and the model's name there."""

    entry: Model
    upstream: str
    model: str


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration, checked.

    `base` is the folder that paths are relative to, `source` the file that was read, if any; `warnings` are lines to
    show whoever starts the server.
    """

    server: Server = Server()
    upstreams: dict[str, Upstream] = {}
    models: dict[str, Model] = {}
    limits: Limits = Limits()
    runs: Runs = Runs()
    store: Store = Store()
    cache: Cache = Cache()
    conversations: Conversations = Conversations()
    recording: Recording = Recording()
    replay: Replay = Replay()
    tools: tuple[Tool, ...] = ()
    base: Path = Path()
    source: Path | None = None
    warnings: tuple[str, ...] = ()

    def resolve_model(self, name: str) -> Resolved:
        """What to do for the client's model name: its own entry, else that of "*". Raises `UnknownModelError`."""
        entry = self.models.get(name) or self.models.get("*")
        if entry is None:
            near = did_you_mean(name, self.models)
            raise UnknownModelError(f"The model {name[:100]!r} does not exist{near or f'; use {listed(self.models)}'}")
        return Resolved(entry, entry.upstream, entry.model or name)


_LAYOUT: Final = Layout(
    tables={
        "server": Server,
        "limits": Limits,
        "runs": Runs,
        "store": Store,
        "cache": Cache,
        "conversations": Conversations,
        "recording": Recording,
        "replay": Replay,
    },
    keyed={"upstreams": Upstream, "models": Model},
    lists=("tools",),
)


def load(path: Path | None, environ: Mapping[str, str], cwd: Path, *, local: str | None = None) -> Config:
    """Read the config: the file at `path`, else `asynclm.toml` in `cwd` if there is one, else only the environment.

    Without upstreams there is one, "main", for OpenAI's API; without models every name goes to the only upstream.
    With `local`, the name of a model, it runs in this process and is the only upstream; the config must have none.
    Raises `ConfigError`, one line that says where, what and why.
    """
    source = _find(path, cwd)
    tree = {} if source is None else _parse(source)
    variables, warnings = read_environment(tree, environ, _LAYOUT)
    reader = Reader(tree, str(source or "configuration"), variables, _LAYOUT)
    upstreams = reader.keyed("upstreams", Upstream)
    if local is not None:
        if upstreams:
            raise reader.error(
                ("upstreams",), 'is there already: leave it out or --local (in the config it is kind = "transformers")'
            )
        upstreams = {"local": Upstream(kind="transformers", model=local)}
    if not upstreams:
        upstreams = {"main": Upstream(kind="openai", api_key_env="OPENAI_API_KEY")}
    upstreams = {name: _checked_upstream(upstream, name, reader) for name, upstream in upstreams.items()}
    models = reader.keyed("models", Model) or {"*": Model()}
    models = {name: _checked_model(model, name, upstreams, reader) for name, model in models.items()}
    tools = tuple(reader.entries("tools", Tool))
    for index, tool in enumerate(tools):
        _check_tool(tool, index, reader)
    for index, tool in enumerate(tools):
        for key, settings in (("http", tool.http), ("mcp", tool.mcp)):
            if settings is not None and (missing := settings.missing(environ)):
                warnings.append(f"{dotted(('tools', index, key))}: not set: {', '.join(missing)}")
    for name, upstream in upstreams.items():
        if upstream.api_key_env and upstream.api_key(environ) is None:
            warnings.append(
                f"{dotted(('upstreams', name, 'api_key_env'))}: {upstream.api_key_env} is not set; "
                "the clients' own keys go through"
            )
    store, cache = _checked_store(reader), reader.table("cache", Cache)
    _check_variable(cache.secret_env, ("cache", "secret_env"), reader)
    if cache.secret_env and cache.secret(environ) is None:
        warnings.append(f"cache.secret_env: {cache.secret_env} is not set; a secret is drawn and kept in the store")
    return Config(
        server=reader.table("server", Server),
        upstreams=upstreams,
        models=models,
        limits=reader.table("limits", Limits),
        runs=reader.table("runs", Runs),
        store=store,
        cache=cache,
        conversations=reader.table("conversations", Conversations),
        recording=_checked_recording(reader),
        replay=reader.table("replay", Replay),
        tools=tools,
        base=(cwd if source is None else source.parent).absolute(),
        source=source,
        warnings=tuple(warnings),
    )


def _checked_recording(reader: Reader) -> Recording:
    recording = reader.table("recording", Recording)
    for index, pattern in enumerate(recording.redact):
        try:
            re.compile(pattern)
        except re.error as error:
            raise reader.error(("recording", "redact", index), f"is no regular expression: {error}") from None
    return recording


def _find(path: Path | None, cwd: Path) -> Path | None:
    if path is not None:
        return cwd / path
    found = cwd / FILE_NAME
    # Whatever has the name counts: Docker makes a folder of it where the file to be mounted is missing.
    return found if os.path.lexists(found) else None


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors put a byte order mark in front
    except OSError as error:
        raise ConfigError(f"{path}: the config can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: the config is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _checked_upstream(upstream: Upstream, name: str, reader: Reader) -> Upstream:
    def error(key: str, why: str) -> ConfigError:
        return reader.error(("upstreams", name, key), why)

    if upstream.kind != "simulated" and upstream.inject is not None:
        raise error("inject", 'only for kind = "simulated"')
    if upstream.kind != "transformers":
        for key in ("model", "engine"):
            if getattr(upstream, key) is not None:
                raise error(key, 'only for kind = "transformers"')
    if upstream.kind in _IN_PROCESS:
        if upstream.base_url is not None:
            raise error("base_url", f"the {upstream.kind} model runs in the process and has none")
    else:
        url = _BASE_URLS[upstream.kind] if upstream.base_url is None else upstream.base_url
        problem = _url_problem(url)
        if problem:
            raise error("base_url", problem)
        # Azure's addresses are given with a query; a path is appended to what stands here.
        parts = urlsplit(url)
        query = {**dict(parse_qsl(parts.query, keep_blank_values=True)), **upstream.query}
        base_url = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        upstream = msgspec.structs.replace(upstream, base_url=base_url, query=query)
    if upstream.kind != "openai":
        if upstream.prefill != "none":
            raise error("prefill", 'only for kind = "openai"')
        if upstream.prompt_cache_key is not None:
            raise error("prompt_cache_key", 'only for kind = "openai"')
    _check_variable(upstream.api_key_env, ("upstreams", name, "api_key_env"), reader)
    for header, value in upstream.headers.items():
        if not _HEADER.fullmatch(header):
            raise error("headers", f"{header[:40]!r} can't be the name of a header")
        if not (value.isascii() and value.isprintable()):
            raise error("headers", f"the value of {header!r} holds characters that a header can't have")
    return upstream


def _checked_store(reader: Reader) -> Store:
    store = reader.table("store", Store)
    if store.url is not None:
        try:
            check_url(store.url)
        except BadURLError as error:
            raise reader.error(("store", "url"), str(error)) from None
    return store


def _check_variable(name: str | None, key: Key, reader: Reader) -> None:
    if name is not None and not _VARIABLE.fullmatch(name):
        raise reader.error(
            key, "must be the name of an environment variable, in capitals; the key itself doesn't go into the config"
        )


def _url_problem(url: str) -> str | None:
    """What is wrong with a base URL."""
    problem = address_problem(url, example=_BASE_URLS["openai"], keys="api_key_env or headers")
    return problem or ("must not hold a fragment (#...)" if urlsplit(url).fragment else None)


def _check_tool(tool: Tool, index: int, reader: Reader) -> None:
    def error(why: str, *key: str) -> ConfigError:
        return reader.error(("tools", index, *key), why)

    sources = [key for key in _SOURCES if getattr(tool, key) is not None]
    if not sources:
        raise error(
            'must say where the tool is: python = "path/to/file.py:function", openapi = "file or address", '
            "or mcp = {...}"
        )
    if len(sources) > 1:
        raise error(f"{sources[0]} is there already; a table is for one source of tools", sources[1])
    for key, of in _OF_SOURCES.items():
        if getattr(tool, key) and sources[0] not in of:
            raise error(f"is for {' and '.join(of)}, not for {sources[0]}", key)
    if tool.prefix is not None and not tool.prefix.isidentifier():
        raise error("must be an identifier: letters, digits and underscores", "prefix")
    for name, settings in (("http", tool.http), ("mcp", tool.mcp)):
        if settings is not None and (problem := settings.problem()):
            raise error(problem[1], name, *filter(None, problem[:1]))


def _checked_model(model: Model, name: str, upstreams: Mapping[str, Upstream], reader: Reader) -> Model:
    key = ("models", name, "upstream")
    if not model.upstream:
        if len(upstreams) > 1:
            raise reader.error(key, f"there are several upstreams, so say which: {listed(upstreams)}")
        return msgspec.structs.replace(model, upstream=next(iter(upstreams)))
    if model.upstream not in upstreams:
        near = did_you_mean(model.upstream, upstreams)
        raise reader.error(key, f"there is no upstream {model.upstream!r}{near or f'; use {listed(upstreams)}'}")
    return model
