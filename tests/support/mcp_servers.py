"""Sources of tools from MCP servers, real and scripted, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from asynclm.adapters.tools.mcp.backoff import Backoff
from asynclm.adapters.tools.mcp.settings import McpSettings
from asynclm.adapters.tools.mcp.source import McpSource
from asynclm.adapters.tools.protocol import Tool
from asynclm.cml.tools import CallError

REAL = Path(__file__).with_name("mcp_server.py")
SCRIPT = Path(__file__).with_name("mcp_script.py")


class Opened:
    """A source that was opened, and what it has told since."""

    def __init__(self, source: McpSource) -> None:
        self.source = source
        self.tools: dict[str, Tool] = {}
        self.changes: asyncio.Queue[list[str]] = asyncio.Queue()

    def changed(self, tools: Sequence[Tool]) -> None:
        self.tools = {tool.spec.name: tool for tool in tools}
        self.changes.put_nowait(list(self.tools))

    async def call(self, name: str, /, **arguments: Any) -> Any:
        return await self.tools[name].run(arguments)

    async def until_back(self, name: str, /, **arguments: Any) -> Any:
        """The result of a call, once the server is there again."""
        while True:
            with contextlib.suppress(CallError):
                return await self.call(name, **arguments)
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def opened(settings: McpSettings, **options: Any) -> AsyncIterator[Opened]:
    """A source of this server's tools; it is closed in the end, and nothing is left."""
    before = asyncio.all_tasks()
    source = McpSource(settings, backoff=Backoff(0.02, 0.1), **options)
    it = Opened(source)
    try:
        tools = await source.open(it.changed)
        it.tools = {tool.spec.name: tool for tool in tools}
        yield it
    finally:
        await source.aclose()
        left = [task.get_name() for task in asyncio.all_tasks() - before if task.get_name().startswith("mcp ")]
        assert not left, left


def real(*arguments: str, **settings: Any) -> McpSettings:
    return McpSettings(command=sys.executable, args=(str(REAL), *arguments), **settings)


def script(*arguments: str, **settings: Any) -> McpSettings:
    return McpSettings(command=sys.executable, args=(str(SCRIPT), *arguments), name="script", **settings)


@contextlib.asynccontextmanager
async def real_over_http(*arguments: str, port: int = 0) -> AsyncIterator[int]:
    """The real server in another process, over HTTP; gives its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        REAL,
        "http",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "MCP_PORT": str(port)},
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in ("Z", "X")
