"""Resumes use the connections of the streams before them.

That is so where a stream ends by itself: at a trap (the stop sequence) or with the answer. One that is cut in the
middle of its text costs its connection: HTTP/1.1 knows no other way to make a server stop. So `sync` and `immediate`,
which cut, are not held to it.
"""

from __future__ import annotations

import pytest
from harness import proxy_for
from recording import RecordingUpstream

from asynclm.adapters.models.simulated.task import Node, Task, encode_task

AFTER = {"a0": (), "b0": (), "c0": (), "a1": ("a0",), "b1": ("b0",), "a2": ("a1",), "d": ("a2", "b1", "c0")}
TASK = encode_task(Task(tuple(Node(name, f"step(name={name!r})", after, 1.0) for name, after in AFTER.items())))
MODELS = {"openai": "gpt-4o", "anthropic": "claude-sonnet-5"}


async def run(kind: str, policy: str, upstream: RecordingUpstream, waits: dict[str, int]) -> int:
    """Run the task; a step waits until the upstream has so many requests. How many streams were cut: told no usage."""

    async def step(name: str) -> str:
        """One step."""
        await upstream.arrivals(waits.get(name, 0))
        return f"done {name}"

    async with proxy_for(upstream.base_url(kind), step, kind=kind) as proxy:
        raw = await proxy.client().chat.completions.with_raw_response.create(
            model=MODELS[kind],
            messages=[{"role": "user", "content": TASK}],
            extra_headers={"x-asynclm-policy": policy},
        )
        assert 'd = "done d"' in raw.parse().choices[0].message.content
        timeline = proxy.server.registry.timeline(raw.headers["x-asynclm-run-id"])
    assert timeline is not None
    kinds = [entry.kind for entry in timeline.entries]
    return kinds.count("opened") - kinds.count("usage")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("policy", ["parallel", "coalesce"])
async def test_one_stream_at_a_time_needs_one_connection(kind: str, policy: str) -> None:
    async with RecordingUpstream() as upstream:
        assert await run(kind, policy, upstream, {}) == 0
        assert len(upstream.bodies) == 5
        assert len(upstream.connections) == 1


@pytest.mark.parametrize("kind", MODELS)
async def test_branches_need_as_many_as_are_open_at_once(kind: str) -> None:
    # a0 opens a branch, which is answered when b0, meanwhile, has opened one, and that when c0 has.
    async with RecordingUpstream(hold=lambda number: 4 if number in (1, 2) else 0) as upstream:
        cut = await run(kind, "fork", upstream, {"b0": 2, "c0": 3})  # those opened ahead, in vain
        assert upstream.most_active >= 3
        assert len(upstream.connections) < len(upstream.bodies)
        assert len(upstream.connections) <= upstream.most_active + cut
