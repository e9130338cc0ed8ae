"""Cached results in real runs: the official client, proxies over HTTP, the simulated model."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from caching import Counter, Proxy
from harness import Proxy as HttpProxy
from harness import proxy_for
from redis_server import RedisServer

from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.adapters.stores import Store, connect
from asynclm.adapters.tools import tool

FAST = "ttft_ms = 0\ntpot_ms = 0\n"
ONE = "How many? " + encode_task(Task((Node("a", 'stock(article="A-1")'),), answer="In stock:"))


def on(server: RedisServer) -> str:
    return f'{FAST}[store]\nurl = "{server.url}"\ntimeout_s = 5.0\n'


def counted(runs: list[str], held: asyncio.Event | None = None, **declared: Any) -> Callable[..., Any]:
    @tool(effect="read_only", cache_s=60, **declared)
    async def stock(article: str) -> int:
        """How many of an article there are."""
        runs.append(article)
        if held is not None:
            await held.wait()
        return 17

    return stock


async def ask(proxy: HttpProxy, stream: bool = False) -> Any:
    client = proxy.clients[0] if proxy.clients else proxy.client()
    return await client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": ONE}],
        stream=stream,
        stream_options={"include_usage": True} if stream else None,
    )  # type: ignore[call-overload]


def results_of(proxy: HttpProxy, id: str) -> list[dict[str, Any]]:
    timeline = proxy.server.registry.timeline(id)
    assert timeline is not None
    return [entry.data for entry in timeline.entries if entry.kind == "result"]


async def test_a_hit_is_told_and_counted(fresh_redis: RedisServer) -> None:
    runs: list[str] = []
    async with (
        proxy_for(None, counted(runs), kind="simulated", toml=on(fresh_redis)) as first,
        proxy_for(None, counted(runs), kind="simulated", toml=on(fresh_redis)) as second,
    ):
        for proxy, how in ((first, "miss"), (second, "hit")):
            answer = await ask(proxy)
            assert answer.choices[0].message.content == "In stock:\na = 17"
            facts = answer.usage.asynclm
            assert facts["cache"] == {how: 1}
            (result,) = results_of(proxy, facts["run"])
            assert (result["cache"], result["value"]) == (how, "17")
            assert (result["ms"] == 0.0) == (how == "hit")
        last = [chunk async for chunk in await ask(second, stream=True)][-1]
        assert last.usage.asynclm["cache"] == {"hit": 1}
    assert runs == ["A-1"]


async def test_runs_without_such_tools_say_nothing_of_it(fresh_redis: RedisServer) -> None:
    async def stock(article: str) -> int:
        """How many of an article there are."""
        return 17

    async with proxy_for(None, stock, kind="simulated", toml=on(fresh_redis)) as proxy:
        answer = await ask(proxy)
        assert "cache" not in answer.usage.asynclm
        (result,) = results_of(proxy, answer.usage.asynclm["run"])
        assert "cache" not in result
    assert fresh_redis.client().keys("asynclm:cache:*") == [b"asynclm:cache:secret"]


@pytest.mark.parametrize("kind", ["file", "redis"])
async def test_two_hundred_runs_on_two_proxies_make_the_call_once(
    kind: str, fresh_redis: RedisServer, tmp_path: Path
) -> None:
    runs: list[str] = []
    held = asyncio.Event()
    toml = on(fresh_redis) if kind == "redis" else f'{FAST}[store]\npath = "{tmp_path / "store.db"}"\ntimeout_s = 5.0\n'
    async with (
        proxy_for(None, counted(runs, held), kind="simulated", toml=toml) as first,
        proxy_for(None, counted(runs, held), kind="simulated", toml=toml) as second,
    ):
        proxies = (first, second)
        asked = [asyncio.create_task(ask(proxies[n % 2])) for n in range(200)]
        while sum(len(each.server.registry.live()) for each in proxies) < 200:
            await asyncio.sleep(0.01)
        while any(len(flight.waiting) < 100 for each in proxies for flight in each.server.cache._flights.values()):
            await asyncio.sleep(0.01)
        held.set()
        answers = await asyncio.gather(*asked)
    assert runs == ["A-1"]
    assert {answer.choices[0].message.content for answer in answers} == {"In stock:\na = 17"}
    served = [next(iter(answer.usage.asynclm["cache"])) for answer in answers]
    assert served.count("miss") == 1
    assert served.count("coalesced") >= 99  # the other proxy's too, unless it looked only when all was done
    assert set(served) <= {"miss", "coalesced", "hit"}


async def test_customers_get_their_own(fresh_redis: RedisServer) -> None:
    runs: list[str] = []
    stock = counted(runs, cache_scope="header:x-tenant")
    async with proxy_for(None, stock, kind="simulated", toml=on(fresh_redis)) as proxy:
        for tenant in ("a", "b", "a", "b"):
            await proxy.client(default_headers={"x-tenant": tenant}).chat.completions.create(
                model="m", messages=[{"role": "user", "content": ONE}]
            )
    assert len(runs) == 2
    stock = counted(runs, cache_scope="client")
    async with proxy_for(None, stock, kind="simulated", toml=on(fresh_redis)) as proxy:
        for _ in range(2):
            await ask(proxy)
            await (
                proxy.client()
                .with_options(api_key="sk-other")
                .chat.completions.create(model="m", messages=[{"role": "user", "content": ONE}])
            )
    assert len(runs) == 4
    assert b"sk-" not in b"".join(fresh_redis.client().keys())


async def test_a_server_that_is_down_takes_no_run_down(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[str] = []
    toml = f'{FAST}[store]\nurl = "redis://:hunter2@127.0.0.1:1/0"\n'
    async with proxy_for(None, counted(runs), kind="simulated", toml=toml) as proxy:
        answers = await asyncio.gather(*(ask(proxy) for _ in range(5)))
        assert {answer.choices[0].message.content for answer in answers} == {"In stock:\na = 17"}
    assert caplog.text.count("runs go on without it") == 1
    assert "hunter2" not in caplog.text


async def test_a_proxy_that_is_killed(fresh_redis: RedisServer) -> None:
    """Another process holds the call, and dies: its lease ends, and this one takes over."""
    code = f"""
        import asyncio, sys
        sys.path.insert(0, {str(Path(__file__).parents[2] / "support")!r})
        from caching import Counter, Proxy
        from asynclm.adapters.stores import Store, connect
        async def main():
            tool = Counter("slow", held=True)
            store = Store(connect({fresh_redis.url!r}, timeout_s=5), name="test", timeout_s=5)
            proxy = Proxy(store, (tool,), lease_s=0.5)
            call = proxy.start(tool, n=1)
            await tool.began.wait()
            print("runs", flush=True)
            await call
        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(code), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"runs\n"
    tool = Counter("slow")
    proxy = Proxy(Store(connect(fresh_redis.url, timeout_s=5), name="test", timeout_s=5), (tool,), lease_s=0.5)
    call = proxy.start(tool, n=1)
    done, _ = await asyncio.wait((call,), timeout=1.5)  # three leases: it is alive, and renews
    assert not done
    assert tool.runs == 0
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    result = await call
    assert (result.ok, result.cache, tool.runs) == (True, "miss", 1)
    await proxy.close()
