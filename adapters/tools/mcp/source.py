"""The tools of an MCP server, as a source of tools."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mcp_types import Tool as Described

from asynclm.adapters.tools.argument_names import with_callable_names
from asynclm.adapters.tools.mcp.backoff import Backoff
from asynclm.adapters.tools.mcp.results import result_value, without_keys
from asynclm.adapters.tools.mcp.server import McpServer
from asynclm.adapters.tools.mcp.settings import McpSettings
from asynclm.adapters.tools.mcp.specs import callable_name, spec_of, wanted
from asynclm.adapters.tools.options import Options, ToolDefinitionError
from asynclm.adapters.tools.protocol import Tool
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.tools import CallError, ToolSpec

_TIMES_SILENCE: Final = 10  # a call that goes on reporting progress may take so many times the silence

_AS_THEY_ARE: Final[Mapping[str, str]] = {}

logger = logging.getLogger(__name__)


class McpTool:
    """A tool of a server."""

    def __init__(
        self, server: McpServer, name: str, spec: ToolSpec, arguments: Mapping[str, str] = _AS_THEY_ARE
    ) -> None:
        self._server = server
        self._name = name
        self._spec = spec
        self._arguments = arguments  # the server's names for those that have another one here

    @property
    def spec(self) -> ToolSpec:
        """How the model and the run machine see it."""
        return self._spec

    @property
    def names(self) -> tuple[str, str]:
        """The server's name for it, and the one used here."""
        return self._name, self._spec.name

    def renamed(self) -> McpTool:
        """The same tool, its name prefixed with the server's: for when another tool has its name."""
        name = callable_name(self._name, callable_name(self._server.name).replace(".", "_"))
        spec = ToolSpec(**{field: getattr(self._spec, field) for field in ToolSpec.__struct_fields__} | {"name": name})
        return McpTool(self._server, self._name, spec, self._arguments)

    async def run(self, arguments: dict[str, Any]) -> object:
        """Call it. Raises `CallError`. Cancelling tells the server that the result isn't wanted, and doesn't wait."""
        named = {self._arguments.get(name, name): value for name, value in arguments.items()}
        result = await self._server.call(self._name, named)
        keys = self._server.keys
        try:
            value = result_value(result)
        except CallError as error:
            raise CallError(error.type, str(without_keys(error.message, keys))) from None
        return without_keys(value, keys) if keys else value


class McpSource:
    """The tools of the MCP server that `settings` say how to reach.

    `options` (without `name` and `description`) win over what the server says of each of its tools, `overrides` over
    both, for the tool of that name (the server's or the one used here). `include` and `exclude` are patterns of the
    server's own names, `prefix` is put before each with an underscore. Variables are looked up in `environ`; `base` is
    what paths are relative to; `silence_s` counts where the settings say nothing.
    """

    def __init__(
        self,
        settings: McpSettings,
        options: Options | None = None,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        prefix: str | None = None,
        overrides: Mapping[str, Options] | None = None,
        environ: Mapping[str, str] = os.environ,
        base: Path = Path(),
        silence_s: float = 60.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._settings = settings
        self._options = options or Options()
        self._include = include
        self._exclude = exclude
        self._prefix = prefix
        self._overrides = overrides or {}
        self._silence_s = settings.silence_s or silence_s
        self._changed: Callable[[Sequence[Tool]], None] | None = None
        self._tools: list[McpTool] = []
        self._warned: set[str] = set()
        self.server = McpServer(
            settings, self._listed, environ=environ, base=base, silence_s=self._silence_s, backoff=backoff
        )

    async def open(self, changed: Callable[[Sequence[Tool]], None]) -> Sequence[Tool]:
        """Connect to the server, and list its tools.

        Without an answer there are none, for now: it is tried again, and `changed` is called when it came. Where the
        settings say `required`, that is a `ToolDefinitionError`.
        """
        problem = await self.server.open()
        if problem is not None and self._settings.required:
            raise ToolDefinitionError(f"the MCP server {self.server.name} can't be used: {problem}")
        self._changed = changed
        return self._tools

    async def aclose(self) -> None:
        """Disconnect; end the server's process if it has one."""
        await self.server.aclose()

    async def _listed(self, listing: Sequence[Described]) -> None:
        # Odd schemas take long to check, and a server may change hundreds of them every second.
        tools = await asyncio.to_thread(self._usable, listing)
        for key in self._overrides.keys() - {name for tool in tools for name in tool.names}:
            self._warn(key, f"overrides: there is no tool {key!r}")
        if [tool.spec for tool in tools] == [tool.spec for tool in self._tools]:
            return  # the tools that are there work on any connection
        self._tools = tools
        if self._changed is not None:
            self._changed(tools)

    def _usable(self, listing: Sequence[Described]) -> list[McpTool]:
        found: dict[str, McpTool] = {}
        for pattern in self._include or () if listing else ():
            if not any(wanted(described.name, (pattern,), ()) for described in listing):
                self._warn(f"include {pattern}", f"include: no tool is called {pattern!r}")
        for described in listing:
            if not wanted(described.name, self._include, self._exclude):
                continue
            name = callable_name(described.name, self._prefix)
            override = self._overrides.get(described.name) or self._overrides.get(name) or Options()
            options, name = override.over(self._options), override.name or name
            parameters, arguments = with_callable_names(described.input_schema)
            spec = spec_of(
                described, options, name=name, timeout_s=_TIMES_SILENCE * self._silence_s, parameters=parameters
            )
            tool = McpTool(self.server, described.name, spec, arguments)
            try:
                if name in found:
                    raise ValueError(f"tool {name!r}: there is another one of that name")
                Toolbox([tool])
            except ValueError as error:
                self._warn(described.name, f"a tool is left out: {error}")
            else:
                found[name] = tool
        return list(found.values())

    def _warn(self, name: str, what: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("MCP server %s: %s", self.server.name, what)
