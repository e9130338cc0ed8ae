"""Servers over stdio that never answer, flood, send junk, die: scripted, in another process."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mcp_servers import opened, real, running, script

from asynclm.adapters.tools.mcp import reading, stdio
from asynclm.adapters.tools.mcp.backoff import Backoff
from asynclm.adapters.tools.mcp.settings import McpSettings
from asynclm.adapters.tools.mcp.source import McpSource
from asynclm.adapters.tools.options import ToolDefinitionError
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.tools import CallError, Invocation


async def refused(settings: McpSettings, **options: object) -> str:
    """Why the proxy would not start with this server, which it requires."""
    source = McpSource(settings, **options)  # type: ignore[arg-type]
    with pytest.raises(ToolDefinitionError) as caught:
        await source.open(lambda tools: None)
    await source.aclose()
    said = str(caught.value)
    assert said.startswith(f"the MCP server {settings.shown} can't be used: ")
    assert "\n" not in said
    return said.partition("used: ")[2]


async def test_a_server_of_the_older_protocol() -> None:
    async with opened(script()) as server:
        assert await server.call("echo", text="hi") == "hi"
        assert await server.call("grow") == "grown"
        assert (await server.changes.get())[-1] == "grown"
        with pytest.raises(CallError, match="answered with what is no tool result"):
            await server.call("junk_result")


async def test_one_that_never_answers() -> None:
    assert await refused(script("silent", required=True, start_timeout_s=0.3)) == "it did not answer within 0.3 s"


async def test_one_that_is_no_mcp_server() -> None:
    said = await refused(script("chatter", required=True, start_timeout_s=2.5))
    assert said == ("it did not answer within 2.5 s; it sent what is no JSON-RPC message: 'Welcome to my server!'")


async def test_one_that_writes_a_line_without_end() -> None:
    said = await refused(script("endless", required=True, start_timeout_s=1.0))
    assert said.startswith("it did not answer within 1 s")


async def test_one_that_ends_at_once() -> None:
    settings = script("leave", required=True, env={"SECRET": "s3cret-value"})
    assert await refused(settings) == "it ended with exit status 1; the end of its error output: bad key [...]"


@pytest.mark.parametrize(
    ("command", "cwd", "why"),
    [
        ("no-such-program", None, "it can't be started: No such file or directory: no-such-program"),
        ("/etc/hostname", None, "it can't be started: "),
        ("true", "no/such/folder", "it can't be started: No such file or directory: "),
        ("true", None, "it ended with exit status 0"),
    ],
)
async def test_one_that_cannot_be_started(tmp_path: Path, command: str, cwd: str | None, why: str) -> None:
    settings = McpSettings(command=command, cwd=cwd, required=True)
    assert (await refused(settings, base=tmp_path)).startswith(why)


async def test_one_that_is_not_required_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(script("leave")) as server:
        assert not server.tools
        while caplog.text.count("MCP server script: it ended with exit status 1") < 3:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", ["first", "last"])
async def test_a_result_of_50_megabytes(way: str) -> None:
    async with opened(script()) as server:
        with pytest.raises(
            CallError, match=r"the result is a message of 500000\d\d bytes, more than max_message_bytes"
        ):
            await server.call("huge", text=way)
        assert await server.call("echo", text="still there") == "still there"


async def test_junk_between_messages(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(script()) as server:
        assert await server.call("junk") == "after junk"
        assert await server.call("junk") == "after junk"
        with pytest.raises(CallError, match="the MCP server script answered with what is no tool result"):
            await server.call("junk_result")
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage()[:75] for record in warnings] == [
        "MCP server script sent what is no JSON-RPC message: 'Listening on port 3000'"[:75]
    ]


async def test_a_flood_before_an_answer(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(reading, "_RATE", 30.0)
    monkeypatch.setattr(reading, "_BURST", 100.0)
    async with opened(script()) as server:
        assert await server.call("flood", text="160") == "after the flood"
    assert caplog.text.count("MCP server script sends too many messages, and is read more slowly from now on") == 1


async def test_a_flood_without_end_leaves_room_for_others() -> None:
    async with opened(script()) as flooding, opened(script()) as other:
        assert await flooding.call("flood_forever") == "flooding"
        for number in range(50):
            assert await other.call("echo", text=str(number)) == str(number)


async def test_a_call_that_is_never_answered() -> None:
    async with opened(script(silence_s=0.2)) as server:
        with pytest.raises(CallError, match=r"sent nothing about the call for 0\.2 s"):
            await server.call("silent")
        assert await server.call("echo", text="hi") == "hi"


async def test_the_end_of_its_error_output_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(script(env={"TOKEN": "t0ken-value"})) as server:
        with pytest.raises(CallError, match="was gone before it answered"):
            await server.call("exit", text="x" * 100_000 + "disk\nfull, token t0ken-value")
        assert await server.until_back("echo", text="hi") == "hi"
    assert "it ended with exit status 7; the end of its error output: ...xxx" in caplog.text
    assert "disk full, token [...]; trying again in" in caplog.text
    assert "t0ken-value" not in caplog.text
    assert len(caplog.text) < 2000


async def test_one_whose_child_keeps_its_pipes_open() -> None:
    async with opened(script()) as server:
        child = int(await server.call("orphan"))
        assert await server.until_back("echo", text="hi") == "hi"
        assert not running(child)


async def test_one_that_reads_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(stdio, "_UNREAD_S", 0.2)
    async with opened(script()) as server:
        await server.call("deaf")
        with pytest.raises(CallError, match="was gone before it answered"):
            await server.call("echo", text="x" * 1_000_000)
        assert await server.until_back("echo", text="hi") == "hi"
    assert "MCP server script: it has read nothing for 0.2 s; trying again" in caplog.text


@pytest.mark.parametrize("transport", [script, real])
async def test_many_calls_at_once(transport: Callable[[], McpSettings]) -> None:
    async with opened(transport()) as server:
        name = "echo" if transport is script else "say_text"
        said = [f"{number} " * 100 for number in range(300)]
        assert await asyncio.gather(*(server.call(name, text=one) for one in said)) == said


async def test_calls_cancelled_in_every_state_leave_a_server_that_works() -> None:
    async with opened(script()) as server:
        for turns in range(30):
            call = asyncio.create_task(server.call("echo", text="x" * 100_000))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        assert await server.call("echo", text="hi") == "hi"


async def test_closing_while_it_waits_for_the_next_attempt() -> None:
    source = McpSource(script("leave"), backoff=Backoff(1000, 1000))
    assert await source.open(lambda tools: None) == []
    await source.aclose()


async def test_what_it_asks_of_its_client_is_declined() -> None:
    async with opened(script()) as server:
        answer = await server.call("ask")
        assert answer["id"] == "s1"
        assert answer["error"]["message"] == "Sampling not supported"


UNWRITABLE = """
import json, sys
SCHEMA = {"type": "object", "properties": {"file-path": {"type": "string"}, "from": {"type": "integer"}}}
for line in sys.stdin:
    message = json.loads(line)
    match message.get("method"):
        case "initialize":
            info = {"name": "x", "version": "1"}
            result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
        case "tools/list":
            result = {"tools": [{"name": "read", "inputSchema": {**SCHEMA, "required": ["file-path"]}}]}
        case "tools/call":
            result = {"content": [], "structuredContent": message["params"]["arguments"]}
        case _:
            continue
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


