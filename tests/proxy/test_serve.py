"""`asynclm` as a process: it says when it is ready, what is wrong, and stops cleanly."""

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import openai
import pytest
from harness import answer_of
from loopback import start
from upstream import Answer, ScriptedUpstream

TOOLS = '''
def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y
'''


async def asynclm(*arguments: str, cwd: Path, **environ: str) -> Process:
    env = {key: value for key, value in os.environ.items() if not key.startswith("ASYNCLM_")}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "asynclm.proxy.cli", *arguments, cwd=cwd, env=env | environ, stdout=PIPE, stderr=PIPE
    )


async def fails(*arguments: str, cwd: Path, **environ: str) -> tuple[int, str]:
    """Exit status and what was said, which is one line."""
    process = await asynclm(*arguments, cwd=cwd, **environ)
    out, err = await process.communicate()
    assert out == b""
    assert err.count(b"\n") == 1, err.decode()
    assert process.returncode is not None
    return process.returncode, err.decode()


@asynccontextmanager
async def serving(cwd: Path, *arguments: str, **environ: str) -> AsyncIterator[tuple[Process, str]]:
    process = await asynclm("serve", "--port", "0", *arguments, cwd=cwd, **environ)
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("asynclm: listening on http://127.0.0.1:"), line
        yield process, line.split()[-1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def config(folder: Path, upstream: str, more: str = "") -> None:
    (folder / "tools.py").write_text(TOOLS)
    (folder / "asynclm.toml").write_text(
        f'[upstreams.main]\nkind = "openai"\nbase_url = "{upstream}"\n[[tools]]\npython = "tools.py:add"\n{more}'
    )


async def test_serve_answers_and_stops_cleanly(tmp_path: Path) -> None:
    script = [Answer("[CALL] a [HEAD] add(x=1, y=2) [END][TRAP][END]"), Answer("It is 3.")]
    async with ScriptedUpstream(script) as upstream:
        config(tmp_path, upstream.url)
        async with serving(tmp_path) as (process, url):
            async with openai.AsyncOpenAI(base_url=url, api_key="sk-x", max_retries=0) as client:
                messages = [{"role": "user", "content": "1 + 2?"}]
                completion = await client.chat.completions.create(model="m", messages=messages)
                assert completion.choices[0].message.content == "It is 3."
            process.send_signal(signal.SIGTERM)
            out, err = await process.communicate()
            assert (process.returncode, out, err) == (0, b"", b"")


@pytest.mark.parametrize("policy", ["auto", "off"])
async def test_open_answers_get_a_grace_time_and_then_an_error_event(tmp_path: Path, policy: str) -> None:
    hold = asyncio.Event()
    async with ScriptedUpstream([Answer("So ", "far.", hold=hold, hold_at=1)]) as upstream:
        config(tmp_path, upstream.url)
        messages = [{"role": "user", "content": "Go."}]
        for grace, ends_well in (("30", True), ("0.1", False)):
            hold.clear()
            async with serving(tmp_path, ASYNCLM_SERVER_GRACE_S=grace) as (process, url):
                async with openai.AsyncOpenAI(base_url=url, api_key="sk-x", max_retries=0) as client:
                    stream = await client.chat.completions.create(
                        model="m", messages=messages, stream=True, extra_headers={"x-asynclm-policy": policy}
                    )
                    await anext(stream)
                    process.send_signal(signal.SIGTERM)
                    if ends_well:
                        hold.set()
                        assert await answer_of(stream) == ("So far.", "stop")
                    else:
                        with pytest.raises(openai.APIError, match="shutting down"):
                            await answer_of(stream)
                await process.communicate()
                assert process.returncode == 0


@pytest.mark.parametrize(
    ("toml", "status", "said"),
    [
        ("[server]\nprot = 1", 2, "server.prot"),
        ("[server]\nport = 'x'", 2, "server.port"),
        ("[server", 2, "asynclm.toml"),
        ('[models."*"]\nupstream = "nowhere"', 2, "nowhere"),
        ('[[tools]]\npython = "nothing.py:f"', 2, "nothing.py:f"),
        ('[[tools]]\npython = "tools.py:nothing"', 2, "tools.py:nothing"),
        ('[[tools]]\nopenapi = "none.yaml"', 2, "none.yaml can't be read: No such file or directory"),
        ('[[tools]]\nopenapi = "tools.py"', 2, "tools.py: it is neither JSON nor YAML"),
        ('[[tools]]\nopenapi = "http://127.0.0.1:9/api"', 2, "127.0.0.1 is a loopback address"),
        ('[[tools]]\npython = "tools.py:add"\n[[tools]]\npython = "tools.py:add"', 2, "'add'"),
    ],
)
async def test_a_bad_config_is_one_clear_line(tmp_path: Path, toml: str, status: int, said: str) -> None:
    (tmp_path / "tools.py").write_text(TOOLS)
    (tmp_path / "asynclm.toml").write_text(toml)
    code, line = await fails("serve", cwd=tmp_path)
    assert code == status
    assert said in line


async def test_no_such_config(tmp_path: Path) -> None:
    code, line = await fails("serve", "--config", "missing.toml", cwd=tmp_path)
    assert code == 2
    assert "missing.toml" in line


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, line = await fails("serve", "--port", port, cwd=tmp_path, OPENAI_API_KEY="sk-x")
        assert code == 1
        assert port in line


@pytest.mark.parametrize("command", ["serve", "simulate"])
async def test_addresses_that_are_none(tmp_path: Path, command: str) -> None:
    for port in ("-1", "65536", "http"):
        process = await asynclm(command, f"--port={port}", cwd=tmp_path)
        _, err = await process.communicate()
        assert process.returncode == 2
        assert f"argument --port: must be a number from 0 to 65535, not {port!r}" in err.decode()
    for host in ("nosuch.invalid", "a..b"):
        code, line = await fails(command, "--host", host, cwd=tmp_path, ASYNCLM_UPSTREAMS_MAIN_KIND="simulated")
        assert code == 1
        assert f"can't listen on {host}:" in line
        assert "nknown error" not in line
        assert not line.rstrip().endswith(":")


@pytest.mark.parametrize("policy", ["auto", "off"])
async def test_told_twice_it_does_not_wait_for_the_grace_time(tmp_path: Path, policy: str) -> None:
    async with ScriptedUpstream([Answer("So ", "far.", hold=asyncio.Event(), hold_at=1)]) as upstream:
        config(tmp_path, upstream.url)
        async with serving(tmp_path, ASYNCLM_SERVER_GRACE_S="3600") as (process, url):
            async with openai.AsyncOpenAI(base_url=url, api_key="sk-x", max_retries=0) as client:
                stream = await client.chat.completions.create(
                    model="m",
                    messages=[{"role": "user", "content": "Go."}],
                    stream=True,
                    extra_headers={"x-asynclm-policy": policy},
                )
                await anext(stream)
                process.send_signal(signal.SIGTERM)
                await closed(url)
                process.send_signal(signal.SIGINT)
                with pytest.raises(openai.APIError, match="shutting down"):
                    await answer_of(stream)
            _, err = await process.communicate()
            assert (process.returncode, err) == (0, b"")


async def closed(url: str) -> None:
    """Wait until nobody listens at `url` any more."""
    host, port = url.split("/")[2].split(":")
    while True:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return
        writer.close()
        await asyncio.sleep(0.01)


THREADS = """
import atexit, concurrent.futures, threading

pool = concurrent.futures.ThreadPoolExecutor(1, "idle pool")
pool.submit(int).result()
atexit.register(print, "said at exit")
"""
HANGS = 'threading.Thread(target=threading.Event().wait, name="hanging thread").start()\n'


@pytest.mark.parametrize("hangs", [False, True])
async def test_threads_of_tools_do_not_keep_the_process(tmp_path: Path, hangs: bool) -> None:
    config(tmp_path, "http://127.0.0.1:1")
    (tmp_path / "tools.py").write_text(THREADS + hangs * HANGS + TOOLS)
    async with serving(tmp_path, OPENAI_API_KEY="sk-x") as (process, _):
        process.send_signal(signal.SIGTERM)
        out, err = await process.communicate()
        assert process.returncode == 0
    if hangs:
        assert err == b"asynclm: warning: threads of tools (hanging thread) don't end and are left behind\n"
    else:
        assert (out, err) == (b"said at exit\n", b"")


async def test_threads_of_tools_do_not_keep_a_server_that_could_not_start(tmp_path: Path) -> None:
    config(tmp_path, "http://127.0.0.1:1", '[[tools]]\npython = "tools.py:nothing"\n')
    (tmp_path / "tools.py").write_text(f"import threading\n{HANGS}{TOOLS}")
    process = await asynclm("serve", cwd=tmp_path)
    _, err = await process.communicate()
    assert process.returncode == 2
    assert b"tools.py:nothing" in err


@pytest.mark.parametrize("command", [[], ["serve"], ["simulate"], ["demo"], ["runs"], ["runs", "show"]])
async def test_help_everywhere(tmp_path: Path, command: list[str]) -> None:
    process = await asynclm(*command, "--help", cwd=tmp_path)
    out, err = await process.communicate()
    assert process.returncode == 0
    assert out.startswith(b"usage: asynclm")
    assert err == b""


async def test_runs_are_listed_and_drawn(tmp_path: Path) -> None:
    script = [Answer("[CALL] a [HEAD] add(x=1, y=2) [END][TRAP][END]"), Answer("It is 3.")]
    async with ScriptedUpstream(script) as upstream:
        config(tmp_path, upstream.url)
        async with serving(tmp_path) as (_, url), aiohttp.ClientSession() as http:
            body = {"model": "m", "messages": [{"role": "user", "content": "1 + 2?"}]}
            run = (await http.post(f"{url}/chat/completions", json=body)).headers["x-asynclm-run-id"]

            listing = await asynclm("runs", "--url", url, "list", cwd=tmp_path, COLUMNS="120")
            out, _ = await listing.communicate()
            assert listing.returncode == 0
            assert run in out.decode()

            drawing = await asynclm("runs", "--url", url, "show", run, cwd=tmp_path, COLUMNS="100")
            out, _ = await drawing.communicate()
            assert drawing.returncode == 0
            assert "add" in out.decode()

            lines = await asynclm("runs", "--url", url, "show", run, "--jsonl", cwd=tmp_path)
            out, _ = await lines.communicate()
            assert json.loads(out.splitlines()[0])["asynclm_timeline"] == 1

            code, line = await fails("runs", "--url", url, "show", "run_none", cwd=tmp_path)
            assert code == 1
            assert "run_none" in line
    (tmp_path / ".asynclm" / "store.db").rename(tmp_path / "elsewhere.db")
    code, line = await fails("runs", "--url", "http://127.0.0.1:1", "list", cwd=tmp_path)
    assert code == 1
    assert "http://127.0.0.1:1" in line


async def test_keys_never_reach_the_log(tmp_path: Path) -> None:
    """Not at the lowest level, not with a request that is no HTTP, not for any vendor's SDK."""
    async with ScriptedUpstream([Answer("Hi."), Answer(status=401)]) as upstream:
        claude = '[upstreams.claude]\nkind = "anthropic"\nbase_url = "http://127.0.0.1:1"\nretries = 0\n'
        models = '[models."*"]\nupstream = "main"\n[models.c]\nupstream = "claude"\n'
        config(tmp_path, upstream.url, claude + models)
        async with serving(tmp_path, "--log-level", "debug") as (process, url):
            async with openai.AsyncOpenAI(base_url=url, api_key="sk-secret-1", max_retries=0) as client:
                messages = [{"role": "user", "content": "Hi?"}]
                await client.chat.completions.create(model="m", messages=messages)
                for model in ("m", "c"):
                    with pytest.raises(openai.APIStatusError):
                        await client.chat.completions.create(model=model, messages=messages)
            host, port = url.split("/")[2].split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-secret-2\x01\r\n\r\n")
            assert b"400" in await reader.readline()
            writer.close()
            process.send_signal(signal.SIGTERM)
            out, err = await process.communicate()
    assert b"sk-secret" not in out + err
    assert b"not proper HTTP" in err


async def test_it_stops_while_a_document_does_not_come(tmp_path: Path) -> None:
    document, server = await start()
    document.answers = [lambda exchange: None]
    async with server:
        (tmp_path / "asynclm.toml").write_text(
            f'[[tools]]\nopenapi = "http://127.0.0.1:{document.port}/api"\nhttp = {{ allow_private = true }}\n'
        )
        process = await asynclm("serve", "--port", "0", cwd=tmp_path, OPENAI_API_KEY="sk-x")
        exchange = await document.arrival()
        process.send_signal(signal.SIGTERM)
        out, err = await process.communicate()
        assert (process.returncode, out, err) == (0, b"", b"")
        await exchange.gone.wait()
