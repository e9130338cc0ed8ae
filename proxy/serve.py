"""`asynclm serve`: the proxy as a process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from asynclm.adapters.tools.options import Options
from asynclm.adapters.tools.python import load as load_python
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.proxy.config import Config, load
from asynclm.proxy.config_error import ConfigError
from asynclm.proxy.server import SERVER, make_app

_BACKLOG: Final = 2048
_CLOSE_S: Final = 5.0  # what pass-through requests get to end after the grace time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `asynclm serve`."""
    parser.add_argument(
        "--config", type=Path, help="the config file (default: asynclm.toml in this folder, if it exists)"
    )
    parser.add_argument("--host", help="address to listen on, over the config's")
    parser.add_argument("--port", type=int, help="port to listen on, over the config's; 0 takes a free one")
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status: 2 for a bad config, 1 if the address can't be used."""
    logging.basicConfig(level=args.log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    _keep_secrets()
    environ = dict(os.environ)
    if args.host is not None:
        environ["ASYNCLM_SERVER_HOST"] = args.host
    if args.port is not None:
        environ["ASYNCLM_SERVER_PORT"] = str(args.port)
    try:
        config = load(args.config, environ, Path.cwd())
        toolbox = load_toolbox(config)
    except (ConfigError, ValueError) as error:
        print(f"asynclm: {error}", file=sys.stderr)
        return 2
    for warning in config.warnings:
        print(f"asynclm: warning: {warning}", file=sys.stderr)
    try:
        import uvloop
    except ImportError:  # not on Windows
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with runner, contextlib.suppress(KeyboardInterrupt):
        return runner.run(serve(config, toolbox))
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


def load_toolbox(config: Config) -> Toolbox:
    """The tools that the config names. Raises ValueError, one line that names the tool."""
    tools = []
    for entry in config.tools:
        assert entry.python is not None, "the config has checked that each entry has a source"
        options = Options(**{field: getattr(entry, field) for field in Options.__struct_fields__})
        tools.append(load_python(entry.python, config.base, options))
    return Toolbox(tools)


async def serve(config: Config, toolbox: Toolbox) -> int:
    """Serve in the running loop until told to stop; open runs get the grace time, then an error event."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = make_app(config, toolbox)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_CLOSE_S)
    await runner.setup()
    site = web.TCPSite(runner, config.server.host, config.server.port, backlog=_BACKLOG)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        where = f"{config.server.host}:{config.server.port}"
        print(f"asynclm: can't listen on {where}: {os.strerror(error.errno or 0)}", file=sys.stderr)
        return 1
    print(f"asynclm: listening on {_address(runner)}", flush=True)
    await stop.wait()
    await site.stop()
    await app[SERVER].drain()
    await runner.cleanup()
    return 0


def _address(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
