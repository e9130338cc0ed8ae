"""The cache before the executor, on both stores: what is kept, whom it serves, what runs once."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from caching import Counter, MakeProxy, Proxy

from asynclm.adapters.stores import Embedded, Store
from asynclm.cml.tools import Effect
from asynclm.proxy.cache import Caller
from asynclm.proxy.executor import Result


async def settled(proxy: Proxy) -> None:
    """Until all that goes on behind the answers is done."""
    while proxy.cache._flights:
        await asyncio.sleep(0.001)


def how(*results: Result) -> list[tuple[Any, str | None]]:
    return [(json.loads(result.value), result.cache) for result in results]


async def test_the_second_time_it_is_there(make: MakeProxy) -> None:
    tool = Counter()
    first, second = make(tool), make(tool)
    assert how(await first.call(tool, a=1)) == [(1, "miss")]
    await settled(first)
    hit = await second.call(tool, a=1)
    assert hit == Result(True, "1", 0.0, cache="hit")
    assert tool.runs == 1


async def test_types_of_arguments_count_and_the_order_of_keys_does_not(make: MakeProxy) -> None:
    tool = Counter()
    proxy = make(tool)
    different: list[Any] = [1, 1.0, "1", True, None, [1], {"a": 1}, {"a": 1.0}, 0.0, -0.0, "", 2**70, "é", "e\u0301"]
    for value in different:
        assert (await proxy.call(tool, a=value)).cache == "miss", value
        await settled(proxy)
    for value in different:
        assert (await proxy.call(tool, a=value)).cache == "hit", value
    assert (await proxy.call(tool, a={"x": 1, "y": [{"p": 1, "q": 2}]}, b=2)).cache == "miss"
    await settled(proxy)
    same = await proxy.executor.execute(tool.spec, {"b": 2, "a": {"y": [{"q": 2, "p": 1}], "x": 1}})
    assert same.cache == "hit"


async def test_another_schema_or_version_is_another_tool(make: MakeProxy) -> None:
    tool = Counter()
    schema = {"type": "object", "properties": {"a": {"type": "integer", "default": 3}}}
    for number, other in enumerate([tool, tool.with_spec(version="2"), tool.with_spec(parameters=schema)], 1):
        proxy = make(other)
        assert (await proxy.call(other, a=1)).cache == "miss", number
        await settled(proxy)
        assert (await proxy.call(other, a=1)).cache == "hit"
    described = tool.with_spec(description="Other words.", estimate_ms=5.0, timeout_s=9.0)
    assert (await make(described).call(described, a=1)).cache == "hit"


async def test_only_what_may_be_repeated_is_kept(make: MakeProxy, caplog: pytest.LogCaptureFixture) -> None:
    for spec in ({"effect": Effect.EFFECTFUL}, {"cache_s": None}, {"cache_s": 0}):
        tool = Counter(**spec)
        proxy = make(tool)
        assert how(await proxy.call(tool), await proxy.call(tool)) == [(1, None), (2, None)]
    assert [record.message for record in caplog.records] == [
        "tool count has cache_s but is effectful, so nothing is kept: declare its effect"
    ]
    idempotent = Counter(effect=Effect.IDEMPOTENT)
    proxy = make(idempotent)
    await proxy.call(idempotent)
    await settled(proxy)
    assert how(await proxy.call(idempotent)) == [(1, "hit")]


async def test_errors_are_not_kept_unless_the_tool_says_so(make: MakeProxy) -> None:
    tool = Counter()
    tool.fails = True
    proxy = make(tool)
    for _ in range(2):
        failed = await proxy.call(tool)
        assert (failed.ok, failed.cache) == (False, "miss")
        await settled(proxy)
    negative = Counter("negative", negative_s=30)
    negative.fails = True
    proxy = make(negative)
    first = await proxy.call(negative)
    await settled(proxy)
    second = await proxy.call(negative)
    assert (first.ok, second.ok, second.cache, second.value) == (False, False, "hit", first.value)
    assert negative.runs == 1


async def test_what_did_not_run_is_never_kept(make: MakeProxy) -> None:
    tool = Counter(negative_s=30, concurrency=1, held=True)
    proxy = make(tool, limits={"queue_timeout_s": 0.05})
    busy = proxy.start(tool, a=1)
    await tool.began.wait()
    refused = await proxy.call(tool, a=2)
    assert (refused.error, refused.ms) == ("timeout", 0)
    tool.go.set()
    await busy
    await settled(proxy)
    assert (await proxy.call(tool, a=2)).ok


async def test_a_large_result_is_not_kept(make: MakeProxy) -> None:
    tool = Counter(value="x" * 50_000_000)
    proxy = make(tool, max_bytes=1_000_000)
    for _ in range(2):
        result = await proxy.call(tool)
        assert (result.cache, json.loads(result.value)["truncated"]) == ("miss", True)
        await settled(proxy)
    assert tool.runs == 2
    tool = Counter("cut", value="x" * 100_000)
    proxy = make(tool, max_bytes=200_000)
    first = await proxy.call(tool)
    await settled(proxy)
    assert (await proxy.call(tool)).value == first.value
    assert tool.runs == 1


async def test_proxies_that_cut_otherwise_share_nothing(make: MakeProxy) -> None:
    tool = Counter(value="x" * 1000)
    short, long = (make(tool, shape=size, limits={"max_result_bytes": size}) for size in (500, 5000))
    await short.call(tool)
    await settled(short)
    result = await long.call(tool)
    assert (result.cache, json.loads(result.value)) == ("miss", "x" * 1000)


class TestScope:
    async def test_by_client(self, make: MakeProxy) -> None:
        tool = Counter(cache_scope="client")
        first, second = make(tool), make(tool)
        ann, bob = Caller("sk-ann"), Caller("sk-bob")
        assert how(await first.call(tool, ann)) == [(1, "miss")]
        assert how(await first.call(tool, bob)) == [(2, "miss")]
        await settled(first)
        assert how(await second.call(tool, ann), await second.call(tool, bob)) == [(1, "hit"), (2, "hit")]

    async def test_by_header(self, make: MakeProxy) -> None:
        tool = Counter(cache_scope="header:X-Tenant")
        proxy = make(tool)
        for n, tenant in enumerate(("a", "b"), 1):
            assert how(await proxy.call(tool, Caller("k", {"x-tenant": tenant}))) == [(n, "miss")]
        await settled(proxy)
        assert how(await proxy.call(tool, Caller("other", {"X-TENANT": "a"}))) == [(1, "hit")]

    @pytest.mark.parametrize("scope", ["client", "header:x-tenant"])
    async def test_who_cannot_be_told_apart_is_not_served(self, make: MakeProxy, scope: str) -> None:
        tool = Counter(cache_scope=scope)
        proxy = make(tool)
        nobody = Caller(None, {"x-tenant": ""})
        assert how(await proxy.call(tool, nobody), await proxy.call(tool, nobody)) == [(1, None), (2, None)]

    async def test_no_key_gets_into_the_store(self, make: MakeProxy, caplog: pytest.LogCaptureFixture) -> None:
        tool = Counter(cache_scope="client")
        proxy = make(tool)
        caller = Caller("sk-very-secret", {"authorization": "Bearer sk-very-secret"})
        await proxy.call(tool, caller)
        await settled(proxy)
        await proxy.cache.aclose()
        redis = proxy.store._redis
        kept = b""
        async for key in redis.scan_iter():
            value = await redis.get(key) if b":served:" not in key else b""
            kept += key + (value or b"")
        assert b"count" in kept
        assert b"secret" not in kept.replace(b"asynclm:cache:secret", b"")
        assert "sk-very" not in repr(caller) + caplog.text

    async def test_the_hash_has_a_key(self, make: MakeProxy) -> None:
        tool = Counter(cache_scope="client")
        first, second, third = (make(tool, secret=secret) for secret in (b"one", b"two", b"one"))
        await first.call(tool, Caller("sk"))
        await settled(first)
        assert how(await second.call(tool, Caller("sk")), await third.call(tool, Caller("sk"))) == [
            (2, "miss"),
            (1, "hit"),
        ]


class TestSingleFlight:
    async def test_two_hundred_at_once_run_it_once(self, make: MakeProxy) -> None:
        tool = Counter(held=True)
        proxy = make(tool)
        calls = [proxy.start(tool, a=1) for _ in range(200)]
        await tool.began.wait()
        tool.go.set()
        results = await asyncio.gather(*calls)
        assert tool.runs == 1
        assert [result.cache for result in results].count("miss") == 1
        assert [result.cache for result in results].count("coalesced") == 199
        assert {result.value for result in results} == {"1"}
        assert [result.ms for result in results].count(0.0) == 199

    async def test_over_two_proxies_too(self, make: MakeProxy) -> None:
        tool = Counter(held=True)
        proxies = [make(tool), make(tool)]
        calls = [proxies[n % 2].start(tool, a=1) for n in range(200)]
        await tool.began.wait()
        await asyncio.sleep(0.05)  # the other proxy has met the lock by now, or will
        tool.go.set()
        results = await asyncio.gather(*calls)
        assert tool.runs == 1
        assert [result.cache for result in results].count("miss") == 1
        assert {result.cache for result in results} == {"miss", "coalesced"}
        assert {result.value for result in results} == {"1"}

    async def test_an_error_is_shared_by_those_who_waited_and_by_nobody_else(self, make: MakeProxy) -> None:
        tool = Counter(held=True)
        tool.fails = True
        proxies = [make(tool), make(tool)]
        calls = [proxy.start(tool) for proxy in proxies for _ in range(3)]
        await tool.began.wait()
        await asyncio.sleep(0.05)
        tool.go.set()
        results = await asyncio.gather(*calls)
        assert (tool.runs, {result.error for result in results}) == (1, {"tool_error"})
        assert len({result.value for result in results}) == 1
        for proxy in proxies:
            await settled(proxy)
        assert "run 2" in (await proxies[1].call(tool)).value

    async def test_one_who_leaves_takes_nothing_from_the_others(self, make: MakeProxy) -> None:
        tool = Counter(held=True)
        proxy = make(tool)
        leader, other = proxy.start(tool), proxy.start(tool)
        await tool.began.wait()
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        tool.go.set()
        assert how(await other) == [(1, "coalesced")]

    async def test_the_call_is_cancelled_when_all_have_left(self, make: MakeProxy) -> None:
        tool = Counter(held=True)
        first, second = make(tool), make(tool)
        calls = [first.start(tool) for _ in range(3)]
        await tool.began.wait()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await settled(first)
        tool.go.set()
        # The lock was given back: nobody has to wait for it to end.
        assert how(await second.call(tool)) == [(2, "miss")]

    async def test_who_comes_right_after_the_last_has_left_starts_anew(self, make: MakeProxy) -> None:
        tool = Counter(held=True)
        proxy = make(tool)
        first = proxy.start(tool)
        await tool.began.wait()
        first.cancel()
        second = proxy.start(tool)
        tool.go.set()
        assert (await second).ok

    async def test_another_takes_over_from_one_that_died(self, make: MakeProxy) -> None:
        tool = Counter(held=True)
        dead, alive = make(tool, lease_s=0.3), make(tool, lease_s=0.3)
        lost = dead.start(tool)
        await tool.began.wait()
        dead.cache._leases.renew = never  # type: ignore[method-assign]
        tool.began.clear()
        other = alive.start(tool)
        await tool.began.wait()
        tool.go.set()
        assert how(await other) == [(2, "miss")]
        assert how(await lost) == [(1, "miss")]

    async def test_a_holder_that_comes_back_late_overwrites_nothing(self, make: MakeProxy) -> None:
        tool = Counter(held=True)
        late, other = make(tool, lease_s=0.2), make(tool, lease_s=0.2)
        late.cache._leases.renew = never  # type: ignore[method-assign]
        first = late.start(tool)
        await tool.began.wait()
        quick = tool.with_spec()
        quick.go = asyncio.Event()
        quick.go.set()
        tool.runs = quick.runs = 6
        taking_over = Proxy(other.store, (quick,), lease_s=0.2)
        assert how(await taking_over.call(quick)) == [(7, "miss")]
        await settled(taking_over)
        tool.go.set()
        assert how(await first) == [(1, "miss")]
        await settled(late)
        assert how(await taking_over.call(quick)) == [(7, "hit")]

    async def test_the_lease_is_renewed_while_the_call_runs(self, make: MakeProxy) -> None:
        tool = Counter(held=True)
        holder, waiter = make(tool, lease_s=0.15), make(tool, lease_s=0.15)
        first = holder.start(tool)
        await tool.began.wait()
        second = waiter.start(tool)
        await asyncio.wait((second,), timeout=0.6)  # four leases
        tool.go.set()
        assert how(await first, await second) == [(1, "miss"), (1, "coalesced")]

    async def test_a_waiter_waits_no_longer_than_it_would_take_to_run(self, make: MakeProxy) -> None:
        slow = Counter(held=True)
        holder = make(slow)
        first = holder.start(slow)
        await slow.began.wait()
        hasty = Counter(timeout_s=0.1)
        waiter = make(hasty)
        assert how(await waiter.call(hasty)) == [(1, "miss")]
        slow.go.set()
        await first


class TestStale:
    async def test_an_old_one_serves_while_a_new_one_is_fetched(self, make: MakeProxy) -> None:
        tool = Counter(cache_s=60, stale_s=60)
        proxy = make(tool)
        await proxy.call(tool)
        await settled(proxy)
        older = tool.with_spec(cache_s=0.001)
        older.go = asyncio.Event()
        proxy = make(older)
        assert how(*await asyncio.gather(*(proxy.call(older) for _ in range(20)))) == [(1, "stale")] * 20
        older.go.set()
        await settled(proxy)
        assert older.runs == 2
        fresh = older.with_spec(cache_s=60)
        assert how(await make(fresh).call(fresh)) == [(2, "hit")]

    async def test_one_proxy_fetches_it(self, make: MakeProxy) -> None:
        tool = Counter(cache_s=60, stale_s=60)
        proxy = make(tool)
        await proxy.call(tool)
        await settled(proxy)
        older = tool.with_spec(cache_s=0.001)
        older.go, older.began = asyncio.Event(), asyncio.Event()
        fetching, other = make(older), make(older)
        assert how(await fetching.call(older)) == [(1, "stale")]
        await older.began.wait()
        assert how(await other.call(older)) == [(1, "stale")]
        await settled(other)
        older.go.set()
        await settled(fetching)
        assert older.runs == 2

    async def test_where_that_fails_the_old_one_goes_on_and_the_tool_has_a_rest(self, make: MakeProxy) -> None:
        tool = Counter(cache_s=60, stale_s=60, negative_s=60)
        proxy = make(tool)
        await proxy.call(tool)
        await settled(proxy)
        older = tool.with_spec(cache_s=0.001)
        older.fails = True
        proxy = make(older)
        for _ in range(5):
            assert how(await proxy.call(older)) == [(1, "stale")]
            await settled(proxy)
        assert older.runs == 2

    async def test_the_server_does_not_wait_for_it_at_its_end(self, make: MakeProxy) -> None:
        tool = Counter(cache_s=60, stale_s=60)
        proxy = make(tool)
        await proxy.call(tool)
        await settled(proxy)
        older = tool.with_spec(cache_s=0.001)
        older.go, older.began = asyncio.Event(), asyncio.Event()
        proxy = make(older)
        await proxy.call(older)
        await older.began.wait()
        await proxy.executor.aclose(grace_s=600)
        await settled(proxy)


async def test_it_is_gone_when_its_time_is_up(make: MakeProxy) -> None:
    tool = Counter(cache_s=0.05)
    proxy = make(tool)
    await proxy.call(tool)
    await settled(proxy)
    end = time.monotonic() + 20
    while (await proxy.call(tool)).cache == "hit":
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    assert tool.runs == 2


async def test_what_somebody_else_wrote_there_is_a_miss(make: MakeProxy) -> None:
    tool = Counter()
    proxy = make(tool)
    await proxy.call(tool)
    await settled(proxy)
    redis = proxy.store._redis
    (key,) = [key async for key in redis.scan_iter(match="*:entry:*")]
    for junk in (b"", b"junk", b"\x98\x63" + b"\xc0" * 7):
        await redis.set(key, junk)
        assert (await proxy.call(tool)).cache == "miss"
        await settled(proxy)
    assert (await proxy.call(tool)).cache == "hit"


async def never(*_: Any) -> bool:
    return True


def test_an_error_that_comes_at_once_is_kept_as_well(tmp_path: Path) -> None:
    """uvloop's clock goes by milliseconds: a tool that fails within one seems to have run for no time at all."""

    async def work() -> list[str | None]:
        tool = Counter(negative_s=60)
        tool.fails = True
        proxy = Proxy(Store(Embedded(tmp_path / "store.db"), name="test", timeout_s=5), (tool,))
        ways = []
        for _ in range(10):
            ways.append((await proxy.call(tool)).cache)
            await settled(proxy)
        await proxy.close()
        return ways

    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(work()) == ["miss"] + ["hit"] * 9
