"""The whole proxy on a real, tiny model: its output is forced, its sequences, cache and injections are the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
from aiohttp import web
from tiny_model import tiny_folder

from asynclm.adapters.models.local.model import Loaded, LocalModel
from asynclm.adapters.models.local.settings import EngineSettings
from asynclm.adapters.models.simulated.forced import Forced
from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.adapters.models.transformers.load import LoadOptions, load
from asynclm.adapters.tools.python import PythonTool
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.timeline import Timeline
from asynclm.proxy.config import Config, Model, Upstream
from asynclm.proxy.server import SERVER, Server, make_app


def made(**options: Any) -> Loaded:
    loaded = load(LoadOptions(model=str(tiny_folder()), device="cpu", threads=1, **{"kv_tokens": 20_000, **options}))
    return Loaded(loaded.engine, loaded.vocabulary)


class Local:
    def __init__(self, url: str, server: Server, client: openai.AsyncOpenAI, loaded: Loaded) -> None:
        self.url = url
        self.server = server
        self.client = client
        self.loaded = loaded

    def task(self, *calls: Node, answer: str = "Done.") -> list[Any]:
        return [{"role": "user", "content": encode_task(Task(calls, answer=answer, quote=False))}]

    def timeline(self, response: Any) -> Timeline:
        found = self.server.registry.timeline(response.usage.asynclm["run"])
        assert found is not None
        return found


@asynccontextmanager
async def local(
    *tools: Callable[..., Any], settings: EngineSettings | None = None, forced: bool = True, **options: Any
) -> AsyncIterator[Local]:
    loaded = made(**options)
    model = LocalModel(lambda: loaded, settings, guide=(lambda *given: Forced(*given)) if forced else None)
    config = Config(upstreams={"main": Upstream(kind="transformers")}, models={"*": Model(upstream="main")})
    app = make_app(config, Toolbox([PythonTool(tool) for tool in tools]), {}, models={"main": model})
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        async with openai.AsyncOpenAI(base_url=url, api_key="sk-client", max_retries=0) as client:
            yield Local(url, app[SERVER], client, loaded)
    finally:
        await runner.cleanup()


def call(id: str, body: str, estimate_ms: float = 10.0, after: tuple[str, ...] = ()) -> Node:
    return Node(id, body, after, estimate_ms)


async def test_results_go_into_the_live_sequence() -> None:
    slow_may_return = asyncio.Event()

    async def slow(x: int) -> int:
        await slow_may_return.wait()
        return x

    async def fast(x: int) -> int:
        return 10 * x

    async def last(x: int) -> str:
        slow_may_return.set()
        return "é" * x

    async with local(slow, fast, last) as proxy:
        messages = proxy.task(
            call("a", "slow(x=3)", 500),
            call("b", "fast(x=4)"),
            call("c", "last(x=2)", after=("b",)),
            answer="That is it.",
        )
        response = await proxy.client.chat.completions.create(model="tiny", messages=messages)
        assert response.choices[0].message.content == "That is it."
        timeline = proxy.timeline(response)
        kinds = [entry.kind for entry in timeline.entries]
        assert kinds.count("opened") == 1  # one stream, whatever came in between
        assert kinds.count("interrupt") == 3
        assert [entry.data["ok"] for entry in timeline.entries if entry.kind == "result"] == [True] * 3
        told = "".join(entry.data["text"] for entry in timeline.entries if entry.kind == "interrupt")
        assert '"éé"' in told
        assert response.usage is not None
        assert response.usage.completion_tokens > 30
