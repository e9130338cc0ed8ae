"""The store in a file: it survives, is shared, stays small, and whatever is wrong with the file ends in a warning."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from asynclm.adapters.stores import Embedded


async def once(path: Path | None, name: str, *arguments: Any, **options: Any) -> Any:
    store = Embedded(path)
    try:
        return await getattr(store, name)(*arguments, **options)
    finally:
        await store.aclose()


async def test_it_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "store.db"
    await once(path, "set", "a", b"\xff", px=60_000)
    await once(path, "rpush", "l", "1", "2")
    assert await once(path, "get", "a") == b"\xff"
    assert await once(path, "lrange", "l", 0, -1) == [b"1", b"2"]
    assert 0 < await once(path, "pttl", "a") <= 60_000
    assert path.stat().st_mode & 0o077 == 0


def test_it_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    code = f"""
        import asyncio, os, signal
        from pathlib import Path
        from asynclm.adapters.stores import Embedded
        async def main():
            store = Embedded(Path({str(path)!r}))
            for n in range(100):
                await store.set(f"k{{n}}", "x" * 1000)
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == -9
    assert asyncio.run(once(path, "get", "k99")) == b"x" * 1000


async def test_several_may_use_it_at_once(tmp_path: Path) -> None:
    stores = [Embedded(tmp_path / "store.db") for _ in range(4)]
    count = "redis.call('set', KEYS[1], (redis.call('get', KEYS[1]) or 0) + 1)"
    await asyncio.gather(*(store.eval(count, 1, "n") for store in stores for _ in range(25)))
    assert {int(await store.get("n")) for store in stores} == {100}
    assert sorted(await asyncio.gather(*(store.set("lock", "1", nx=True) for store in stores)), key=str) == [
        None,
        None,
        None,
        True,
    ]
    for store in stores:
        await store.aclose()


async def test_several_may_make_it_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for attempt in range(10):
        stores = [Embedded(tmp_path / f"{attempt}.db") for _ in range(4)]
        await asyncio.gather(*(store.set(f"k{n}", "1") for n, store in enumerate(stores)))
        for store in stores:
            assert await store.exists("k0", "k1", "k2", "k3") == 4
            await store.aclose()
    assert caplog.records == []


async def test_it_stays_below_its_size(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = Embedded(path, max_bytes=4_000_000)
    await store.set("kept", "y" * 1000, px=10_000_000)
    for n in range(100):
        await store.set(f"k{n}", "x" * 200_000, px=100_000 + n)
    assert await store.get("k99") is not None
    assert await store.get("k0") is None
    assert await store.get("kept") is not None  # what expires soonest goes first
    with pytest.raises(Exception, match="too large"):
        await store.set("huge", "x" * 3_000_000)
    await store.aclose()
    assert path.stat().st_size < 6_000_000


async def test_what_has_expired_takes_no_room(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = Embedded(path)
    for n in range(50):
        await store.set(f"k{n}", "x" * 100_000, px=1)
    await asyncio.sleep(0.01)
    database: Any = store._database
    database._swept = 0.0
    await store.ping()
    assert database._pages() * 4096 < 200_000
    await store.aclose()


@pytest.mark.parametrize("damage", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_damaged_file_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(damage)
    await once(path, "set", "a", "1")
    assert await once(path, "get", "a") == b"1"
    assert [file.read_bytes() for file in sorted(tmp_path.glob("*.damaged-*"))] == [damage]  # noqa: ASYNC240
    assert "is damaged" in caplog.text


async def test_damage_that_shows_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "store.db"
    store = Embedded(path)
    for n in range(200):
        await store.set(f"k{n}", "x" * 1000)
    await store.aclose()
    data = bytearray(path.read_bytes())
    data[8192:] = b"\xff" * (len(data) - 8192)
    path.write_bytes(data)
    store = Embedded(path)
    failures = 0
    for n in range(200):
        try:
            await store.set(f"k{n}", "new")
        except RedisConnectionError:
            failures += 1
    assert failures <= 3
    assert "is damaged" in caplog.text
    assert await store.get("k199") == b"new"
    await store.aclose()


async def test_a_place_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    store = Embedded(tmp_path / "file" / "store.db")
    await store.set("a", "1")
    assert await store.get("a") == b"1"
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'file' / 'store.db'} can't be used (File exists): what is stored is lost when the process ends"
    ] or "can't be used (Not a directory)" in caplog.text
    await store.aclose()


async def test_commands_that_are_not_there() -> None:
    with pytest.raises(Exception, match="unknown command 'GEOADD'"):
        await once(None, "geoadd", "a", [1.0, 2.0, "b"])
    with pytest.raises(Exception, match="wrong number of arguments for 'get'"):
        await once(None, "execute_command", "GET")
    with pytest.raises(NotImplementedError, match="pipelines"):
        Embedded(None).pipeline()


async def test_after_the_end() -> None:
    store = Embedded(None)
    await store.set("a", "1")
    await store.aclose()
    await store.aclose()
    with pytest.raises(Exception, match="closed"):
        await store.get("a")


async def test_without_memory_to_fall_back_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Embedded(tmp_path / "file" / "store.db", or_memory=False)
    for _ in range(2):
        with pytest.raises(RedisConnectionError, match=r"File exists|Not a directory"):
            await store.set("a", "1")
    await store.aclose()
