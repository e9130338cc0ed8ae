"""A real MCP server, of the SDK's own server class: over stdio, or with `http` over streamable HTTP.

Over HTTP it prints its port. `--json` answers with JSON instead of events.
"""

import asyncio
import os
import socket
import sys

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import BaseModel

server = MCPServer("real")
begun, let, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()


class Sum(BaseModel):
    total: int


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int = 1) -> Sum:
    """Add two numbers."""
    return Sum(total=a + b)


@server.tool(name="say-text", annotations=ToolAnnotations(idempotent_hint=True), structured_output=False)
def say_text(text: str) -> str:
    """Say something."""
    return text


@server.tool(structured_output=False)
def picture() -> CallToolResult:
    """A text and an image."""
    text = TextContent(text="here")
    return CallToolResult(content=[text, ImageContent(data="AAAA", mime_type="image/png")])


@server.tool(annotations=ToolAnnotations(destructive_hint=True, idempotent_hint=True))
def refuse() -> CallToolResult:
    """Always an error."""
    return CallToolResult(content=[TextContent(text="not today")], is_error=True)


@server.tool()
async def hang(ctx: Context) -> str:
    """Wait until it is let or cancelled."""
    begun.set()
    try:
        await let.wait()
    except asyncio.CancelledError:
        cancelled.set()
        raise
    return "let"


@server.tool()
async def until_begun() -> str:
    """Wait until `hang` has begun."""
    await begun.wait()
    return "begun"


@server.tool()
async def until_cancelled() -> str:
    """Wait until `hang` was cancelled."""
    await cancelled.wait()
    return "cancelled"


@server.tool()
async def work(steps: int, step_s: float, ctx: Context) -> str:
    """Work in steps, and report each."""
    for step in range(steps):
        await asyncio.sleep(step_s)
        await ctx.report_progress(step + 1, steps, f"step {step + 1}")
    return "worked"


@server.tool()
async def learn(name: str, ctx: Context) -> str:
    """Add a tool."""

    def learned(text: str) -> str:
        return f"{name}: {text}"

    server.add_tool(learned, name=name)
    await ctx.notify_tools_changed()
    return "learned"


@server.tool()
def pid() -> int:
    """The server's process."""
    return os.getpid()


@server.tool()
def die() -> None:
    """End at once."""
    os._exit(3)


@server.tool()
def headers(ctx: Context) -> dict[str, str]:
    """The headers of the request."""
    return dict(ctx.headers or {})


@server.tool()
def variables() -> dict[str, str]:
    """The environment."""
    return dict(os.environ)


def main() -> None:
    if "http" not in sys.argv:
        server.run()
        return
    listening = socket.create_server(("127.0.0.1", int(os.environ.get("MCP_PORT", "0"))))
    print(listening.getsockname()[1], flush=True)
    app = server.streamable_http_app(json_response="--json" in sys.argv)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])


if __name__ == "__main__":
    main()
