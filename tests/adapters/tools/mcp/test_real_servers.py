"""Servers of the SDK's own server class, in another process, over both transports."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator

import pytest
from mcp_servers import Opened, opened, real, real_over_http, running, script

from asynclm.adapters.tools.mcp.settings import McpSettings
from asynclm.adapters.tools.options import Options
from asynclm.cml.tools import CallError, Effect


@pytest.fixture(params=["stdio", "http", "http json"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Opened]:
    if request.param == "stdio":
        async with opened(real()) as it:
            yield it
    else:
        arguments = ["--json"] if "json" in request.param else []
        async with (
            real_over_http(*arguments) as port,
            opened(McpSettings(url=f"http://127.0.0.1:{port}/mcp", name="real")) as it,
        ):
            yield it


async def test_tools_and_results(server: Opened) -> None:
    add = server.tools["add"].spec
    assert add.description == "Add two numbers."
    assert list(add.parameters["properties"]) == ["a", "b"]
    assert {name: server.tools[name].spec.effect for name in ("add", "say_text", "refuse", "picture")} == {
        "add": Effect.READ_ONLY,
        "say_text": Effect.IDEMPOTENT,
        "refuse": Effect.EFFECTFUL,
        "picture": Effect.EFFECTFUL,
    }
    assert await server.call("add", a=1, b=2) == {"total": 3}
    assert await server.call("say_text", text='{"a": [1]}') == {"a": [1]}
    assert await server.call("picture") == ["here", {"type": "image", "mime_type": "image/png", "bytes": 3}]
    with pytest.raises(CallError, match=r"^not today$") as caught:
        await server.call("refuse")
    assert caught.value.type == "tool_error"
    with pytest.raises(CallError, match=r"validation error|Error executing|[Ii]nvalid"):
        await server.call("add", a="no number")


# With JSON answers the sign of a cancellation is the closed request, which the SDK's server doesn't look for.
@pytest.mark.parametrize("server", ["stdio", "http"], indirect=True)
async def test_calls_run_side_by_side_and_a_cancelled_one_is_cancelled_there(server: Opened) -> None:
    hanging = asyncio.create_task(server.call("hang"))
    assert await server.call("until_begun") == {"result": "begun"}
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert await server.call("until_cancelled") == {"result": "cancelled"}


async def test_tools_that_come_later(server: Opened) -> None:
    assert await server.call("learn", name="shout") == {"result": "learned"}
    assert "shout" in await server.changes.get()
    assert await server.call("shout", text="hi") == {"result": "shout: hi"}


async def test_pending_calls_fail_when_the_server_dies(server: Opened) -> None:
    hanging = asyncio.create_task(server.call("hang"))
    await server.call("until_begun")
    with pytest.raises(CallError, match=r"the MCP server .* was gone before it answered; it is being re"):
        await server.call("die")
    with pytest.raises(CallError, match="was gone before it answered"):
        await hanging


async def test_a_server_that_died_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(real(name="demo")) as server:
        first = (await server.call("pid"))["result"]
        with pytest.raises(CallError):
            await server.call("die")
        with pytest.raises(CallError, match="the MCP server demo is being restarted; try again later"):
            await server.call("add", a=1)
        assert (await server.until_back("pid"))["result"] != first
    assert "MCP server demo: it ended with exit status 3; trying again in" in caplog.text
    assert not running(first)


async def test_a_server_over_http_that_comes_back() -> None:
    async with real_over_http() as port:
        settings = McpSettings(url=f"http://127.0.0.1:{port}/mcp", name="demo")
        async with opened(settings) as server:
            with pytest.raises(CallError):
                await server.call("die")
            with pytest.raises(
                CallError, match=r"the MCP server demo (was gone before it answered; it )?is being reconnected"
            ):
                await server.call("add", a=1)
            async with real_over_http(port=port):
                assert await server.until_back("add", a=1) == {"total": 2}


async def test_a_server_that_is_down_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    async with real_over_http() as port:
        pass
    async with opened(McpSettings(url=f"http://127.0.0.1:{port}/mcp?key=secret-key", name="demo")) as server:
        assert not server.tools
        assert "MCP server demo: it can't be reached" in caplog.text
        async with real_over_http(port=port):
            assert "add" in await server.changes.get()
            assert await server.call("add", a=1) == {"total": 2}
    assert "secret-key" not in caplog.text


async def test_progress_keeps_a_call_alive(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(real(silence_s=3.0)) as server:
        with caplog.at_level(logging.DEBUG, "asynclm"):
            assert await server.call("work", steps=8, step_s=0.5) == {"result": "worked"}
        assert "work: progress 8 of 8 step 8" in caplog.text
        assert server.tools["work"].spec.timeout_s == 30


async def test_a_call_without_any_sign_of_life_is_given_up() -> None:
    async with opened(real(silence_s=0.3)) as server:
        with pytest.raises(CallError, match=r"sent nothing about the call for 0\.3 s") as caught:
            await server.call("hang")
        assert caught.value.type == "timeout"
        assert await server.call("until_cancelled") == {"result": "cancelled"}


async def test_a_server_gets_few_variables() -> None:
    environ = {"PATH": os.environ["PATH"], "TOKEN": "t0ken", "OTHER": "no"}
    async with opened(real(env={"MODE": "test"}, env_from=("TOKEN", "ABSENT")), environ=environ) as server:
        found = await server.call("variables")
        assert {key: found.get(key) for key in ("TOKEN", "MODE", "OTHER", "ABSENT")} == {
            "TOKEN": "t0ken",
            "MODE": "test",
            "OTHER": None,
            "ABSENT": None,
        }


async def test_headers_from_the_environment() -> None:
    async with real_over_http() as port:
        settings = McpSettings(
            url=f"http://127.0.0.1:{port}/mcp",
            headers={"x-team": "a"},
            headers_env={"x-api-key": "KEY", "x-none": "ABSENT"},
            bearer_env="TOKEN",
        )
        async with opened(settings, environ={"KEY": "k3y", "TOKEN": "t0ken"}) as server:
            found = await server.call("headers")
    assert [found.get(name) for name in ("x-team", "x-api-key", "x-none", "authorization")] == [
        "a",
        "k3y",
        None,
        "Bearer t0ken",
    ]


async def test_keys_that_are_echoed_are_masked() -> None:
    settings = real(env={"API_KEY": 'ab"cd-1234', "ROOT": "/srv/projects"}, env_from=("GITHUB_TOKEN",))
    async with opened(settings, environ={"GITHUB_TOKEN": "ghp_123456"}) as server:
        found = await server.call("variables")
        assert [found[name] for name in ("API_KEY", "ROOT", "GITHUB_TOKEN")] == ["[key]", "/srv/projects", "[key]"]
        assert await server.call("say_text", text="bad key ghp_123456, 1") == "bad key [key], 1"
        with pytest.raises(CallError) as caught:
            await server.call("add", a="ghp_123456")
        assert "[key]" in caught.value.message
        assert "ghp_123456" not in caught.value.message


async def test_which_tools_and_under_which_names() -> None:
    async with opened(real(), include=["a*", "say-*"], exclude=["ad?"], prefix="demo") as server:
        assert list(server.tools) == ["demo_say_text"]
        assert await server.call("demo_say_text", text="hi") == "hi"


async def test_a_pattern_that_is_no_tool_s_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(script(), include=["echo", "gro*", "serch*"]) as server:
        assert list(server.tools) == ["echo", "grow"]
    assert [record.getMessage() for record in caplog.records] == [
        "MCP server script: include: no tool is called 'serch*'"
    ]


async def test_overrides_for_single_tools(caplog: pytest.LogCaptureFixture) -> None:
    overrides = {
        "say-text": Options(name="say", description="Talk.", cache_s=5),
        "add": Options(effect=Effect.EFFECTFUL, timeout_s=3),
        "subtract": Options(timeout_s=3),
    }
    async with opened(real(name="demo"), options=Options(timeout_s=9), overrides=overrides) as server:
        say, add, picture = (server.tools[name].spec for name in ("say", "add", "picture"))
        assert (say.description, say.cache_s, say.effect, say.timeout_s) == ("Talk.", 5, Effect.IDEMPOTENT, 9)
        assert (add.effect, add.timeout_s) == (Effect.EFFECTFUL, 3)
        assert picture.timeout_s == 9
        assert await server.call("say", text="hi") == "hi"
    assert "MCP server demo: overrides: there is no tool 'subtract'" in caplog.text


async def test_closing_ends_calls() -> None:
    async with opened(real()) as server:
        hanging = asyncio.create_task(server.call("hang"))
        await server.call("until_begun")
        pid = server.source.server.pid
    with pytest.raises(CallError, match=r"is being closed|was gone"):
        await hanging
    assert pid is not None
    assert not running(pid)
