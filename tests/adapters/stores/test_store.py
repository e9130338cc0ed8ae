"""The guard, on a real server that is killed, frozen, full or read-only."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis_server import RedisServer, redis_server

from asynclm.adapters.stores import Store, connect

FAILS = "the store test fails"


@pytest.fixture(scope="module")
def own() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def store(own: RedisServer) -> AsyncIterator[Store]:
    store = Store(connect(own.url, timeout_s=0.2), name="test", timeout_s=0.2, open_s=0.05)
    assert await get(store) in (None, b"1")
    yield store
    await store.aclose()


async def get(store: Store) -> Any:
    return await store.do(lambda redis: redis.get("a"), "otherwise")


async def put(store: Store) -> Any:
    return await store.do(lambda redis: redis.set("a", "1"), "otherwise")


async def until_up(store: Store) -> None:
    while await get(store) == "otherwise":
        await asyncio.sleep(0.01)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_server_that_is_restarted(own: RedisServer, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    assert await put(store) is True
    own.kill()
    got = [await get(store) for _ in range(5)]
    assert got == ["otherwise"] * 5
    assert not store.up
    own.start()
    await until_up(store)
    assert store.up
    assert await get(store) is None
    (warning,) = warnings(caplog)
    assert warning.startswith(FAILS)


async def test_connections_that_broke_meanwhile(own: RedisServer, store: Store) -> None:
    """The pool's connections are those of the server before: that is nobody's error."""
    await asyncio.gather(*(put(store) for _ in range(20)))
    await asyncio.to_thread(own.kill)
    await asyncio.to_thread(own.start)
    assert await put(store) is True
    assert store.counts.failures == 0


async def test_a_server_that_is_too_slow(own: RedisServer, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with own.frozen():
        got = await asyncio.gather(*(get(store) for _ in range(200)))
        assert got == ["otherwise"] * 200
        assert store.counts.timeouts >= 3
        skipped = store.counts.skipped
        assert await get(store) == "otherwise"
        assert store.counts.skipped == skipped + 1 or store.counts.timeouts > 3
    await until_up(store)
    (warning,) = warnings(caplog)
    assert "no answer within 0.2 s" in warning
    assert await put(store) is True
    assert await get(store) == b"1"  # no answer of before is taken for this one


async def test_it_is_left_alone_for_a_moment_then_tried_by_one(own: RedisServer) -> None:
    store = Store(connect(own.url, timeout_s=0.1), name="test", timeout_s=0.1, open_s=3600)
    with own.frozen():
        for _ in range(3):
            await get(store)
        assert (store.counts.timeouts, store.counts.skipped) == (3, 0)
        for _ in range(10):
            await get(store)
        assert (store.counts.timeouts, store.counts.skipped) == (3, 10)
        store._open_until = 0.0  # the moment is over
        await asyncio.gather(*(get(store) for _ in range(10)))
        assert (store.counts.timeouts, store.counts.skipped) == (4, 19)
    store._open_until = 0.0
    assert await get(store) != "otherwise"
    assert await asyncio.gather(*(get(store) for _ in range(10))) != ["otherwise"] * 10
    await store.aclose()


async def test_a_trial_that_is_cancelled_is_none(own: RedisServer) -> None:
    store = Store(connect(own.url, timeout_s=5), name="test", timeout_s=5, open_s=0.001)
    own.kill()
    for _ in range(3):
        await get(store)
    own.start()
    await asyncio.sleep(0.01)
    with own.frozen():
        trial = asyncio.create_task(get(store))
        await asyncio.sleep(0.02)
        trial.cancel()
        await asyncio.wait((trial,))
    await until_up(store)
    await store.aclose()


@pytest.mark.parametrize(
    ("setting", "broken", "whole", "said"),
    [("maxmemory", "1", "0", "(?i)maxmemory"), ("min-replicas-to-write", "1", "0", "(?i)replicas")],
)
async def test_a_server_that_takes_nothing_can_still_be_read(
    own: RedisServer, store: Store, caplog: pytest.LogCaptureFixture, setting: str, broken: str, whole: str, said: str
) -> None:
    admin = own.client()
    await put(store)
    admin.config_set(setting, broken)
    try:
        for _ in range(10):
            assert await put(store) == "otherwise"
            assert await get(store) == b"1"
        assert store.counts.skipped == 0
        (warning,) = warnings(caplog)
        assert re.search(said, warning)
    finally:
        admin.config_set(setting, whole)
    assert await put(store) is True


async def test_a_read_only_replica(own: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server("--replicaof", "127.0.0.1", str(own.port)) as replica:
        store = Store(connect(replica.url, timeout_s=1), name="test", timeout_s=1)
        assert await put(store) == "otherwise"
        assert await get(store) != "otherwise"
        assert "read only" in warnings(caplog)[0]
        await store.aclose()


async def test_one_warning_a_minute(own: RedisServer, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    own.kill()
    for _ in range(20):
        await get(store)
    assert len(warnings(caplog)) == store.counts.warnings == 1
    store._warned -= 61
    store._open_until = 0.0
    await get(store)
    assert len(warnings(caplog)) == 2
    own.start()


async def test_no_password_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with redis_server("--requirepass", "right") as server:
        wrong = f"redis://:hunter2@127.0.0.1:{server.port}/0"
        store = Store(connect(wrong, timeout_s=1), name="test", timeout_s=1)
        assert await put(store) == "otherwise"
        assert warnings(caplog)
        assert "hunter2" not in caplog.text
        await store.aclose()


async def test_a_cluster_that_is_down(caplog: pytest.LogCaptureFixture) -> None:
    """Its client's errors are no `RedisError`."""
    store = Store(connect("redis+cluster://127.0.0.1:1", timeout_s=1), name="test", timeout_s=1)
    assert [await put(store), await get(store)] == ["otherwise"] * 2
    assert not store.up
    (warning,) = warnings(caplog)
    assert "Redis Cluster cannot be connected" in warning
    await store.aclose()


@pytest.mark.parametrize("reply", [b":abc\r\n", b"$abc\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*1\r\n:0\r\n"])
async def test_something_that_is_no_redis(reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(reply)
        writer.close()

    async def found(redis: Any) -> str:
        return str((await redis.get("a")).decode())

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = Store(connect(f"redis://127.0.0.1:{port}", timeout_s=1), name="test", timeout_s=1)
        assert [await store.do(found, "otherwise") for _ in range(5)] == ["otherwise"] * 5
        assert (store.counts.failures, store.counts.skipped) == (3, 2)
        await store.aclose()
