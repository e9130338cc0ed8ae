"""Servers on loopback, started and ended: the simulated model in a process of its own, and a proxy in this one."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import aiohttp
import msgspec
from aiohttp import web

from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.timeline import Timeline
from asynclm.proxy.config import Config
from asynclm.proxy.server import make_app

_START_S = 30.0  # an interpreter on a busy machine
_STOP_S = 5.0


class LoopbackError(Exception):
    """What runs on these servers can't go on; the message is one line."""


@contextlib.asynccontextmanager
async def proxy(config: Config, toolbox: Toolbox) -> AsyncIterator[str]:
    """A proxy with these tools; gives its base URL."""
    runner = web.AppRunner(make_app(config, toolbox), access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def simulated_upstream(ttft_ms: float, tpot_ms: float) -> AsyncIterator[str]:
    """The simulated model in a process of its own; gives its base URL. Raises `LoopbackError` if it doesn't start."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "asynclm.adapters.models.simulated", "--port", "0"),
        *("--ttft-ms", str(ttft_ms), "--tpot-ms", str(tpot_ms)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None  # a pipe was asked for
        try:
            async with asyncio.timeout(_START_S):
                line = (await process.stdout.readline()).decode()
        except TimeoutError:
            line = ""
        if "http://" not in line:
            raise LoopbackError("the simulated model did not start")
        yield line.split()[-1]
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def timeline_of(url: str, run: str) -> Timeline:
    """A run's timeline, from the proxy at that base URL. Raises `aiohttp.ClientError`."""
    async with (
        aiohttp.ClientSession(raise_for_status=True) as session,
        session.get(f"{url}/asynclm/runs/{run}") as response,
    ):
        return msgspec.json.decode(await response.read(), type=Timeline)


def first_of(errors: BaseExceptionGroup[Exception]) -> str:
    """The first error of a group, in one line."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
