"""The operations of an OpenAPI document as tools."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from yarl import URL

from asynclm.adapters.tools.http import HttpClient, HttpRequest
from asynclm.adapters.tools.http_answer import value
from asynclm.adapters.tools.http_settings import HttpSettings
from asynclm.adapters.tools.identifiers import identifier
from asynclm.adapters.tools.openapi.document import MAX_BYTES, Document, load, without_secrets
from asynclm.adapters.tools.openapi.operations import Operation, base_url, operations, server, wanted
from asynclm.adapters.tools.openapi.parameters import Signature, UnsupportedError, signature
from asynclm.adapters.tools.openapi.schema import shortened
from asynclm.adapters.tools.openapi.serialization import request
from asynclm.adapters.tools.options import Options, ToolDefinitionError
from asynclm.adapters.tools.protocol import Tool
from asynclm.cml.tools import CallError, Effect, ToolSpec

_LOAD_S: Final = 60.0
_MAX_DESCRIPTION: Final = 500
_LARGE: Final = 2**18
_MANY_TOOLS: Final = 100
# What options say of a tool just as its spec does.
_DECLARED: Final = {*Options.__struct_fields__} & {*ToolSpec.__struct_fields__} - {"name", "description"}
_EFFECTS: Final = {
    "GET": Effect.READ_ONLY,
    "HEAD": Effect.READ_ONLY,
    "OPTIONS": Effect.READ_ONLY,
    "PUT": Effect.IDEMPOTENT,
    "DELETE": Effect.IDEMPOTENT,
    "POST": Effect.EFFECTFUL,
    "PATCH": Effect.EFFECTFUL,
}

logger = logging.getLogger(__name__)


class OpenAPISource:
    """Loads the document at `location` when it is opened; owns the connections. A `Source`.

    The location is an http(s) address, or a file relative to `base`. `include` (None: all) and `exclude` are patterns
    of operation ids or of `METHOD /path`; `prefix` goes before each tool's name, with an underscore. `options` hold for
    every tool, `overrides` (by tool name, or operation id) for one, and win. Keys come from `environ`. Raises
    `ToolDefinitionError`.
    """

    def __init__(
        self,
        location: str,
        *,
        http: HttpSettings | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        prefix: str | None = None,
        options: Options | None = None,
        overrides: Mapping[str, Options] | None = None,
        base: Path,
        environ: Mapping[str, str],
    ) -> None:
        self._location = location
        self._shown = without_secrets(location)
        self._http = http or HttpSettings()
        self._include, self._exclude = include, exclude
        self._prefix = f"{prefix}_" if prefix else ""
        self._options = options or Options()
        self._overrides = overrides or {}
        self._base = base
        try:
            self._base_url = None if self._http.base_url is None else base_url(self._http.base_url)
            self._client = HttpClient(self._http, environ)
        except ValueError as error:
            raise ToolDefinitionError(f"{self._shown}: {error}") from None

    async def open(self, changed: Callable[[Sequence[Tool]], None]) -> Sequence[Tool]:
        """Read the document, and make a tool of each operation wanted. Raises `ToolDefinitionError`."""
        try:
            async with asyncio.timeout(_LOAD_S):
                document = await load(self._location, self._base, self._fetch)
            return await asyncio.to_thread(self._tools, document)
        except CallError as error:
            raise ToolDefinitionError(f"{self._shown}: the document can't be fetched: {error.message}") from None
        except RecursionError:
            raise ToolDefinitionError(f"{self._shown}: it is nested too deeply") from None
        except TimeoutError:
            raise ToolDefinitionError(f"{self._shown}: the document did not come within {_LOAD_S:g} s") from None
        except ToolDefinitionError as error:
            raise ToolDefinitionError(f"{self._shown}: {error}") from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _fetch(self, address: str) -> bytes:
        url = URL(address)
        if not url.host:
            raise ToolDefinitionError("the address has no host")
        self._client.allow([url])
        own = self._base_url is not None and self._base_url.origin() == url.origin()
        answer = await self._client.send(
            HttpRequest(method="GET", url=url, repeatable=True), authorized=own, max_bytes=MAX_BYTES
        )
        return answer.body

    def _tools(self, document: Document) -> list[OpenAPITool]:
        tools: dict[str, OpenAPITool] = {}
        left_out: list[str] = []
        used: set[str] = set()
        for operation in wanted(operations(document), self._include, self._exclude):
            try:
                base = self._base_url or server(document, operation)
                takes = signature(document, operation, self._http.names)
            except UnsupportedError as error:
                left_out.append(f"{operation.shown} ({error})")
                continue
            except ToolDefinitionError as error:
                raise ToolDefinitionError(f"{operation.shown}: {error} (exclude leaves it out)") from None
            name = _unused(_name(operation, self._prefix), tools)
            keys = {key for key in (operation.id, name) if key is not None and key in self._overrides}
            used |= keys
            options = self._options
            for key in keys:
                options = self._overrides[key].over(options)
            name = options.name or name
            spec = _spec(name, operation, takes, options, version=self._version(operation, base))
            tools[name] = OpenAPITool(self._client, operation, base, takes, spec)
            self._client.allow([base])
        self._check(tools, left_out, used)
        return list(tools.values())

    def _version(self, operation: Operation, base: URL) -> str:
        """Changes with whatever else than the arguments decides what is asked of whom."""
        what = f"{operation.method} {base} {operation.path} {self._client.identity()}"
        return hashlib.sha256(what.encode()).hexdigest()[:16]

    def _check(self, tools: Mapping[str, OpenAPITool], left_out: Sequence[str], used: set[str]) -> None:
        for key in self._overrides.keys() - used:
            near = difflib.get_close_matches(key, tools, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ToolDefinitionError(f"overrides: there is no tool {key!r}{hint}")
        if not tools:
            why = f": {left_out[0]}" if left_out else ""
            raise ToolDefinitionError(f"it has no operation that can be a tool{why}")
        if left_out:
            logger.warning("%s: left out: %s", self._shown, "; ".join(left_out))
        if len(tools) > _MANY_TOOLS:
            logger.warning(
                "%s makes %d tools, all of which the model is told of in every request; include chooses some",
                self._shown,
                len(tools),
            )


class OpenAPITool:
    """One operation."""

    def __init__(self, client: HttpClient, operation: Operation, base: URL, takes: Signature, spec: ToolSpec) -> None:
        self._client = client
        self._operation = operation
        self._base = base
        self._takes = takes
        self._spec = spec

    @property
    def spec(self) -> ToolSpec:
        """How the model and the run machine see it."""
        return self._spec

    async def run(self, arguments: dict[str, Any]) -> object:
        """Send the request; the answer's JSON, or text. Raises `CallError` for any status but 2xx."""
        repeatable = self._spec.effect is not Effect.EFFECTFUL
        made = request(
            self._operation.method,
            self._base,
            self._operation.path,
            self._takes,
            arguments,
            repeatable=repeatable,
        )
        answer = await self._client.send(made)
        # What takes long to decode would hold up every stream of the server.
        return value(answer) if len(answer.body) < _LARGE else await asyncio.to_thread(value, answer)


def _spec(name: str, operation: Operation, takes: Signature, options: Options, *, version: str) -> ToolSpec:
    described = options.description
    if described is None:
        value = operation.place.value
        summary, text = (str(value.get(key) or "").strip() for key in ("summary", "description"))
        if summary and text and not summary.endswith((".", "!", "?")):
            summary += "."
        if text.startswith(summary.rstrip(".")):
            summary = ""
        described = shortened(f"{summary} {text}", _MAX_DESCRIPTION) or operation.shown
    declared = {key: getattr(options, key) for key in _DECLARED if getattr(options, key) is not None}
    return ToolSpec(
        **{"effect": _EFFECTS[operation.method], "version": version, **declared},
        name=name,
        description=described,
        parameters=takes.schema,
    )


def _name(operation: Operation, prefix: str) -> str:
    """The operation's id as an identifier, else one made of method and path: `get_pets_by_id`."""
    if operation.id is not None:
        return identifier(prefix + operation.id)
    path = re.sub(r"\{([^{}]*)\}", r"by_\1", operation.path)
    return identifier(f"{prefix}{operation.method.lower()}{re.sub(r'[^A-Za-z0-9]+', '_', path)}".rstrip("_"))


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    base, number = name, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name
