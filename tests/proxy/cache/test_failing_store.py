"""No run depends on the store: calls go on, at their own speed, whatever happens to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from caching import Counter, Proxy
from redis_server import RedisServer, redis_server

from asynclm.adapters.stores import Store, connect
from asynclm.proxy.cache import Caller


@pytest.fixture(scope="module")
def own() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def tool() -> Counter:
    return Counter(held=True)


@pytest.fixture
async def proxy(own: RedisServer, tool: Counter) -> AsyncIterator[Proxy]:
    own.client().flushall()
    store = Store(connect(own.url, timeout_s=0.2), name="test", timeout_s=0.2, open_s=0.05)
    proxy = Proxy(store, (tool,))
    yield proxy
    await proxy.close()


async def behind(proxy: Proxy) -> None:
    while proxy.cache._flights:
        await asyncio.sleep(0.001)


async def hits_again(proxy: Proxy, tool: Counter) -> None:
    tool.go.set()
    while (await proxy.call(tool, a="again")).cache != "hit":
        await asyncio.sleep(0.005)


async def test_restarted_while_a_call_runs(own: RedisServer, proxy: Proxy, tool: Counter) -> None:
    calls = [proxy.start(tool, a=1) for _ in range(10)]
    await tool.began.wait()
    await asyncio.to_thread(own.kill)
    tool.go.set()
    results = await asyncio.gather(*calls)
    assert {result.value for result in results} == {"1"}
    assert (await proxy.call(tool, a=1)).ok
    assert (await proxy.call(tool, a=2)).ok
    await asyncio.to_thread(own.start)
    await hits_again(proxy, tool)


async def test_one_that_answers_in_five_seconds(own: RedisServer, proxy: Proxy, tool: Counter) -> None:
    tool.go.set()
    await proxy.call(tool, a="known")
    await behind(proxy)
    with own.frozen():
        results = await asyncio.gather(*(proxy.call(tool, a=n % 50) for n in range(200)))
        assert all(result.ok for result in results)
        assert tool.runs == 51  # the same call still runs once here
        scoped = Counter("scoped", cache_s=5, cache_scope="client")
        other = Proxy(proxy.store, (scoped,))
        assert (await other.call(scoped, Caller("sk"))).ok
        await behind(proxy)
    await hits_again(proxy, tool)


async def test_the_result_does_not_wait_for_the_store(own: RedisServer, tool: Counter) -> None:
    store = Store(connect(own.url, timeout_s=600), name="test", timeout_s=600)
    proxy = Proxy(store, (tool,))
    call = proxy.start(tool, a="late")
    await tool.began.wait()
    with own.frozen():
        tool.go.set()
        assert (await call).value == "1"
        again = await proxy.call(tool, a="late")  # nor does who comes next
        assert (again.value, again.cache) == ("1", "hit")
    await behind(proxy)
    await proxy.close()


FULL = (["CONFIG SET", "maxmemory", "1"], ["CONFIG SET", "maxmemory", "0"])
READ_ONLY = (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"])


@pytest.mark.parametrize(("broken", "whole"), [FULL, READ_ONLY], ids=["out of memory", "read-only"])
async def test_one_that_takes_nothing(
    own: RedisServer, proxy: Proxy, tool: Counter, broken: list[str], whole: list[str]
) -> None:
    tool.go.set()
    assert (await proxy.call(tool, a="before")).cache == "miss"
    await behind(proxy)
    own.client().execute_command(*broken)
    try:
        assert [(await proxy.call(tool, a=1)).cache for _ in range(3)] == ["miss"] * 3
        assert (await proxy.call(tool, a="before")).cache == "hit"
    finally:
        own.client().execute_command(*whole)
    await hits_again(proxy, tool)


async def test_the_lock_goes_while_others_wait(own: RedisServer, tool: Counter) -> None:
    """A server that forgets all (restarted without a disk): the others run the call themselves."""
    own.client().flushall()
    proxies = [Proxy(Store(connect(own.url, timeout_s=1), name="test", timeout_s=1), (tool,)) for _ in range(2)]
    first = proxies[0].start(tool, a=1)
    await tool.began.wait()
    second = proxies[1].start(tool, a=1)
    await asyncio.sleep(0.05)
    own.client().flushall()
    while tool.runs < 2:
        await asyncio.sleep(0.005)
    tool.go.set()
    assert [json.loads(result.value) for result in await asyncio.gather(first, second)] == [1, 2]
    for proxy in proxies:
        await proxy.close()
