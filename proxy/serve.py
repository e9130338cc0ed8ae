"""`asynclm serve`: the proxy as a process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from asynclm.adapters.models.local.settings import EMBEDDED
from asynclm.adapters.models.protocol import LoadError
from asynclm.adapters.port import port
from asynclm.adapters.tools.options import ToolDefinitionError
from asynclm.adapters.tools.sources import Sources
from asynclm.proxy.config import Config, load
from asynclm.proxy.config_error import ConfigError
from asynclm.proxy.server import SERVER, Server, make_app
from asynclm.proxy.tool_sources import load_sources

_GC_THRESHOLD: Final = (20_000, 20, 50)
_BACKLOG: Final = 2048
_CLOSE_S: Final = 5.0  # what pass-through requests get to end after the grace time
_HURRY_S: Final = 2.0  # what open runs get to end when told to stop a second time
_EXIT_S: Final = 1.0  # what the tools' threads get to end by themselves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `asynclm serve`."""
    parser.add_argument(
        "--config", type=Path, help="the config file (default: asynclm.toml in this folder, if it exists)"
    )
    parser.add_argument("--host", help="address to listen on, over the config's")
    parser.add_argument("--port", type=port, help="port to listen on, over the config's; 0 takes a free one")
    parser.add_argument(
        "--local",
        nargs="?",
        const=EMBEDDED,
        metavar="MODEL",
        help="run a model in this process, without upstreams in the config: a name on the hub, a folder, a GGUF file; "
        "without one, the embedded model",
    )
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status: 2 for a bad config, 1 if the address can't be used.

    The process ends soon after, whatever threads the tools' modules have started.
    """
    end = _End()
    status = _run(args, end)
    end.loop_closed = True
    end.due(status)
    return status


class _End:
    """Ends the process where threads would keep it: Python waits at its end for every one that is no daemon.

    Most belong to pools that end when the interpreter tells them to, so they are given the time for that.
    """

    def __init__(self) -> None:
        self.loop_closed = False
        self._before = {threading.main_thread(), *threading.enumerate()}
        self._watching = False

    def due(self, status: int) -> None:
        """The work is done, and this is the exit status."""
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch, args=(status,), name="asynclm end", daemon=True).start()

    def _watch(self, status: int) -> None:
        time.sleep(_EXIT_S)
        left = [thread for thread in threading.enumerate() if not thread.daemon and thread not in self._before]
        if not left and self.loop_closed:
            return  # whatever still goes on is the interpreter's own end
        what = f"threads of tools ({', '.join(sorted(thread.name for thread in left))})" if left else "tasks of tools"
        with contextlib.suppress(OSError, ValueError):  # closed by whoever read it
            print(f"asynclm: warning: {what} don't end and are left behind", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)


def _run(args: argparse.Namespace, end: _End) -> int:
    logging.basicConfig(level=args.log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    _keep_secrets()
    environ = dict(os.environ)
    if args.host is not None:
        environ["ASYNCLM_SERVER_HOST"] = args.host
    if args.port is not None:
        environ["ASYNCLM_SERVER_PORT"] = str(args.port)
    try:
        config = load(args.config, environ, Path.cwd(), local=args.local)
        sources = load_sources(config)
    except (ConfigError, ValueError) as error:
        print(f"asynclm: {error}", file=sys.stderr)
        return 2
    try:
        import uvloop
    except ImportError:  # not on Windows
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with runner, contextlib.suppress(KeyboardInterrupt):
        status = runner.run(serve(config, sources))
        end.due(status)  # closing the loop waits for threads and tasks, too
        return status
    return 130


def _keep_secrets() -> None:
    """Libraries log headers and bodies when they are asked to log much, or handed a request that is no HTTP."""
    for name in ("anthropic", "openai", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").addFilter(_without_request)


def _without_request(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.exc_info = None
        record.msg, record.args = "a request that is not proper HTTP was refused (%s)", (type(error).__name__,)
    return True


async def serve(config: Config, sources: Sources) -> int:
    """Open the tools and serve in the running loop until told to stop; open runs get the grace time, then an error
    event. Told a second time, the rest of the grace time is skipped.
    """
    stop, stop_now = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (stop_now if stop.is_set() else stop).set())
    try:
        if not await _done(sources.open(), stop):
            return 0
        return await _listen(config, sources, stop, stop_now)
    except (ToolDefinitionError, LoadError) as error:
        print(f"asynclm: {error}", file=sys.stderr)
        return 2
    finally:
        await sources.aclose()


async def _done(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Whether what has to be done before serving was, before somebody said stop."""
    opening = asyncio.create_task(work)
    told = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((opening, told), return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            return False
        opening.result()
        return True
    finally:
        told.cancel()
        opening.cancel()
        await asyncio.gather(told, opening, return_exceptions=True)


async def _listen(config: Config, sources: Sources, stop: asyncio.Event, stop_now: asyncio.Event) -> int:
    for warning in config.warnings:
        print(f"asynclm: warning: {warning}", file=sys.stderr)
    # What is loaded now stays; and a stream makes many small objects that live as long as it does, which full
    # collections at Python's default pace would look through again and again (a tenth of the time of a busy proxy).
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLD)
    app = make_app(config, sources.toolbox)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_CLOSE_S)
    await runner.setup()
    server = app[SERVER]
    try:
        if not await _done(server.prepare(), stop):
            await runner.cleanup()
            return 0
    except LoadError:
        await runner.cleanup()
        raise
    site = web.TCPSite(runner, config.server.host, config.server.port, backlog=_BACKLOG)
    try:
        await site.start()
    except (OSError, UnicodeError) as error:  # the latter for a host that can't be a name
        await runner.cleanup()
        where = f"{config.server.host}:{config.server.port}"
        print(f"asynclm: can't listen on {where}: {_reason(error)}", file=sys.stderr)
        return 1
    print(f"asynclm: listening on {_address(runner)}", flush=True)
    await stop.wait()
    await site.stop()
    await _drain(app[SERVER], stop_now)
    await runner.cleanup()
    return 0


async def _drain(server: Server, stop_now: asyncio.Event) -> None:
    draining = asyncio.create_task(server.drain())
    told = asyncio.create_task(stop_now.wait())
    await asyncio.wait((draining, told), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        server.abandon()
        await server.executor.aclose()
        await asyncio.wait((draining,), timeout=_HURRY_S)
        draining.cancel()
    told.cancel()
    await asyncio.wait((draining, told))
    if not draining.cancelled():
        draining.result()


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)  # asyncio's own text would say the address again
    return getattr(error, "strerror", None) or str(error)


def _address(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
