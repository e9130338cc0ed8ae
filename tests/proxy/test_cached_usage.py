"""The client's usage says how much of the run's prompts was read from the provider's cache, over all streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from harness import Proxy, proxy_for
from openai.types import CompletionUsage
from upstream import Answer, Body, ScriptedUpstream


def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


QUESTION = [{"role": "user", "content": "What is 1 + 2, and 3 more?"}]
FIRST, SECOND = "[CALL] a [HEAD] add(x=1, y=2) [END]", "[CALL] b [HEAD] add(x=3, y=3) [END]"
both_ways = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


async def ask(proxy: Proxy, policy: str, stream: bool) -> tuple[CompletionUsage, list[int]]:
    """The usage that the client gets; and the cached tokens in the run's timeline."""
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    raw = await proxy.client().chat.completions.with_raw_response.create(
        model="m", messages=QUESTION, stream=stream, extra_headers={"x-asynclm-policy": policy}, **options
    )
    answer = raw.parse()
    usage = [chunk async for chunk in answer][-1].usage if stream else answer.usage
    timeline = proxy.server.registry.timeline(raw.headers["x-asynclm-run-id"])
    assert timeline is not None
    return usage, [entry.data.get("cached_tokens", 0) for entry in timeline.entries if entry.kind == "usage"]


@both_ways
async def test_resumes_are_added_up(stream: bool) -> None:
    script = [
        Answer(FIRST, "[TRAP", usage=(1500, 20)),
        Answer(SECOND, "[TRAP", usage=(1540, 20), cached=1408),
        Answer("It is 6.", usage=(1580, 4), cached=1536),
    ]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, add) as proxy:
        usage, noted = await ask(proxy, "coalesce", stream)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4620, 44, 4664)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 1408 + 1536
    assert noted == [0, 1408, 1536]


@both_ways
async def test_branches_are_added_up(stream: bool) -> None:
    async def late(x: int) -> int:
        """Comes when the branch of the other call is there."""
        await upstream.until(lambda: len(upstream.requests) > 1)
        return x

    def script(body: Body) -> Answer:
        said = str(body["messages"][1:])
        cached = {(True, False): 100, (False, True): 20}.get(("[INTR] a" in said, "[INTR] b" in said))
        if "[INTR]" not in said:
            return Answer(FIRST, "[CALL] b [HEAD] late(x=1) [END]", "[TRAP")
        return Answer("[TRAP", cached=cached) if cached is not None else Answer("It is 6.", cached=3)

    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, add, late) as proxy:
        usage, noted = await ask(proxy, "fork", stream)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == sum(noted)
    assert {100, 3} <= set(noted)


async def test_what_was_cut_counts_as_nothing_cached() -> None:
    hold = asyncio.Event()
    script = [
        Answer(FIRST, "[TRAP][END]", " and on", hold=hold, hold_at=2, cached=1000),
        Answer("It is 6.", usage=(1540, 4), cached=1408),
    ]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, add) as proxy:
        usage, noted = await ask(proxy, "coalesce", stream=False)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 1408
    assert noted == [1408]
