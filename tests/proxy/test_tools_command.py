"""`asynclm tools`, on tools of every source."""

import json
import sys
from pathlib import Path

import pytest
from commands import ROOT

from asynclm.proxy.cli import main

TOOLS = '''
"""Tools."""
import asyncio

async def add(x: int, y: int = 1) -> int:
    """Add two numbers.

    Args:
        x: The first.
    """
    return x + y

def fail(why: str):
    raise RuntimeError(why)

async def hang():
    await asyncio.Event().wait()

def long() -> str:
    return "x" * 1000
'''
PYTHON = "".join(f'[[tools]]\npython = "tools.py:{name}"\n' for name in ("add", "fail", "hang", "long"))
DOCUMENT = {
    "openapi": "3.1.0",
    "servers": [{"url": "https://api.example"}],
    "paths": {"/pets": {"get": {"operationId": "listPets", "summary": "List the pets."}}},
}
OPENAPI = '[[tools]]\nopenapi = "pets.json"\nprefix = "api"\n'
MCP = f"""
[[tools]]
mcp = {{ command = {json.dumps(sys.executable)}, args = [{json.dumps(str(ROOT / "examples/library_server.py"))}] }}
include = ["find_books"]
overrides = {{ find_books = {{ estimate_ms = 7 }} }}
"""


