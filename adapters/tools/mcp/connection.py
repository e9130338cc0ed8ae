"""One connection to an MCP server, from its start to its end.

The SDK's contexts must be left by the task that entered them, so `run` is the whole life of a connection, in one task.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

import anyio
from mcp import Client, MCPError
from mcp.client._transport import TransportStreams
from mcp.client.session import IncomingMessage
from mcp.client.subscriptions import SubscriptionLost
from mcp_types import CONNECTION_CLOSED, CallToolResult, Implementation, ToolListChangedNotification
from mcp_types import Tool as Described
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from asynclm.adapters.tools.mcp.http import HttpServer
from asynclm.adapters.tools.mcp.pace import Pace
from asynclm.adapters.tools.mcp.reading import Reading, message_pace
from asynclm.adapters.tools.mcp.stdio import StdioServer
from asynclm.adapters.tools.mcp.wording import Wording

_MAX_TOOLS: Final = 1000
_MAX_PAGES: Final = 100
_LEAVE_S: Final = 2.0  # for saying goodbye over HTTP; the end of a process bounds itself
_LISTEN_AGAIN_S: Final = 5.0

logger = logging.getLogger(__name__)


class Connection:
    """A connection over a transport that is not open yet.

    `listed` gets the server's tools when they were listed first, and whenever they changed.
    """

    def __init__(
        self,
        name: str,
        transport: StdioServer | HttpServer,
        listed: Callable[[Sequence[Described]], Awaitable[None]],
        wording: Wording,
        *,
        start_timeout_s: float,
    ) -> None:
        self._client: Client | None = None
        self.pace = message_pace()
        self._name = name
        self._transport = transport
        self._listed = listed
        self._wording = wording
        self._start_timeout_s = start_timeout_s
        self._scope = anyio.CancelScope()
        self._wake = asyncio.Event()
        self._ending = False  # there is nothing more to come, or it isn't wanted
        self._lost = False
        self._why_lost = ""
        self._stale = False
        self._junk = ""

    @property
    def client(self) -> Client | None:
        """For calls; None while there can be none."""
        return None if self._lost or self._ending else self._client

    @property
    def pid(self) -> int | None:
        """The server's process, if it has one."""
        return self._transport.pid

    def end(self) -> None:
        """Let `run` leave."""
        self._ending = True
        if self._client is None:
            self._scope.cancel()  # still connecting, or leaving already
        self._wake.set()

    async def run(self) -> str:
        """Connect, list, stay until the server is gone or `end` was called. Returns, in words, how it ended."""
        problem = "it was closed"
        self._scope.deadline = anyio.current_time() + self._start_timeout_s
        connected = False
        try:
            with self._scope:
                info = Implementation(name="asynclm", version=importlib.metadata.version("asynclm"))
                async with Client(self._streams(), cache=None, message_handler=self._heard, client_info=info) as client:
                    client.session.validate_tool_result = _as_it_is  # type: ignore[method-assign]
                    await self._listed(await self._list(client))
                    connected = True
                    self._scope.deadline = math.inf
                    self._client = client
                    try:
                        await self._stay(client)
                    finally:
                        self._client = None
                        self._scope.deadline = anyio.current_time() + _LEAVE_S
        except Exception as error:
            problem = self._wording.error(error)
        if self._lost:
            problem = self._why_lost or self._transport.ended() or problem
        elif self._scope.cancelled_caught and not connected and not self._ending:
            problem = f"it did not answer within {self._start_timeout_s:g} s"
        return self._with_output(problem)

    def _with_output(self, problem: str) -> str:
        if self._junk:
            problem += f"; it sent {self._junk}"
        if said := self._wording.end(self._transport.stderr):
            problem += f"; the end of its error output: {said}"
        return problem

    @contextlib.asynccontextmanager
    async def _streams(self) -> AsyncIterator[TransportStreams]:
        async with self._transport.connect() as (read, write):
            yield (
                Reading(read, self.pace, flooded=self._flooded, junk=self._junk_came, ended=self._ended),
                write,
            )

    async def _list(self, client: Client) -> list[Described]:
        if client.server_capabilities.tools is None:
            logger.warning("MCP server %s offers no tools", self._name)
            return []
        tools: list[Described] = []
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if cursor is None or len(tools) > _MAX_TOOLS:
                break
        if cursor is not None or len(tools) > _MAX_TOOLS:
            logger.warning("MCP server %s lists too many tools; only the first %d are used", self._name, _MAX_TOOLS)
        return tools[:_MAX_TOOLS]

    async def _stay(self, client: Client) -> None:
        async with anyio.create_task_group() as tasks:
            tools = client.server_capabilities.tools
            if tools is not None and tools.list_changed and client.protocol_version in MODERN_PROTOCOL_VERSIONS:
                tasks.start_soon(self._listen, client)
            pace = Pace(1, 3)  # a server may change its tools as often as it likes; it is asked once a second
            while not (self._ending or self._lost):
                await self._wake.wait()
                self._wake.clear()
                if self._stale and not (self._ending or self._lost):
                    self._stale = False
                    await self._relist(client)
                    await pace.spend(1)
            if self._lost:
                await self._transport.settled()
            tasks.cancel_scope.cancel()

    async def _relist(self, client: Client) -> None:
        try:
            with anyio.fail_after(self._start_timeout_s):
                await self._listed(await self._list(client))
        except (MCPError, ValidationError, TimeoutError) as error:
            if not self._lost:
                said = self._wording.error(error)
                logger.warning("MCP server %s: its tools have changed, but can't be listed: %s", self._name, said)

    async def _listen(self, client: Client) -> None:
        """Hear of changes, from servers of the protocol of 2026; older ones tell unasked."""
        while True:
            try:
                async with client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        self._changed()
            except MCPError as error:
                if error.code != CONNECTION_CLOSED:
                    return  # it doesn't do that
            except SubscriptionLost:
                pass
            await asyncio.sleep(_LISTEN_AGAIN_S)
            self._changed()  # what happened meanwhile was not told

    # ------------------------------------------------------------------ what the server does

    async def _heard(self, message: IncomingMessage) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._changed()

    def _changed(self) -> None:
        self._stale = True
        self._wake.set()

    def _ended(self) -> None:
        self._lost = True
        self._wake.set()

    def lose(self) -> None:
        """The server doesn't know this connection any more."""
        self._why_lost = "it has forgotten the session"
        self._ended()

    def _flooded(self) -> None:
        logger.warning("MCP server %s sends too many messages, and is read more slowly from now on", self._name)

    def _junk_came(self, error: Exception) -> None:
        if not self._junk:
            self._junk = self._wording.error(error)
            logger.warning(
                "MCP server %s sent %s (it is ignored, and so is all that follows of the kind)", self._name, self._junk
            )


async def _as_it_is(name: str, result: CallToolResult) -> None:
    """In place of the SDK's check of structured results: on large ones, or with a pattern like `(a+)+$` in the schema,
    it would hold up every run; and whatever comes, the model reads it.
    """
