"""The proxy in a test: the real application on a real socket, configured by TOML, asked by real clients."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
from aiohttp import web

from asynclm.adapters.tools.python import PythonTool
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.proxy.config import load
from asynclm.proxy.server import SERVER, Server, make_app


class Proxy:
    """A proxy that is up."""

    def __init__(self, url: str, server: Server, toolbox: Toolbox) -> None:
        self.url = url  # ends in /v1
        self.server = server
        self.toolbox = toolbox
        self.clients: list[openai.AsyncOpenAI] = []

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        """An official client, closed with the proxy."""
        client = openai.AsyncOpenAI(base_url=self.url, api_key="sk-client-key", max_retries=0, **options)
        self.clients.append(client)
        return client


@contextlib.asynccontextmanager
async def proxy_for(
    upstream: str | None,
    *tools: Callable[..., Any],
    toml: str = "",
    kind: str = "openai",
    environ: dict[str, str] | None = None,
) -> AsyncIterator[Proxy]:
    """A proxy in front of `upstream` with these functions as tools. `toml` is put behind the upstream's own table."""
    with tempfile.TemporaryDirectory() as temporary:
        address = "" if upstream is None else f'base_url = "{upstream}"\n'
        path = Path(temporary) / "asynclm.toml"
        path.write_text(f'[upstreams.main]\nkind = "{kind}"\n{address}{toml}')
        config = load(path, environ or {}, Path(temporary))
        toolbox = Toolbox([PythonTool(tool) for tool in tools])
        app = make_app(config, toolbox, environ or {})
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        proxy = Proxy(f"http://{host}:{port}/v1", app[SERVER], toolbox)
        try:
            yield proxy
        finally:
            for client in proxy.clients:
                await client.close()
            await runner.cleanup()


async def answer_of(stream: Any) -> tuple[str, str | None]:
    """Text and finish reason of a streamed answer."""
    text, reason = "", None
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason
