"""`asynclm runs` on recordings: listed and shown without a proxy, run again, and taken to another machine."""

import asyncio
import re
from pathlib import Path

import pytest
from harness import proxy_for
from services import Service, answering
from upstream import Answer, ScriptedUpstream

from asynclm.proxy.cli import main

QUESTION = [{"role": "user", "content": "What is 1 + 2?"}]
NOBODY = ("--url", "http://127.0.0.1:9")


def add(x: int, y: int = 1) -> int:
    """Add two numbers."""
    return x + y


def script() -> list[Answer]:
    calls = "[CALL] a [HEAD] add(x=1, y=2) [END]", "[CALL] b [HEAD] add(x=5) [END]"
    return [Answer("Let me see. ", *calls, "[TRAP][END]"), Answer("It is 3."), Answer("It is 3.")]


async def record(store: str, mode: str = "record", **body: object) -> str:
    """Record one run in that store: its id."""
    async with ScriptedUpstream(script()) as upstream, proxy_for(upstream.url, add, toml=store) as proxy:
        done = await proxy.client().chat.completions.create(
            **{"model": "m", "messages": QUESTION, **body},
            extra_headers={"x-asynclm-replay": mode, "x-asynclm-policy": "coalesce"},
        )
        return str(done.usage.asynclm["run"])


@pytest.fixture
def config(store: str, tmp_path: Path) -> str:
    path = tmp_path / "here.toml"
    path.write_text(store)
    return str(path)


async def asynclm(*arguments: str) -> int:
    """In a thread: the command has a loop of its own."""
    return await asyncio.to_thread(main, ["runs", *arguments])


async def test_list_and_show_without_a_proxy(store: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = await record(store)
    assert await asynclm(*NOBODY, "list", "--config", config) == 0
    out, err = capsys.readouterr()
    assert err == "asynclm: no proxy answers at http://127.0.0.1:9: this is from the store\n"
    assert re.search(rf"^{run}  \S+ \S+ +\d+\.\d\d  finished +coalesce +m$", out, re.MULTILINE)
    assert await asynclm(*NOBODY, "show", "--config", config, run) == 0
    assert capsys.readouterr().out.startswith("coalesce  ")
    assert await asynclm(*NOBODY, "show", "--config", config, "run_none") == 1
    assert "there is no recording of run 'run_none'" in capsys.readouterr().err


async def test_run_again(store: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = await record(store)
    assert await asynclm("replay", "--config", config, run, "--policy", "fork", "--ttft-ms", "310") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"^recorded: coalesce +\d+ ms$", out, re.MULTILINE)
    assert re.search(r"^now: fork +\d+ ms$", out, re.MULTILINE)
    now = re.search(r"^now +fork +(\d+) ms +(\d+) requests +(\d+) calls$", out, re.MULTILINE)
    assert now
    assert (int(now[1]) >= 620, int(now[3])) == (True, 2)
    assert re.search(r"^- a stream knew a, but not b: the recorded model was never shown that", out, re.MULTILINE)
    assert await asynclm("replay", "--config", config, run) == 0
    out = capsys.readouterr().out
    assert re.search(r"^now +coalesce +\d+ ms +2 requests +2 calls$", out, re.MULTILINE)
    assert "- " not in out


async def test_what_cannot_be_run_again(store: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await asynclm("replay", "--config", config, "run_none") == 1
    assert "there is no recording" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["runs", "replay", "run_x", "--ttft-ms", "-1"])
    assert "must be a number of milliseconds" in capsys.readouterr().err


async def test_another_machine_imports_what_was_exported(
    store: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [await record(store), await record(store, seed=2)]
    file = tmp_path / "recordings.jsonl"
    assert await asynclm("export", "--config", config, "--output", str(file)) == 0
    assert capsys.readouterr().out == f"2 recordings written to {file}\n"
    one = tmp_path / "one.jsonl"
    assert await asynclm("export", "--config", config, runs[1], "--output", str(one)) == 0
    assert one.read_bytes() in file.read_bytes()
    other = f'[store]\npath = "{tmp_path / "other.db"}"\n'
    (tmp_path / "there.toml").write_text(other)
    there = ("--config", str(tmp_path / "there.toml"))
    capsys.readouterr()
    assert await asynclm("import", *there, str(file)) == 0
    assert await asynclm("import", *there, str(one)) == 0  # again: nothing is doubled
    assert capsys.readouterr().out == "2 recordings imported\n1 recording imported\n"
    assert await asynclm(*NOBODY, "list", *there) == 0
    assert capsys.readouterr().out.count("finished") == 2
    async with proxy_for("http://127.0.0.1:9/v1", add, toml=other) as proxy:
        for seed, run in ((None, runs[0]), (2, runs[1])):
            raw = await proxy.client().chat.completions.with_raw_response.create(
                model="m", messages=QUESTION, seed=seed, extra_headers={"x-asynclm-replay": "replay"}
            )
            assert raw.headers["x-asynclm-run-id"] == run
            assert raw.parse().choices[0].message.content == "Let me see.\n\nIt is 3."
    assert await asynclm("export", *there, "--output", str(tmp_path / "back.jsonl")) == 0
    assert sorted((tmp_path / "back.jsonl").read_bytes().splitlines()) == sorted(file.read_bytes().splitlines())


async def test_what_is_no_recording_is_not_imported(
    store: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await record(store)
    good = tmp_path / "good.jsonl"
    assert await asynclm("export", "--config", config, "--output", str(good)) == 0
    data = good.read_bytes()
    (tmp_path / "there.toml").write_text(f'[store]\npath = "{tmp_path / "other.db"}"\n')
    there = ("--config", str(tmp_path / "there.toml"))
    file = tmp_path / "bad.jsonl"
    for text, words in (
        (b"hello\n", "not a recording of asynclm"),
        (data + data.replace(b'"asynclm_recording":1', b'"asynclm_recording":7'), "made by a newer asynclm (version 7"),
        (data.replace(b'"kind":"trap"', b'"kind":"trap', 1), "is damaged in line"),
        (data.replace(data.splitlines(keepends=True)[4], b""), "lines stood before its end"),
    ):
        file.write_bytes(text)
        capsys.readouterr()
        assert await asynclm("import", *there, str(file)) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"asynclm: {file}: ")
        assert words in err
        assert err.count("\n") == 1
    assert await asynclm("import", *there, str(tmp_path / "none")) == 1
    assert "can't be read" in capsys.readouterr().err
    assert not (tmp_path / "other.db").exists()


async def test_stores_that_nobody_can_look_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "asynclm.toml"
    for text, words, status in (
        ('[store]\npath = ""\n', "in the proxy's memory", 1),
        ('[store]\nurl = "redis://127.0.0.1:9/0"\n', "the store redis://127.0.0.1:9/0 can't be used", 1),
        ("[store]\nurl = 3\n", "store.url", 2),
    ):
        path.write_text(text)
        assert await asynclm("export", "--config", str(path)) == status
        assert words in capsys.readouterr().err
    assert await asynclm(*NOBODY, "list", "--config", str(tmp_path / "none.toml")) == 1
    assert "is it up? (--url)" in capsys.readouterr().err


async def test_a_store_without_recordings(store: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It may hold conversations: the reason why nothing is listed is said all the same."""
    await record(store, mode="off")
    assert await asynclm(*NOBODY, "list", "--config", config) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "and nothing is recorded: is it up? (--url)" in err


async def test_a_run_with_tools_of_the_clients_own_is_not_run_again(
    store: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = {"type": "function", "function": {"name": "ask", "parameters": {"type": "object", "properties": {}}}}
    script = [Answer("[CALL] a [HEAD] ask() [END][TRAP][END]")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, add, toml=store) as proxy:
        done = await proxy.client().chat.completions.create(
            model="m", messages=QUESTION, tools=[tool], extra_headers={"x-asynclm-replay": "record"}
        )
    assert await asynclm("replay", "--config", config, done.usage.asynclm["run"]) == 1
    assert "has calls to its client's own tools, so it can't be run again" in capsys.readouterr().err


async def test_an_import_takes_nothing_away(
    store: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = await record(store)
    file = tmp_path / "recordings.jsonl"
    assert await asynclm("export", "--config", config, "--output", str(file)) == 0
    data = file.read_bytes()
    file.write_bytes(b"\n".join(data.splitlines()[:-1]))  # the end has gone
    capsys.readouterr()
    assert await asynclm("import", "--config", config, str(file)) == 0
    assert "of these, 1 recording without an end, which serve no request" in capsys.readouterr().err
    small = tmp_path / "small.toml"
    small.write_text(f"{store}[recording]\nmax_bytes = 100_000\n")
    copies = [data.replace(run.encode(), f"run_copy{n}".encode()) for n in range(100_000 // len(data) + 1)]
    file.write_bytes(b"".join(copies))
    assert await asynclm("import", "--config", str(small), str(file)) == 1
    assert f"{file}: there is no room for so much: raise recording.max_bytes" in capsys.readouterr().err
    file.write_bytes(b"")
    assert await asynclm("import", "--config", config, str(file)) == 1
    assert "there is no recording in it" in capsys.readouterr().err
    assert await asynclm(*NOBODY, "list", "--config", config) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [run]
    assert await asynclm("export", "--config", config, "--output", str(file)) == 0
    assert file.read_bytes() == data


async def test_a_file_that_cannot_be_used_is_no_empty_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = f'[store]\npath = "{tmp_path / "store.db"}"\n'
    await record(source)
    (tmp_path / "here.toml").write_text(source)
    (tmp_path / "there.toml").write_text('[store]\npath = "."\n')
    file = tmp_path / "recordings.jsonl"
    assert await asynclm("export", "--config", str(tmp_path / "here.toml"), "--output", str(file)) == 0
    there = ("--config", str(tmp_path / "there.toml"))
    capsys.readouterr()
    for command in (("import", *there, str(file)), (*NOBODY, "list", *there), ("export", *there)):
        assert await asynclm(*command) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "can't be used: unable to open database file" in err
    assert await asyncio.to_thread(main, ["cache", "stats", *there]) == 1


async def test_what_clients_call_a_model_and_what_others_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f'[store]\npath = "{tmp_path / "store.db"}"\n'
    (tmp_path / "asynclm.toml").write_text(store)
    config = ("--config", str(tmp_path / "asynclm.toml"))
    run = await record(store, model="\x1b]0;m\x07")
    assert await asynclm(*NOBODY, "list", *config) == 0
    assert f"{run} " in (out := capsys.readouterr().out)
    assert out.endswith("?]0;m?\n")
    async with Service({"/v1/asynclm/runs": answering((200, {"hello": 1}))}) as other:
        assert await asynclm("--url", other.url, "list", *config) == 1
        assert f"what answers at {other.url} is no asynclm" in capsys.readouterr().err
        assert await asynclm("--url", other.url, "show", *config, "../../a?b") == 1
        assert other.last.target == "/v1/asynclm/runs/..%2F..%2Fa%3Fb"
