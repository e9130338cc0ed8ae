"""`asynclm serve` with MCP servers: it starts and stops with them, and leaves nothing behind."""

import signal
import subprocess
import sys
from pathlib import Path

import openai
from commands import ROOT, environment, listening
from mcp_servers import REAL, SCRIPT, running

TASK = '<task>{"calls": [{"id": "x", "call": "echo(text=\'hi\')"}], "answer": "Done:"}</task>'
SIMULATED = '[upstreams.main]\nkind = "simulated"\nttft_ms = 0\ntpot_ms = 0\n'


def config(folder: Path, *servers: str) -> Path:
    path = folder / "asynclm.toml"
    path.write_text(SIMULATED + "".join(f"[[tools]]\nmcp = {{ {server} }}\n" for server in servers))
    return path


def command(*arguments: str | Path) -> str:
    return f"command = {str(sys.executable)!r}, args = {[str(argument) for argument in arguments]!r}"


def answer(url: str) -> str:
    client = openai.OpenAI(base_url=url, api_key="none")
    made = client.chat.completions.create(model="m", messages=[{"role": "user", "content": TASK}])
    return str(made.choices[0].message.content)


def test_a_server_that_does_not_want_to_end_is_gone_when_the_proxy_is(tmp_path: Path) -> None:
    path = config(tmp_path, command(SCRIPT, "stubborn", tmp_path / "pid"))
    with listening("serve", "--config", str(path), "--port", "0", cwd=ROOT) as url:
        assert answer(url) == 'Done:\nx = "hi"'
        pid = int((tmp_path / "pid").read_text())
        assert running(pid)
    assert not running(pid)


def test_the_proxy_starts_without_a_server_that_is_down(tmp_path: Path) -> None:
    path = config(tmp_path, command(SCRIPT, "leave"), command(SCRIPT) + ', name = "good"')
    with listening("serve", "--config", str(path), "--port", "0", cwd=ROOT) as url:
        assert answer(url) == 'Done:\nx = "hi"'


def test_the_proxy_does_not_start_without_a_server_that_it_requires(tmp_path: Path) -> None:
    path = config(tmp_path, command(REAL), command(SCRIPT, "leave") + ', name = "files", required = true')
    done = subprocess.run(
        [sys.executable, "-m", "asynclm.proxy.cli", "serve", "--config", str(path), "--port", "0"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "asynclm: the MCP server files can't be used: it ended with exit status 1; the end of its error output: bad key"
    ]


def test_the_proxy_can_be_stopped_while_a_server_is_being_started(tmp_path: Path) -> None:
    path = config(tmp_path, command(SCRIPT, "silent"))
    process = subprocess.Popen(
        [sys.executable, "-m", "asynclm.proxy.cli", "serve", "--config", str(path), "--port", "0"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    child = None
    while child is None:
        task = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        child = next((int(pid) for pid in task if "mcp_script" in Path(f"/proc/{pid}/cmdline").read_text()), None)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not running(child)


def test_tools_are_checked_and_called_without_a_proxy(tmp_path: Path) -> None:
    path = config(tmp_path, command(SCRIPT, "leave") + ', name = "down"', command(SCRIPT))

    def tools(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "asynclm.proxy.cli", "tools", "--config", path, *arguments],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    checked = tools("check")
    assert checked.returncode == 1
    assert checked.stdout.splitlines() == [
        "FAILED  mcp down: the MCP server down can't be used: "
        "it ended with exit status 1; the end of its error output: bad key",
        "ok      mcp mcp_script: 12 tools",
    ]
    assert checked.stderr == ""
    called = tools("call", "echo", '{"text": "hi"}')
    assert (called.returncode, called.stdout) == (0, '"hi"\n')
