"""What every store does alike, on each kind of URL and on the embedded store. The servers are real ones."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis.asyncio import Redis
from redis.exceptions import DataError, ResponseError
from redis_server import RedisServer, redis_server

from asynclm.adapters.stores import Embedded, check_url, connect

KINDS = ("file", "memory", "redis", "unix", "rediss", "redis+cluster")
BINARY = bytes(range(256))

Made = Any  # redis-py's stubs can't tell the clients with async from those without


@contextlib.asynccontextmanager
async def tls(port: int, folder: Path) -> AsyncIterator[str]:
    """TLS in front of a server: its URL."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    tasks: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plain_reader, plain_writer = await asyncio.open_connection("127.0.0.1", port)
        for way in ((reader, plain_writer), (plain_reader, writer)):
            tasks.add(asyncio.create_task(copy(*way)))

    front = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        number = front.sockets[0].getsockname()[1]
        yield f"rediss://127.0.0.1:{number}/0?ssl_ca_certs={folder / 'ca.pem'}"
    finally:
        front.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def cluster() -> Any:
    """A cluster of one node that holds every slot: its URL."""
    with redis_server("--cluster-enabled", "yes") as node:
        client = node.client()
        client.execute_command("CLUSTER ADDSLOTS", *range(16_384))
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            time.sleep(0.01)
        yield f"redis+cluster://127.0.0.1:{node.port}"


@pytest.fixture(scope="session")
def shared_cluster() -> Any:
    with cluster() as url:
        yield url


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Made]:
    async with contextlib.AsyncExitStack() as stack:
        client: Redis
        match request.param:
            case "file":
                client = Embedded(tmp_path / "store" / "asynclm.db")
            case "memory":
                client = Embedded(None)
            case "redis+cluster":
                client = connect(request.getfixturevalue("shared_cluster"), timeout_s=50)
                await client.flushdb()
            case kind:
                server: RedisServer = request.getfixturevalue("fresh_redis")
                url = server.url
                if kind == "unix":
                    url = f"unix://{server.socket}"
                elif kind == "rediss":
                    url = await stack.enter_async_context(tls(server.port, tmp_path))
                check_url(url)
                client = connect(url, timeout_s=50)
        yield client
        await client.aclose()


async def raises(command: Awaitable[Any], text: str) -> None:
    with pytest.raises(ResponseError, match=text):
        await command


async def test_strings(store: Made) -> None:
    assert await store.get("a") is None
    assert await store.set("a", BINARY) is True
    assert await store.get("a") == BINARY
    assert await store.set("a", "new", nx=True) is None
    assert await store.set("a", "new", xx=True) is True
    assert await store.set("b", 1, nx=True) is True
    assert await store.set("c", 1, xx=True) is None
    assert await store.strlen("a") == 3
    assert await store.exists("a") == 1
    assert await store.delete("a") == 1
    assert await store.delete("a") == 0
    assert [await store.incr("n"), await store.incrby("n", 5)] == [1, 6]


async def test_values_that_redis_does_not_take(store: Made) -> None:
    for value in (True, None, ["a"]):
        with pytest.raises(DataError):
            await store.set("a", value)


async def test_keys_expire(store: Made) -> None:
    await store.set("a", "1", px=20)
    await store.set("b", "1", ex=100)
    assert 99_000 < await store.pttl("b") <= 100_000
    assert await store.ttl("b") == 100
    assert (await store.pttl("c"), await store.ttl("c")) == (-2, -2)
    while await store.get("a") is not None:
        await asyncio.sleep(0.005)
    assert await store.exists("a") == 0
    assert await store.set("a", "2", nx=True) is True
    assert await store.pttl("a") == -1
    assert await store.pexpire("a", 1000) == 1
    assert 0 < await store.pttl("a") <= 1000
    assert await store.expire("nothing", 5) == 0
    await store.set("b", "2")
    assert await store.pttl("b") == -1  # set anew, without an end


async def test_hashes(store: Made) -> None:
    assert await store.hset("h", "a", BINARY) == 1
    assert await store.hset("h", mapping={"a": "1", "b": "2"}) == 1
    assert await store.hget("h", "a") == b"1"
    assert await store.hget("h", "none") is None
    assert await store.hincrby("h", "b", 40) == 42
    assert await store.hincrby("h", "c", 1) == 1
    assert await store.hgetall("h") == {b"a": b"1", b"b": b"42", b"c": b"1"}
    assert await store.hdel("h", "a", "b", "c", "d") == 3
    assert await store.exists("h") == 0
    assert await store.hgetall("h") == {}


async def test_lists(store: Made) -> None:
    assert await store.rpush("l", "a", BINARY) == 2
    assert await store.rpush("l", "c") == 3
    assert await store.lrange("l", 0, -1) == [b"a", BINARY, b"c"]
    assert await store.lrange("l", -2, 9) == [BINARY, b"c"]
    assert await store.lrange("l", 2, 1) == []
    assert await store.ltrim("l", -1, -1) is True
    assert await store.lrange("l", 0, -1) == [b"c"]
    assert await store.rpush("l", "d") == 2
    assert await store.llen("l") == 2
    assert await store.lrange("none", 0, -1) == []


