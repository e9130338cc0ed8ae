"""Servers over HTTP that misbehave: scripted, on a real socket, of the protocol of 2025."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from mcp_servers import opened

from asynclm.adapters.tools.mcp.settings import McpSettings
from asynclm.adapters.tools.mcp.source import McpSource
from asynclm.adapters.tools.options import ToolDefinitionError
from asynclm.cml.tools import CallError

Answer = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]
SESSION = "secret-session-id"


class Scripted:
    """A server whose calls are answered by `answer`."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.sessions = 0
        self.told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()  # notifications
        self.left = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "DELETE":
            self.left.set()
            return web.Response()
        if request.method != "POST":
            return web.Response(status=405)
        message = await request.json()
        if "id" not in message:
            self.told.put_nowait(message)
            return web.Response(status=202)
        match message["method"]:
            case "server/discover":
                return web.Response(status=404)
            case "initialize":
                self.sessions += 1
                capabilities = {"tools": {}}
                info = {"name": "scripted", "version": "1"}
                result = {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": info}
                return answered(message, result, **{"mcp-session-id": f"{SESSION}-{self.sessions}"})
            case "tools/list":
                return answered(message, {"tools": [{"name": "act", "inputSchema": {"type": "object"}}]})
        return await self.answer(request, message)


def answered(message: Any, result: Any, **headers: str) -> web.Response:
    return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": result}, headers=headers)


def text(said: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": said}]}


@contextlib.asynccontextmanager
async def address_of(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/mcp", handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
    finally:
        await runner.cleanup()


async def events(request: web.Request, *data: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        for one in data:
            await response.write(f"data: {one}\n\n".encode())
    return response


async def fifty_megabytes(request: web.Request, message: Any) -> web.StreamResponse:
    return answered(message, text("x" * 50_000_000))


async def endless_json(request: web.Request, message: Any) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" " * 65_536)
    return response


async def endless_event(request: web.Request, message: Any) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        await response.write(b"data: ")
        while True:
            await response.write(b"x" * 65_536)
    return response


async def html(request: web.Request, message: Any) -> web.StreamResponse:
    return web.Response(text="<html>It works!</html>", content_type="text/html")


async def bad_json(request: web.Request, message: Any) -> web.StreamResponse:
    return web.Response(text="{", content_type="application/json")


async def bad_event(request: web.Request, message: Any) -> web.StreamResponse:
    return await events(request, "{")


async def no_event(request: web.Request, message: Any) -> web.StreamResponse:
    return await events(request)


async def failing(request: web.Request, message: Any) -> web.StreamResponse:
    return web.Response(status=500, text="at line 12: password is hunter2")


async def refusing(request: web.Request, message: Any) -> web.StreamResponse:
    return web.json_response({"error": "unauthorized"}, status=401)


async def json_rpc_error(request: web.Request, message: Any) -> web.StreamResponse:
    error = {"code": -32602, "message": "act is not for you"}
    return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error}, status=400)


async def redirect(request: web.Request, message: Any) -> web.StreamResponse:
    return web.Response(status=307, headers={"location": "http://169.254.169.254/latest/?token=abc"})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (fifty_megabytes, "it has more than max_message_bytes"),
        (endless_json, "it has more than max_message_bytes"),
        (endless_event, "SSE stream failed"),
        (html, "Unexpected content type: text/html"),
        (bad_json, "Failed to parse JSON response"),
        (bad_event, "Failed to parse SSE message"),
        (no_event, "SSE stream ended without a response"),
        (failing, "it answered with HTTP status 500"),
        (refusing, "it answered with HTTP status 401; are its key and headers right?"),
        (json_rpc_error, "act is not for you"),
        (redirect, "Redirect to http://169.254.169.254/latest/ not followed"),
    ],
)
async def test_an_answer_that_is_none_is_the_error_of_its_call(
    answer: Answer, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = Scripted(answer)
    async with address_of(scripted.handle) as url, opened(McpSettings(url=url, name="web")) as server:
        for _ in range(2):
            with pytest.raises(CallError, match="the MCP server web: ") as caught:
                await server.call("act")
            assert why in caught.value.message
            assert len(caught.value.message) < 500
    assert scripted.sessions == 1  # the connection has stayed
    assert scripted.left.is_set()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_session_that_the_server_has_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(request: web.Request, message: Any) -> web.StreamResponse:
        if request.headers["mcp-session-id"] == f"{SESSION}-1":
            return web.Response(status=404)
        return answered(message, text("new session"))

    async with address_of(Scripted(answer).handle) as url, opened(McpSettings(url=url, name="web")) as server:
        with pytest.raises(CallError, match="the MCP server web was gone before it answered; it is being reconnected"):
            await server.call("act")
        assert await server.until_back("act") == "new session"
    assert "MCP server web: it has forgotten the session; trying again" in caplog.text
    assert SESSION not in caplog.text


async def test_a_cancelled_call_is_told() -> None:
    begun = asyncio.Event()

    async def answer(request: web.Request, message: Any) -> web.StreamResponse:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    scripted = Scripted(answer)
    async with address_of(scripted.handle) as url, opened(McpSettings(url=url, name="web")) as server:
        call = asyncio.create_task(server.call("act"))
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while (told := await scripted.told.get())["method"] != "notifications/cancelled":
            pass
        assert set(told["params"]) >= {"requestId"}


async def test_progress_in_events_keeps_a_call_alive() -> None:
    async def answer(request: web.Request, message: Any) -> web.StreamResponse:
        token = message["params"]["_meta"]["progressToken"]
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for step in range(6):
            params = {"progressToken": token, "progress": step}
            progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}
            await response.write(f"data: {json.dumps(progress)}\n\n".encode())
            await asyncio.sleep(0.4)
        body = {"jsonrpc": "2.0", "id": message["id"], "result": text("worked")}
        await response.write(f"data: {json.dumps(body)}\n\n".encode())
        return response

    async with address_of(Scripted(answer).handle) as url, opened(McpSettings(url=url, silence_s=2.0)) as server:
        assert await server.call("act") == "worked"


async def refusal(handle: Callable[[web.Request], Awaitable[web.StreamResponse]], **settings: Any) -> str:
    async with address_of(handle) as url:
        source = McpSource(McpSettings(url=url, name="web", required=True, **settings), environ={"KEY": "k3y-value"})
        with pytest.raises(ToolDefinitionError) as caught:
            await source.open(lambda tools: None)
        await source.aclose()
        return str(caught.value).partition("can't be used: ")[2]


async def test_a_server_that_refuses() -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=401, text=request.headers["authorization"])

    said = await refusal(refuse, bearer_env="KEY")
    assert said == "it answered with HTTP status 401; are its key and headers right?"


async def test_a_server_that_never_answers() -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    assert await refusal(hang, start_timeout_s=0.3) == "it did not answer within 0.3 s"


async def test_a_server_that_is_something_else() -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>", content_type="text/html")

    assert "Unexpected content type: text/html" in await refusal(page)


async def test_a_server_that_compresses_though_it_is_told_not_to() -> None:
    async def bomb(request: web.Request) -> web.StreamResponse:
        assert request.headers["accept-encoding"] == "identity"
        response = web.json_response({})
        response.enable_compression(web.ContentCoding.gzip)
        response.headers["content-encoding"] = "gzip"
        return response

    assert "compresses" in await refusal(bomb)
