"""Stores that go down, come back, are full or forget: runs don't notice, recordings wait or are dropped and counted."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from harness import proxy_for
from redis_server import RedisServer, redis_server
from upstream import Answer, ScriptedUpstream

from asynclm.adapters.stores import Embedded, Store, connect
from asynclm.cml.timeline import Timeline
from asynclm.cml.usage import Usage
from asynclm.proxy.recording.archive import Archive, Facts
from asynclm.proxy.recording.canonical import Asked
from asynclm.proxy.recording.recorded import read
from asynclm.proxy.recording.recorder import Recorder
from asynclm.proxy.recording.redaction import Redactor
from asynclm.proxy.recording.tape import Tape

QUESTION = [{"role": "user", "content": "Well?"}]
AUTO = {"x-asynclm-replay": "auto"}
MEGABYTE = 2**20


def add(x: int, y: int = 1) -> int:
    """Add two numbers."""
    return x + y


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def toml(server: RedisServer, more: str = "") -> str:
    return f'[store]\nurl = "{server.url}"\n{more}'


def tape(number: int) -> Tape:
    timeline = Timeline(f"run_{number}", "m", "auto", 7, [])
    asked = Asked(f"k{number}", {}, {})
    return Tape(timeline, asked, stream=True, redactor=Redactor(), clock=asyncio.get_running_loop().time)


async def test_a_store_that_dies_in_mid_run_and_comes_back(server: RedisServer) -> None:
    hold = asyncio.Event()
    script = [Answer("Well", ", yes.", hold=hold, hold_at=1), Answer("No.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, add, toml=toml(server)) as proxy:
        recordings = proxy.server.recordings
        client = proxy.client()
        stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True, extra_headers=AUTO)
        text = ""
        async for chunk in stream:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            if text == "Well" and not hold.is_set():
                server.kill()
                hold.set()
        assert text == "Well, yes."
        other = await client.chat.completions.create(model="m", messages=QUESTION, seed=1, extra_headers=AUTO)
        assert other.choices[0].message.content == "No."
        with pytest.raises(openai.InternalServerError) as down:
            await client.chat.completions.create(
                model="m", messages=QUESTION, seed=2, extra_headers={"x-asynclm-replay": "replay"}
            )
        assert (down.value.status_code, down.value.code) == (503, "store_unavailable")
        async with aiohttp.ClientSession() as http:
            health = await (await http.get(proxy.url.replace("/v1", "/healthz"))).json()
        assert (health["status"], health["store"]["status"], health["recordings"]["kept"]) == ("ok", "failing", 0)
        assert health["recordings"]["waiting_bytes"] > 0
        server.start()
        async with asyncio.timeout(20):
            await recordings.recorder.idle()
        # Whether the first one's beginning had been written, and died with the server, is a matter of time.
        assert recordings.counts.kept + recordings.counts.dropped == 2
        assert recordings.counts.kept >= 1
        again = await client.chat.completions.create(
            model="m", messages=QUESTION, seed=1, extra_headers={"x-asynclm-replay": "replay"}
        )
        assert again.choices[0].message.content == "No."


async def test_the_end_of_a_proxy_whose_store_is_down(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with ScriptedUpstream([Answer("Yes.")]) as upstream:
        async with proxy_for(upstream.url, add, toml=toml(server)) as proxy:
            server.kill()
            done = await proxy.client().chat.completions.create(model="m", messages=QUESTION, extra_headers=AUTO)
            assert done.choices[0].message.content == "Yes."
        assert proxy.server.recordings.counts.dropped == 1
    assert [r.getMessage() for r in caplog.records if "is dropped" in r.getMessage()] == [
        f"the recording of {done.usage.asynclm['run']} is dropped: the proxy has stopped (1 dropped since the start)"
    ]


async def test_memory_is_bounded_and_the_largest_go_first(server: RedisServer) -> None:
    store = Store(connect(server.url, timeout_s=1), name="redis", timeout_s=1, open_s=0.01)
    server.kill()
    archive = Archive(store, keep_s=60, max_bytes=64 * MEGABYTE)
    recorder = Recorder(archive, max_bytes=64 * MEGABYTE, max_waiting=MEGABYTE)
    tapes = [tape(number) for number in range(4)]
    for number, each in enumerate(tapes):
        recorder.record(each, replace=False)
        each.sent("content", "x" * (300_000 * (number + 1)))
        each.finish("stop", Usage(), {})
    await recorder.settled("k0", 30)  # returns as soon as it is clear that the store takes nothing
    assert recorder.counts.dropped == 2
    assert recorder.counts.waiting_bytes < MEGABYTE
    server.start()
    async with asyncio.timeout(20):
        await recorder.idle()
    assert sorted(facts.id for facts in await archive.all() or []) == ["run_0", "run_1"]
    assert (recorder.counts.kept, recorder.counts.waiting_bytes) == (2, 0)
    await recorder.aclose()
    await store.aclose()


@pytest.fixture(params=["file", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    client = (
        Embedded(tmp_path / "store.db")
        if request.param == "file"
        else connect(request.getfixturevalue("fresh_redis").url, timeout_s=5)
    )
    store = Store(client, name="store", timeout_s=5)
    yield store
    await store.aclose()


async def test_a_recording_that_is_too_large_is_dropped_while_it_is_made(store: Store) -> None:
    archive = Archive(store, keep_s=60, max_bytes=MEGABYTE)
    recorder = Recorder(archive, max_bytes=MEGABYTE)
    large, small = tape(0), tape(1)
    for each in (large, small):
        recorder.record(each, replace=False)
        each.sent("content", "Hello.\n")
    await recorder.settled("none", 0.01)
    large.sent("content", "x" * (MEGABYTE // 4))
    for each in (large, small):
        each.finish("stop", Usage(), {})
    await recorder.idle()
    assert (recorder.counts.kept, recorder.counts.dropped) == (1, 1)
    assert large.size == 0
    await recorder.aclose()
    assert await archive.find("k0") is False


async def test_the_oldest_make_room_and_what_has_expired_goes(store: Store) -> None:
    archive = Archive(store, keep_s=60, max_bytes=1000)
    for number in range(5):
        id = f"run_{number}"
        assert await archive.append(id, 0, b"x" * 300)
        assert await archive.enter(Facts(id, "m", "auto", number, f"k{number}", "finished", 1.0, 300))
        assert await archive.serve(f"k{number}", id, replace=False)
    assert [facts.id for facts in await archive.all() or []] == ["run_4", "run_3", "run_2"]
    assert await archive.load("run_1") == b""
    short = Archive(store, keep_s=0.001, max_bytes=10**9)
    await asyncio.sleep(0.002)  # not for long: until the times of those there have passed
    await short.enter(Facts("run_9", "m", "auto", 9, "k9"))
    assert {facts.id for facts in await archive.all() or []} <= {"run_9"}


async def test_a_batch_written_twice_counts_once_and_one_without_its_beginning_not_at_all(store: Store) -> None:
    archive = Archive(store, keep_s=60, max_bytes=MEGABYTE)
    assert await archive.append("run_x", 0, b"a")
    assert await archive.append("run_x", 0, b"a")  # it wasn't known whether it had got there
    assert await archive.append("run_x", 1, b"b")
    assert await archive.load("run_x") == b"ab"
    assert await archive.append("run_x", 5, b"f") is False
    await archive.remove(["run_x"])
    assert await archive.append("run_x", 2, b"c") is False


async def test_a_recording_that_the_store_forgets_in_mid_run_is_dropped(store: Store) -> None:
    archive = Archive(store, keep_s=60, max_bytes=64 * MEGABYTE)
    recorder = Recorder(archive, max_bytes=64 * MEGABYTE)
    on = tape(0)
    recorder.record(on, replace=False)
    for _ in range(3):
        on.sent("content", "Hello.\n")
        await recorder.settled("none", 0.01)
        async with asyncio.timeout(10):
            while on.size > 200:
                await asyncio.sleep(0.01)
    await archive.remove([on.id])
    on.finish("stop", Usage(), {})
    await recorder.idle()
    assert (recorder.counts.kept, recorder.counts.dropped) == (0, 1)
    await recorder.aclose()


async def test_a_full_redis(server: RedisServer) -> None:
    server.client().config_set("maxmemory", "1mb")
    async with ScriptedUpstream([Answer("Yes.")]) as upstream, proxy_for(upstream.url, add, toml=toml(server)) as proxy:
        done = await proxy.client().chat.completions.create(model="m", messages=QUESTION, extra_headers=AUTO)
        assert done.choices[0].message.content == "Yes."
        server.client().config_set("maxmemory", "0")
        async with asyncio.timeout(20):
            await proxy.server.recordings.recorder.idle()
        assert proxy.server.recordings.counts.kept == 1
        data = await proxy.server.recordings.archive.load(done.usage.asynclm["run"])
        assert read(data or b"").servable


async def test_one_that_cannot_be_written_takes_no_other_with_it(store: Store) -> None:
    archive = Archive(store, keep_s=60, max_bytes=MEGABYTE)
    recorder = Recorder(archive, max_bytes=MEGABYTE)
    bad, good = tape(0), tape(1)
    deep: Any = 1
    for _ in range(2000):
        deep = [deep]
    for each in (bad, good):
        recorder.record(each, replace=False)
        each.timeline.add(0.0, "call", data={"arguments": deep if each is bad else 1})
        each.finish("stop", Usage(), {})
    await recorder.idle()
    assert (recorder.counts.kept, recorder.counts.dropped) == (1, 1)
    await recorder.aclose()
    assert await archive.find("k1") == "run_1"


async def test_what_is_being_made_counts_as_well(store: Store) -> None:
    """One whose proxy dies leaves its beginning: it must not lie beside all bounds."""
    archive = Archive(store, keep_s=60, max_bytes=32 * MEGABYTE)
    recorder = Recorder(archive, max_bytes=32 * MEGABYTE)
    large = tape(0)
    recorder.record(large, replace=False)
    for text in ("x" * 3_000_000, "\n", "the end of a text waits for more"):
        large.sent("content", text)
    await recorder.settled("none", 0.01)
    async with asyncio.timeout(20):
        while not (facts := (await archive.all() or [Facts("", "", "", 0, "")])[0]).size > 2_700_000:
            await asyncio.sleep(0.01)
    assert facts.status == "unfinished"
    assert await store.do(lambda redis: redis.llen(store.key("rec", "run", "run_0")), 0) >= 3  # a megabyte at a time
    large.finish("stop", Usage(), {})
    await recorder.idle()
    assert read(await archive.load("run_0") or b"").servable
    await recorder.aclose()