async def test_sorted_sets(store: Made) -> None:
    assert await store.zadd("z", {"b": 2, "a": 1.5, "c": 3}) == 3
    assert await store.zadd("z", {"b": 0}) == 0
    assert await store.zrange("z", 0, -1) == [b"b", b"a", b"c"]
    assert await store.zrange("z", 0, 1, desc=True) == [b"c", b"a"]
    assert await store.zrange("z", 0, -1, withscores=True) == [(b"b", 0.0), (b"a", 1.5), (b"c", 3.0)]
    assert await store.zrevrange("z", 0, 0) == [b"c"]
    assert await store.zrangebyscore("z", "(0", "+inf") == [b"a", b"c"]
    assert await store.zscore("z", "a") == 1.5
    assert await store.zrem("z", "c", "d") == 1
    assert await store.zremrangebyscore("z", "-inf", 1) == 1
    assert await store.zcard("z") == 1


async def test_keys_are_found_by_pattern(store: Made) -> None:
    for key in ("x:a:1", "x:a:2", "x:b:1", "y", "x:[a]:1"):
        await store.set(key, "1")
    await store.set("x:a:gone", "1", px=1)
    while await store.exists("x:a:gone"):
        await asyncio.sleep(0.002)
    found = {
        pattern: {key async for key in store.scan_iter(match=pattern)} for pattern in ("x:a:*", r"x:\[a\]:?", "[xy]")
    }
    assert found == {"x:a:*": {b"x:a:1", b"x:a:2"}, r"x:\[a\]:?": {b"x:[a]:1"}, "[xy]": {b"y"}}


async def test_a_key_holds_one_kind(store: Made) -> None:
    await store.set("a", "1")
    await raises(store.hget("a", "b"), "WRONGTYPE")
    await raises(store.rpush("a", "b"), "WRONGTYPE")
    await raises(store.zadd("a", {"b": 1}), "WRONGTYPE")
    await raises(store.incrby("{a}b", "x"), "not an integer")
    assert await store.type("a") == b"string"


async def test_scripts(store: Made) -> None:
    take = """
        if redis.call('get', KEYS[1]) == ARGV[1] then
            redis.call('del', KEYS[1])
            return {1, redis.call('incr', KEYS[2]), redis.call('get', KEYS[1]), 'unseen'}
        end
        return 0
    """
    await store.set("{k}a", BINARY)
    assert await store.eval(take, 2, "{k}a", "{k}n", "other") == 0
    assert await store.eval(take, 2, "{k}a", "{k}n", BINARY) == [1, 1, None, b"unseen"]
    assert await store.eval("return redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])", 1, "s", "v", 50_000) == b"OK"
    assert 0 < await store.pttl("s") <= 50_000
    assert await store.eval("return 3.9", 0) == 3
    assert await store.eval("return false", 0) is None
    assert await store.eval("return {1, {'a'}, 2}", 0) == [1, [b"a"], 2]


async def test_what_is_wrong_with_a_script(store: Made) -> None:
    await raises(store.eval("this is no Lua", 0), "script")
    await raises(store.eval("return os.execute('true')", 0), "script|global")
    await raises(store.eval("return redis.call('nosuchcommand')", 0), "(?i)unknown")


async def test_a_script_is_done_as_one(store: Made) -> None:
    count = "local n = redis.call('get', KEYS[1]) or 0 redis.call('set', KEYS[1], n + 1) return 1"
    await asyncio.gather(*(store.eval(count, 1, "n") for _ in range(50)))
    assert int(await store.get("n")) == 50


async def test_of_many_one_gets_the_lock(store: Made) -> None:
    got = await asyncio.gather(*(store.set("lock", str(n), nx=True, px=60_000) for n in range(50)))
    (winner,) = [n for n, won in enumerate(got) if won]
    assert await store.get("lock") == str(winner).encode()


async def test_a_large_value(store: Made) -> None:
    value = BINARY * 40_000  # 10 MB
    await store.set("big", value)
    assert await store.get("big") == value


async def test_cancelled_commands_mix_nothing_up(store: Made) -> None:
    """redis-py once gave one caller's reply to another after a cancellation."""
    for n in range(20):
        await store.set(f"k{n}", f"v{n}" * 1000)

    async def look(n: int, ticks: int) -> None:
        task = asyncio.ensure_future(store.get(f"k{n}"))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert await task == f"v{n}".encode() * 1000

    for ticks in range(12):
        await asyncio.gather(*(look(n, ticks) for n in range(20)))
        for n in range(20):
            assert await store.get(f"k{n}") == f"v{n}".encode() * 1000