async def test_arguments_that_no_call_can_be_written_with() -> None:
    async with opened(McpSettings(command=sys.executable, args=("-c", UNWRITABLE), name="odd")) as server:
        box = Toolbox(server.tools.values())
        spec, arguments = box.check(Invocation("read", ("a",), {"from_": 1}))
        assert spec.parameters["required"] == ["file_path"]
        assert await box["read"].run(arguments) == {"file-path": "a", "from": 1}


MISFITS = """
import json, sys
PATTERN = {"type": "object", "properties": {"name": {"type": "string", "pattern": "^(a+)+$"}}}
TOOLS = [
    {"name": "slow", "inputSchema": PATTERN, "outputSchema": PATTERN},
    {"name": "odd", "inputSchema": {"type": "object", "properties": {"a": {"$dynamicRef": "#b"}}}},
    {"name": "endless", "inputSchema": {"type": "object", "allOf": [{"$ref": "#"}]}},
]
RESULTS = {
    "initialize": {
        "protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}
    },
    "tools/list": {"tools": TOOLS},
    "tools/call": {"content": [], "structuredContent": {"name": "a" * 40 + "!"}},
}
for line in sys.stdin:
    message = json.loads(line)
    if message.get("method") in RESULTS:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": RESULTS[message["method"]]}), flush=True)
"""


async def test_schemas_that_would_hold_up_everything(caplog: pytest.LogCaptureFixture) -> None:
    """Those of arguments and of results; a tool with one that can't be used takes no other with it."""
    async with opened(McpSettings(command=sys.executable, args=("-c", MISFITS), name="misfits")) as server:
        assert list(server.tools) == ["slow"]
        box = Toolbox(server.tools.values())
        spec, arguments = box.check(Invocation("slow", (), {"name": "a" * 40 + "!"}))
        assert await box[spec.name].run(arguments) == {"name": "a" * 40 + "!"}
    assert "tool 'odd': its schema has no '#b'" in caplog.text
    assert "tool 'endless': its schema applies itself to one value without end" in caplog.text


async def test_a_list_without_end(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(script("pages")) as server:
        assert len(server.tools) == 1000
    assert "MCP server script lists too many tools; only the first 1000 are used" in caplog.text


async def test_tools_that_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(script("odd")) as server:
        assert list(server.tools) == ["a_b", "class_", "_2d", "files_read"]
    assert "a tool is left out: tool 'bad': its schema is invalid at properties.a.type" in caplog.text
    assert "a tool is left out: tool 'a_b': there is another one of that name" in caplog.text


async def test_one_that_does_not_want_to_end(tmp_path: Path) -> None:
    async with opened(script("stubborn", str(tmp_path / "pid"))) as server:
        assert await server.call("echo", text="hi") == "hi"
        pid = int((tmp_path / "pid").read_text())
        assert running(pid)
    assert not running(pid)


async def test_closing_while_it_is_being_started() -> None:
    source = McpSource(script("silent"))
    opening = asyncio.create_task(source.open(lambda tools: None))
    while source.server.pid is None:
        await asyncio.sleep(0.01)
    pid = source.server.pid
    opening.cancel()
    await source.aclose()
    assert not running(pid)
    await asyncio.gather(opening, return_exceptions=True)


async def test_closing_what_was_never_opened() -> None:
    await McpSource(script()).aclose()


async def test_a_name_that_another_tool_has() -> None:
    async with opened(script()) as server:
        renamed = server.tools["echo"].renamed()  # type: ignore[attr-defined]
        assert renamed.spec.name == "script_echo"
        assert await renamed.run({"text": "hi"}) == "hi"


def test_the_variables_of_the_proxy_are_no_secret_of_a_server() -> None:
    assert os.environ["PATH"] not in script().secrets(os.environ)