class Tools:
    """The command in a folder with a config."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, toml: str, *arguments: str) -> tuple[int, str, str]:
        """Exit status, and what was printed and complained of."""
        (self.folder / "asynclm.toml").write_text('[upstreams.main]\nkind = "simulated"\n' + toml)
        status = main(["tools", *arguments])
        out, err = self._capsys.readouterr()
        return status, out, err


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tools:
    (tmp_path / "tools.py").write_text(TOOLS)
    (tmp_path / "pets.json").write_text(json.dumps(DOCUMENT))
    monkeypatch.chdir(tmp_path)
    return Tools(tmp_path, capsys)


def test_list_shows_what_the_model_is_told(tools: Tools) -> None:
    status, out, err = tools(PYTHON + OPENAPI + MCP, "list")
    assert (status, err) == (0, "")
    assert out.startswith(
        "add(x: int, y: int = 1)\n  Add two numbers.\n  x: The first.\n  [effectful]\nfail(why: str)\n"
    )
    assert "api_listPets()\n  List the pets.\n  [read_only]\n" in out
    assert "find_books(topic: str" in out
    assert "~7 ms" in out


def test_list_as_json(tools: Tools) -> None:
    status, out, _ = tools(PYTHON + OPENAPI, "list", "--json")
    specs = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [spec["name"] for spec in specs] == ["add", "fail", "hang", "long", "api_listPets"]
    assert specs[0]["parameters"]["required"] == ["x"]
    assert specs[4]["effect"] == "read_only"


def test_list_of_none(tools: Tools) -> None:
    assert tools("", "list") == (0, "", "asynclm: there are no tools: name some in [[tools]]\n")


def test_check_finds_nothing_wrong(tools: Tools) -> None:
    status, out, err = tools(PYTHON + OPENAPI + MCP, "check")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "ok      python tools.py:add: 1 tool"
    assert lines[4] == "ok      openapi pets.json: 1 tool"
    assert lines[5] == "ok      mcp library_server: 1 tool"
    assert lines[6].startswith("ok      6 tools; what the model is told of them and of calling is ")


def test_check_finds_all_that_is_wrong(tools: Tools) -> None:
    (tools.folder / "bad.json").write_text('{"swagger": "2.0"}')
    toml = (
        '[[tools]]\npython = "tools.py:ad"\n'
        + OPENAPI
        + '[[tools]]\nopenapi = "bad.json"\n'
        + '[[tools]]\nopenapi = "http://127.0.0.1:9/api?key=secret"\nhttp = { retries = 0 }\n'
        + '[[tools]]\nmcp = { command = "no-such-program" }\n'
    )
    status, out, _ = tools(toml, "check")
    lines = out.splitlines()
    assert status == 1
    assert lines[0] == "FAILED  python tools.py:ad: tools.py:ad: it has no 'ad'; did you mean 'add'?"
    assert lines[1] == "ok      openapi pets.json: 1 tool"
    assert lines[2].startswith("FAILED  openapi bad.json: bad.json: it is of version 2.0 (Swagger)")
    assert "127.0.0.1 is a loopback address, which allow_private does not allow" in lines[3]
    assert lines[4] == (
        "FAILED  mcp no-such-program: the MCP server no-such-program can't be used: "
        "it can't be started: No such file or directory: no-such-program"
    )
    assert "secret" not in out


def test_check_shows_no_password(tools: Tools) -> None:
    status, out, _ = tools(
        '[[tools]]\nopenapi = "http://ann:s3cret@127.0.0.1:9/api"\nhttp = { retries = 0 }\n', "check"
    )
    assert status == 1
    assert out.startswith("FAILED  openapi http://127.0.0.1:9/api: ")
    assert "s3cret" not in out


def test_paths_in_a_home_that_is_not_there(tools: Tools) -> None:
    toml = (
        '[[tools]]\npython = "~no-such-user/t.py:f"\n'
        '[[tools]]\nopenapi = "~no-such-user/api.json"\n'
        '[[tools]]\nmcp = { command = "true", cwd = "~no-such-user", name = "m" }\n'
    )
    status, out, _ = tools(toml, "check")
    assert status == 1
    assert [line.rpartition(": ")[2] for line in out.splitlines()] == [
        "there is no such home folder",
        "there is no such home folder",
        "there is no such home folder as that of cwd",
    ]


@pytest.mark.parametrize("arguments", ['{"x":' * 5000, '{"x": [' + "[" * 5000 + "]" * 5000 + "]}", "\udcff"])
def test_arguments_that_are_none_are_told_in_one_line(tools: Tools, arguments: str) -> None:
    status, out, err = tools(PYTHON, "call", "add", arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("asynclm: the arguments ")


def test_check_finds_what_does_not_go_together(tools: Tools) -> None:
    status, out, _ = tools(PYTHON + '[[tools]]\npython = "tools.py:long"\nname = "add"\n', "check")
    assert status == 1
    assert out.splitlines()[-1] == "FAILED  all together: two tools are named 'add': give one of them another name"


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (("add", '{"x": 2, "y": 3}'), "5\n"),
        (("add", '{"x": 2}'), "3\n"),
        (("find_books", '{"topic": "mountains"}'), '"id":"b3"'),
    ],
)
def test_call(tools: Tools, arguments: tuple[str, ...], out: str) -> None:
    status, said, err = tools(PYTHON + MCP, "call", *arguments)
    assert (status, err) == (0, "")
    assert out in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ad",), "asynclm: unknown_tool: there is no tool 'ad'; did you mean 'add'?"),
        (("add",), "asynclm: invalid_arguments: add() missing 1 required argument: 'x'"),
        (("add", '{"x": "a"}'), "asynclm: invalid_arguments: add() argument 'x': 'a' is not of type 'integer'"),
        (("fail", '{"why": "so\\nit is"}'), "asynclm: tool_error: RuntimeError: so it is"),
        (("hang",), "asynclm: timeout: hang() did not return within 0.05 s"),
    ],
)
def test_call_that_fails(tools: Tools, arguments: tuple[str, ...], said: str) -> None:
    assert tools("[limits]\ntool_timeout_s = 0.05\n" + PYTHON, "call", *arguments) == (1, "", said + "\n")


def test_call_is_bounded_like_the_proxys(tools: Tools) -> None:
    status, out, _ = tools("[limits]\nmax_result_bytes = 300\n" + PYTHON, "call", "long")
    assert status == 0
    assert json.loads(out)["truncated"] is True


@pytest.mark.parametrize(
    ("toml", "arguments", "said"),
    [
        (
            PYTHON,
            ("call", "add", "[1]"),
            'asynclm: the arguments must be a JSON object, such as \'{"city": "Oslo"}\': ',
        ),
        (PYTHON, ("call", "add", "x=1"), "asynclm: the arguments must be a JSON object"),
        ("[[tools]]\nname = 'x'\n", ("list",), "tools[0]: must say where the tool is"),
        ('[[tools]]\npython = "tools.py:ad"\n', ("list",), "asynclm: tools.py:ad: it has no 'ad'"),
        ('[[tools]]\nopenapi = "none.json"\n', ("call", "x"), "none.json can't be read: No such file or directory"),
    ],
)
def test_what_can_not_even_begin(tools: Tools, toml: str, arguments: tuple[str, ...], said: str) -> None:
    status, out, err = tools(toml, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
