"""The stdio transport: a server in a process of its own, JSON-RPC messages as lines on its pipes.

The SDK has one too. This one bounds what it holds (lines, the error output), pauses a server that writes too much,
notices a process that has ended although its children keep the pipes open, gives up on one that doesn't read, and
leaves no process of the server's group behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, SubprocessStreamProtocol
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client._transport import TransportStreams
from mcp.client.stdio import DEFAULT_INHERITED_ENV_VARS
from mcp.shared.message import SessionMessage
from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter

from asynclm.adapters.tools.mcp.lines import Lines, TooLong
from asynclm.adapters.tools.mcp.pace import Pace
from asynclm.adapters.tools.mcp.settings import McpSettings
from asynclm.adapters.tools.mcp.wording import JunkError

_CHUNK: Final = 16_384  # small, so that little of a flood stands before an answer
_BYTES_A_SECOND: Final = 32 * 2**20
_STDERR_KEPT: Final = 4096
_DRAIN_S: Final = 0.5  # what was written before the end gets to arrive, when a child keeps the pipe open
_STATUS_S: Final = 0.2
_UNREAD_S: Final = 30.0  # how long a server may leave what it is sent unread
_EXIT_S: Final = 2.0  # what a server gets to end by itself when its input is closed, and again after SIGTERM
_POLL_S: Final = 0.01

Incoming = SessionMessage | Exception


class StdioServer:
    """One process of a server, from start to end. `connect` may be used once."""

    def __init__(self, settings: McpSettings, environ: Mapping[str, str], base: Path) -> None:
        assert settings.command is not None
        self._command = [settings.command, *settings.args]
        self._environ = {
            **{name: environ[name] for name in DEFAULT_INHERITED_ENV_VARS if name in environ},
            **{name: environ[name] for name in settings.env_from if name in environ},
            **settings.env,
        }
        self._cwd = base / Path(settings.cwd or "").expanduser()
        self._max = settings.max_message_bytes
        self._stderr = b""
        self._exit = asyncio.Event()
        self._transport: asyncio.SubprocessTransport | None = None
        self._given_up: str | None = None
        self._closed: str | None = None
        self._stopped = False  # by this side, whatever its exit status says

    @property
    def stderr(self) -> str:
        """The end of what the process has written to its standard error."""
        return self._stderr.decode(errors="replace")

    @property
    def pid(self) -> int | None:
        """The process, once it was started."""
        return None if self._transport is None else self._transport.get_pid()

    def ended(self) -> str | None:
        """Why the connection ended, as far as this side knows: given up, the process's own end, a pipe's end."""
        return self._given_up or self._exited() or self._closed

    def _exited(self) -> str | None:
        code = None if self._transport is None else self._transport.get_returncode()
        if code is None or self._stopped:
            return None
        if code >= 0:
            return f"it ended with exit status {code}"
        with contextlib.suppress(ValueError):
            return f"it was killed by {signal.Signals(-code).name}"
        return f"it was killed by signal {-code}"

    async def settled(self) -> None:
        """A pipe's end is often seen before that of its process: wait for that a moment."""
        if not self._given_up:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_S):
                    await self._exit.wait()

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[TransportStreams]:
        """Start the process; its messages in and out. Raises OSError. Leaving ends it, and all of its group."""
        loop = asyncio.get_running_loop()
        # The protocol tells of the process's end itself, which asyncio's Process only does once its pipes are closed.
        transport, protocol = await loop.subprocess_exec(
            lambda: _Protocol(self._exit, loop),
            *self._command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=self._environ,
            cwd=self._cwd,
            start_new_session=True,
        )
        self._transport = transport
        process = asyncio.subprocess.Process(transport, protocol, loop)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        incoming, read = anyio.create_memory_object_stream[Incoming](0)
        write, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
        tasks = [
            asyncio.create_task(self._read(process.stdout, incoming), name="mcp stdout"),
            asyncio.create_task(self._write(process.stdin, outgoing, incoming), name="mcp stdin"),
            asyncio.create_task(self._keep_stderr(process.stderr), name="mcp stderr"),
            asyncio.create_task(self._watch(incoming), name="mcp exit"),
        ]
        try:
            yield read, write
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    read.close()
                    write.close()  # the writer flushes what it has, and closes the pipe
                    await asyncio.wait(tasks[1:2], timeout=_DRAIN_S)
                    tasks[0].cancel()
                    draining = asyncio.create_task(_discard(process.stdout))
                    await self._end(process)
                    tasks.append(draining)
            finally:
                _kill_group(transport.get_pid())
                for task in tasks:
                    task.cancel()
                transport.close()
                for stream in (incoming, outgoing):
                    stream.close()
                with anyio.CancelScope(shield=True):
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, pipe: asyncio.StreamReader, incoming: MemoryObjectSendStream[Incoming]) -> None:
        lines, pace = Lines(self._max), Pace(_BYTES_A_SECOND, 2 * self._max + _CHUNK)
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError), incoming:
            while data := await pipe.read(_CHUNK):
                await pace.spend(len(data))
                for line in lines.feed(data):
                    message = self._message(line)
                    if message is not None:
                        await incoming.send(message)
            self._closed = self._closed or "it closed its output"

    def _message(self, line: bytes | TooLong) -> Incoming | None:
        if isinstance(line, TooLong):
            what = f"a message of {line.size} bytes, more than max_message_bytes ({self._max})"
            id = line.answers()
            if id is None:
                return JunkError(what)
            error = ErrorData(code=INTERNAL_ERROR, message=f"the result is {what}")
            return SessionMessage(JSONRPCError(jsonrpc="2.0", id=id, error=error))
        if not line.strip():
            return None
        try:
            return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
        except ValueError:
            return JunkError(f"what is no JSON-RPC message: {line[:120].decode(errors='replace')!r}")

    async def _write(
        self,
        pipe: asyncio.StreamWriter,
        outgoing: MemoryObjectReceiveStream[SessionMessage],
        incoming: MemoryObjectSendStream[Incoming],
    ) -> None:
        try:
            async with outgoing:
                async for item in outgoing:
                    text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                    pipe.write(text.encode() + b"\n")
                    async with asyncio.timeout(_UNREAD_S):
                        await pipe.drain()
        except TimeoutError:
            self._given_up = f"it has read nothing for {_UNREAD_S:g} s"
            incoming.close()  # to the SDK this is the end of the connection
        except OSError:
            self._closed = self._closed or "it closed its input"
            incoming.close()
        finally:
            pipe.close()

    async def _keep_stderr(self, pipe: asyncio.StreamReader) -> None:
        pace = Pace(_BYTES_A_SECOND, _BYTES_A_SECOND)
        while data := await pipe.read(_CHUNK):
            self._stderr = (self._stderr + data)[-_STDERR_KEPT:]
            await pace.spend(len(data))

    async def _watch(self, incoming: MemoryObjectSendStream[Incoming]) -> None:
        await self._exit.wait()
        await asyncio.sleep(_DRAIN_S)
        incoming.close()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Wait for the process, then ask and at last force its whole group to end."""
        if await _within(_EXIT_S, lambda: process.returncode is not None) and not _group_alive(process.pid):
            return
        self._stopped = self._stopped or process.returncode is None
        _signal_group(process.pid, signal.SIGTERM)
        if not await _within(_EXIT_S, lambda: process.returncode is not None and not _group_alive(process.pid)):
            _kill_group(process.pid)
            await _within(_EXIT_S, lambda: process.returncode is not None)


class _Protocol(SubprocessStreamProtocol):
    def __init__(self, exit: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=_CHUNK, loop=loop)
        self._exit = exit

    def process_exited(self) -> None:
        self._exit.set()
        super().process_exited()


async def _discard(pipe: asyncio.StreamReader) -> None:
    # A server that is stuck writing can't see that its input was closed.
    while await pipe.read(_CHUNK):
        pass


async def _within(seconds: float, done: Callable[[], bool]) -> bool:
    deadline = asyncio.get_running_loop().time() + seconds
    while not done():
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def _group_alive(pid: int) -> bool:
    if sys.platform == "win32":
        return False
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.killpg(pid, 0)
        return True
    return False


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            os.kill(pid, signal.SIGTERM)
        else:
            os.killpg(pid, number)  # the leader's pid is the group's id: it was started with a session of its own


def _kill_group(pid: int) -> None:
    _signal_group(pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
