"""`asynclm cache`, on a file and on a server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from caching import Counter, Proxy
from redis_server import RedisServer

from asynclm.adapters.stores import Embedded, Store, connect
from asynclm.proxy.cli import main


@pytest.fixture(params=["file", "redis"])
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config with a store; the URL of the server, or ""."""
    monkeypatch.chdir(tmp_path)
    url = ""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("fresh_redis")
        url = server.url
    Path("asynclm.toml").write_text(f'[store]\nurl = "{url}"\nprefix = "p:"\n' if url else "[store]\nprefix = 'p:'\n")
    return url


def fill(url: str, *tools: Counter, calls: int = 2) -> None:
    """Two proxies' worth of calls: each of the arguments n, twice."""

    async def go() -> None:
        client: Any = connect(url, timeout_s=5) if url else Embedded(Path(".asynclm/store.db"))
        proxy = Proxy(Store(client, name="test", prefix="p:", timeout_s=5), tools)
        for tool in tools:
            for n in range(calls):
                for _ in range(2):
                    await proxy.call(tool, n=n)
                    while proxy.cache._flights:
                        await asyncio.sleep(0.001)
        await proxy.close()

    asyncio.run(go())


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(["cache", *arguments]) == status
    out, err = capsys.readouterr()
    if status:
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("asynclm: ")
        return err
    assert err == ""
    return out


def test_stats(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(config, Counter("stock"), Counter("stock.more"), calls=3)
    header, *rows = said(capsys, "stats").splitlines()
    assert header.split() == ["tool", "entries", "bytes", "hit", "stale", "coalesced", "miss"]
    assert [row.split()[:2] + row.split()[3:] for row in rows] == [
        ["stock", "3", "3", "0", "0", "3"],
        ["stock.more", "3", "3", "0", "0", "3"],
    ]
    assert int(rows[0].split()[2]) > 30
    (row,) = said(capsys, "stats", "--tool", "stock").splitlines()[1:]
    assert row.split()[0] == "stock"


def test_get(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(config, Counter("stock"), Counter("other", value={"a": [1, "é"]}))
    header, *rows = said(capsys, "get").splitlines()
    assert header.split() == ["tool", "age", "s", "left", "s", "bytes", "is", "arguments"]
    assert len(rows) == 4
    rows = said(capsys, "get", "--tool", "other").splitlines()[1:]
    assert {row.split()[0] for row in rows} == {"other"}
    assert {row.split()[-1] for row in rows} == {'{"n":0}', '{"n":1}'}
    assert json.loads(said(capsys, "get", "--tool", "other", ' {"n": 1} ')) == {"a": [1, "é"]}
    assert "no such call is kept" in said(capsys, "get", "--tool", "other", '{"n": "1"}', status=1)


def test_clear(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(config, Counter("stock"), Counter("stock.more"))
    assert said(capsys, "clear", "--tool", "stock") == "2 entries removed\n"
    assert [row.split()[0] for row in said(capsys, "stats").splitlines()[1:]] == ["stock.more"]
    assert said(capsys, "clear") == "2 entries removed\n"
    assert said(capsys, "stats").splitlines()[1:] == []
    assert said(capsys, "clear") == "0 entries removed\n"


def test_a_call_that_runs_while_it_is_cleared_leaves_nothing(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def go() -> None:
        client: Any = connect(config, timeout_s=5) if config else Embedded(Path(".asynclm/store.db"))
        tool = Counter("stock", held=True)
        proxy = Proxy(Store(client, name="test", prefix="p:", timeout_s=5), (tool,))
        call = proxy.start(tool, n=1)
        await tool.began.wait()
        assert await asyncio.to_thread(main, ["cache", "clear"]) == 0
        tool.go.set()
        assert (await call).ok
        await proxy.close()

    asyncio.run(go())
    capsys.readouterr()
    assert said(capsys, "get").splitlines()[1:] == []


def test_looking_makes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(capsys, "stats").splitlines()[1:] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("toml", "arguments", "status", "text"),
    [
        ("[store]\npath = ''", ["stats"], 1, "in the proxy's memory"),
        ("[store]\nurl = 'redis://:hunter2@127.0.0.1:1/0'", ["stats"], 1, "redis://127.0.0.1:1/0 can't be used"),
        ("[store]\nurl = 'http://hunter2'", ["stats"], 2, "store.url: must begin with one of"),
        ("[store]\nprefix = 'a*'", ["clear"], 2, "store.prefix: "),
        ("", ["get", "{n: 1}"], 2, "the arguments are no JSON"),
        ("", ["get", "[1]"], 2, "must be a JSON object"),
    ],
)
def test_errors_are_one_line(
    toml: str,
    arguments: list[str],
    status: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("asynclm.toml").write_text(toml)
    error = said(capsys, *arguments, status=status)
    assert text in error
    assert "hunter2" not in error
