"""What stories of a client with tools of its own share: its tool, one of the proxy's, and what is said of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from harness import Proxy
from upstream import Body

from asynclm.adapters.tools import tool

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Do it."}]
ASK = "[CALL] a [HEAD] ask_user(question='Sure?') [END]\n"
LOOK = "[CALL] b [HEAD] look(key='x') [END]\n"
TRAP = "[TRAP][END]"


def function(name: str, **properties: str) -> dict[str, Any]:
    schema = {name: {"type": kind} for name, kind in properties.items()}
    parameters = {"type": "object", "properties": schema, "required": list(schema), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "It.", "parameters": parameters}}


TOOLS = [function("ask-user", question="string")]


class Looks:
    """A tool of the proxy's that returns when it is told to."""

    def __init__(self, *, at_once: bool = False, effect: str = "effectful") -> None:
        self.keys: list[str] = []
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.effect = effect
        if at_once:
            self.go.set()

    @property
    def tool(self) -> Callable[..., Any]:
        @tool(effect=self.effect)
        async def look(key: str) -> str:
            """Look a thing up."""
            self.keys.append(key)
            self.began.set()
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            return f"value of {key}"

        return look


async def ask(proxy: Proxy, messages: list[Any], **options: Any) -> Any:
    return await proxy.client().chat.completions.with_raw_response.create(
        model="m", messages=messages, **{"tools": TOOLS, **options}
    )


def back(messages: list[Any], message: Any, results: dict[int, str] | None = None) -> list[Any]:
    """The messages of the client's next request: the assistant's, and what its tools returned (all "yes")."""
    given = dict.fromkeys(range(len(message.tool_calls)), "yes") if results is None else results
    told = [{"role": "tool", "tool_call_id": message.tool_calls[n].id, "content": text} for n, text in given.items()]
    return [*messages, message.model_dump(exclude_none=True), *told]


def told(body: Body) -> str:
    """The last message of an upstream request."""
    assert body["messages"][-1]["role"] == "user"
    text: str = body["messages"][-1]["content"]
    return text


def said(body: Body) -> str:
    """All messages of an upstream request, as they begin whatever is sent on top of them."""
    return json.dumps(body["messages"])[:-1]


def kinds(proxy: Proxy, run: str) -> list[str]:
    timeline = proxy.server.registry.timeline(run)
    return [] if timeline is None else [entry.kind for entry in timeline.entries]


async def noted(proxy: Proxy, run: str, kind: str) -> None:
    """Wait until the timeline says so."""
    while kind not in kinds(proxy, run):
        await asyncio.sleep(0)
