"""One MCP server, kept connected; and calls to it, on whatever connection there is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mcp import MCPError
from mcp_types import CallToolResult
from mcp_types import Tool as Described
from pydantic import ValidationError

from asynclm.adapters.tools.mcp.backoff import Backoff
from asynclm.adapters.tools.mcp.connection import Connection
from asynclm.adapters.tools.mcp.http import HttpServer
from asynclm.adapters.tools.mcp.settings import McpSettings
from asynclm.adapters.tools.mcp.stdio import StdioServer
from asynclm.adapters.tools.mcp.wording import Wording
from asynclm.cml.tools import CallError

_CLOSE_S: Final = 15.0  # more than the end of a process can take
_CLOSED: Final = "Connection closed"  # how the SDK says that the connection has ended
_SESSION_GONE: Final = "Session terminated"  # how it says that an HTTP server doesn't know us any more

logger = logging.getLogger(__name__)


class McpServer:
    """A server that is connected from `open` to `aclose`, as far as that is possible.

    `listed` is awaited with all of its tools whenever they were listed. `environ` holds the variables that the settings
    name, `base` is the folder that they are relative to. A call that hears nothing for `silence_s` seconds, no progress
    either, is given up.
    """

    def __init__(
        self,
        settings: McpSettings,
        listed: Callable[[Sequence[Described]], Awaitable[None]],
        *,
        environ: Mapping[str, str],
        base: Path,
        silence_s: float,
        backoff: Backoff | None = None,
    ) -> None:
        _quiet()
        self.name = settings.shown
        self._again = "reconnected" if settings.command is None else "restarted"
        self._settings = settings
        self._tell = listed
        self._environ = environ
        self._base = base
        self._silence_s = silence_s
        self._backoff = backoff or Backoff()
        self._wording = Wording(settings.secrets(environ))
        self.keys = settings.keys(environ)
        self._connection: Connection | None = None
        self._first: asyncio.Future[str | None] | None = None
        self._owner: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[CallToolResult]] = set()
        self._closing = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process that is connected now, if there is one."""
        return None if self._connection is None else self._connection.pid

    async def open(self) -> str | None:
        """Begin. Returns when the tools were listed for the first time; or what went wrong, after one attempt."""
        self._first = asyncio.get_running_loop().create_future()
        self._owner = asyncio.create_task(self._keep(), name=f"mcp {self.name}")
        return await asyncio.shield(self._first)

    async def aclose(self) -> None:
        """End calls, connection and process."""
        self._closing.set()
        if self._connection is not None:
            self._connection.end()
        for call in self._calls:
            call.cancel()
        if self._owner is not None:
            await asyncio.wait((self._owner,), timeout=_CLOSE_S)
            self._owner.cancel()
            await asyncio.gather(self._owner, *self._calls, return_exceptions=True)

    async def call(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        """Call a tool by the server's own name for it. Raises `CallError`. Cancelling tells the server."""
        connection = self._connection
        client = connection.client if connection is not None else None
        if connection is None or client is None:
            raise CallError("tool_error", f"the MCP server {self.name} is being {self._again}; try again later")
        work: asyncio.Task[CallToolResult] | None = None
        try:
            async with asyncio.timeout(self._silence_s) as silence:
                connection.pace.credit(1)
                work = asyncio.create_task(
                    client.call_tool(tool, arguments, progress_callback=self._progress(tool, silence)),
                    name=f"mcp {self.name} {tool}",
                )
                self._calls.add(work)
                work.add_done_callback(self._call_ended)
                await asyncio.wait((work,))
        except TimeoutError:
            said = f"the MCP server {self.name} sent nothing about the call for {self._silence_s:g} s"
            raise CallError("timeout", said) from None
        finally:
            if work is not None:
                work.cancel()  # the SDK then tells the server; nobody waits for that
        if work.cancelled():
            raise CallError("cancelled", f"the MCP server {self.name} is being closed")
        error = work.exception()
        if error is not None:
            raise self._call_error(error, connection) from None
        return work.result()

    def _progress(self, tool: str, silence: asyncio.Timeout) -> Any:
        loop = asyncio.get_running_loop()

        async def progress(done: float, total: float | None, message: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the call has ended meanwhile
                silence.reschedule(loop.time() + self._silence_s)
            of = "" if total is None else f" of {total:g}"
            said = self._wording.line(message or "")
            logger.debug("MCP server %s: %s: progress %g%s %s", self.name, tool, done, of, said)

        return progress

    def _call_error(self, error: BaseException, connection: Connection) -> CallError:
        if isinstance(error, MCPError) and error.message == _SESSION_GONE:
            connection.lose()
        if isinstance(error, MCPError) and error.message in (_SESSION_GONE, _CLOSED):
            said = f"the MCP server {self.name} was gone before it answered; it is being {self._again}"
        elif isinstance(error, ValidationError):
            said = f"the MCP server {self.name} answered with what is no tool result"
        else:
            said = f"the MCP server {self.name}: {self._wording.error(error)}"
        return CallError("tool_error", said)

    def _call_ended(self, work: asyncio.Task[CallToolResult]) -> None:
        self._calls.discard(work)
        if not work.cancelled():
            work.exception()  # nobody else may ask for it

    # ------------------------------------------------------------------ the owner's

    async def _keep(self) -> None:
        assert self._first is not None
        loop = asyncio.get_running_loop()
        try:
            while not self._closing.is_set():
                up_since: float | None = None

                async def listed(tools: Sequence[Described]) -> None:
                    nonlocal up_since
                    up_since = up_since or loop.time()
                    await self._tell(tools)
                    self._settle(None)

                problem = await self._connect(listed)
                if self._closing.is_set():
                    return
                wait_s = self._backoff.after(0.0 if up_since is None else loop.time() - up_since)
                if not self._first.done() and self._settings.required:
                    self._settle(problem)
                    return  # whoever asked says it, and doesn't go on without this server
                logger.warning("MCP server %s: %s; trying again in %.1f s", self.name, problem, wait_s)
                self._settle(problem)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._closing.wait()
        finally:
            self._settle("it was closed")

    async def _connect(self, listed: Callable[[Sequence[Described]], Awaitable[None]]) -> str:
        settings = self._settings
        try:
            transport = (
                HttpServer(settings, self._environ)
                if settings.command is None
                else StdioServer(settings, self._environ, self._base)
            )
        except RuntimeError:
            return "it can't be started: there is no such home folder as that of cwd"
        self._connection = Connection(
            self.name, transport, listed, self._wording, start_timeout_s=settings.start_timeout_s
        )
        try:
            return await self._connection.run()
        finally:
            self._connection = None

    def _settle(self, problem: str | None) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(problem)


def _quiet() -> None:
    """The SDK's own log lines quote messages, with arguments, results and session ids; what matters is said here."""
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    session = logging.getLogger("client")
    if _not_the_session not in session.filters:
        session.addFilter(_not_the_session)


def _not_the_session(record: logging.LogRecord) -> bool:
    return record.module != "session"
