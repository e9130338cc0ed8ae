"""Whole runs, held against what makes a resume cheap: each prompt goes on, byte for byte, where one before it ended.

The real proxy runs a task of several chains of calls against the simulated model; looked at are the bytes of its
upstream requests. On which prompt a stream must build is read off the timeline; which request was its, off its usage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
import pytest
from anthropic_cache import AnthropicCache, blocks_of
from harness import proxy_for
from recording import PROMPT_TOKENS, RecordingUpstream

from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.cml.machine import POLICIES
from asynclm.cml.timeline import Entry

Step = Callable[[str], Awaitable[str]]


class API(NamedTuple):
    """An API, and how its messages end: a longer prompt goes on where `closing` stands."""

    kind: str
    model: str
    toml: str
    closing: bytes


OPENAI = "prompt_cache_key = true\n"
APIS = {
    "interleave": API("openai", "gpt-4o", OPENAI, b"]"),
    "prefill": API("openai", "qwen3", f'{OPENAI}prefill = "continue_final_message"\n', b'"}]'),
    "anthropic": API("anthropic", "claude-sonnet-5", "", b"]}]"),
    "anthropic-prefill": API("anthropic", "claude-haiku-4-5", "", b"]}]"),
}
every_api = pytest.mark.parametrize("api", APIS.values(), ids=list(APIS))

# Three chains, and a call that needs them all: at least five streams, whatever the policy.
AFTER = {"a0": (), "b0": (), "c0": (), "a1": ("a0",), "a2": ("a1",), "b1": ("b0",), "d": ("a2", "b1", "c0")}
NODES = tuple(Node(name, f"step(name={name!r})", after, 10.0) for name, after in AFTER.items())
QUESTION = [
    {"role": "system", "content": 'Say "café", not more.'},
    {"role": "user", "content": f"Do this: {encode_task(Task(NODES, say='At once.'))}"},
]
LEAST_STREAMS = 5

MARKER = b',"cache_control":{"type":"ephemeral"}'
CONTINUES = {"continue_final_message": b"true", "add_generation_prompt": b"false"}


class Traffic:
    """The upstream requests of one run."""

    def __init__(self, api: API, entries: list[Entry], bodies: list[bytes]) -> None:
        self.api = api
        self.entries = entries
        self.fields = [
            {name: bytes(value) for name, value in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items()}
            for body in bodies
        ]
        self.bodies = [msgspec.json.decode(body) for body in bodies]
        self.prompts = [fields["messages"].replace(MARKER, b"") for fields in self.fields]
        # A stream that was cut told no usage; nor did one that was given up before it was sent.
        self.number = {
            entry.stream: entry.data["prompt_tokens"] - PROMPT_TOKENS for entry in entries if entry.kind == "usage"
        }

    def opening(self, number: int) -> bytes:
        """What a prompt begins with that goes on behind that request's."""
        prompt = self.prompts[number]
        assert prompt.endswith(self.api.closing)
        return prompt.removesuffix(self.api.closing)

    def stem(self, branch: int) -> bytes:
        """A branch's prompt up to what it was told: the transcript of its fork point."""
        (told,) = [entry.data["text"] for entry in self.entries if (entry.kind, entry.stream) == ("interrupt", branch)]
        prompt = self.prompts[self.number[branch]]
        return prompt[: prompt.rindex(msgspec.json.encode(told)[1:-1])]

    @property
    def forked(self) -> bool:
        return any(entry.kind == "branch" for entry in self.entries)

    def bases(self) -> tuple[dict[int, int], list[list[int]]]:
        """On which request each must build; and the branches (streams), by the transcript that they opened on.

        The transcript grows with each resume, and with each branch that is folded. Of the branches that opened on the
        same transcript, only the first to be folded is a piece of it together with its prompt. A stream that is opened
        ahead builds on the first open branch, as if that and all others were folded already.
        """
        if not self.forked:  # one after the other, each longer than the one before
            order = sorted(range(len(self.prompts)), key=lambda number: len(self.prompts[number]))
            return dict(zip(order[1:], order, strict=False)), []
        bases: dict[int, int] = {}
        opened_on: dict[int, int] = {}
        unfolded: list[int] = []
        ahead: set[int] = set()
        tip, version = 0, 0
        for entry in self.entries:
            stream = entry.stream or 0
            if entry.kind == "branch":
                opened_on[stream] = version
                unfolded.append(stream)
            elif entry.kind == "ahead":
                ahead.add(stream)
            elif entry.kind == "opened" and stream:
                if stream in self.number:
                    bases[self.number[stream]] = self.number[tip]
                    if stream in ahead and opened_on[unfolded[0]] == version:
                        bases[self.number[stream]] = self.number[unfolded[0]]
                if stream not in opened_on and stream not in ahead:
                    tip, version = stream, version + 1
            elif entry.kind == "adopted":
                tip, version = stream, version + 1
            elif entry.kind == "merged":
                unfolded.remove(stream)
            elif entry.kind == "folded":
                unfolded.remove(stream)
                if opened_on[stream] == version:
                    tip = stream
                version += 1
        told = {version: [] for version in opened_on.values()}
        for stream, on in opened_on.items():
            if stream in self.number:
                told[on].append(stream)
        return bases, [group for group in told.values() if group]

    def check(self) -> None:
        """Every rule there is."""
        bases, siblings = self.bases()
        for number, base in bases.items():
            assert self.prompts[number].startswith(self.opening(base)), f"request {number} does not build on {base}"
            assert len(self.prompts[number]) > len(self.prompts[base])
        for group in siblings:
            assert len({self.stem(branch) for branch in group}) == 1
        for number in range(1, len(self.prompts)):  # those that were given up, too
            assert any(self.prompts[number].startswith(self.opening(before)) for before in range(number))
        others = [{name: value for name, value in fields.items() if name != "messages"} for fields in self.fields]
        if "prefill" in self.api.toml:
            others[0] |= CONTINUES  # there is nothing to continue yet
        assert all(fields == others[0] for fields in others)
        assert ("prompt_cache_key" in others[0]) is (self.api.kind == "openai")
        if self.api.kind == "anthropic":
            self._check_cache(bases, siblings)

    def _check_cache(self, bases: dict[int, int], siblings: list[list[int]]) -> None:
        """The breakpoints let the provider find all that was sent before."""
        cache = AnthropicCache()
        read = [cache.request(body) for body in self.bodies]
        size = [len(blocks_of(body)) for body in self.bodies]
        for number, base in bases.items():
            assert read[number] >= size[base] or number < base
        for group in siblings:
            for number in sorted(self.number[branch] for branch in group)[1:]:
                assert read[number] >= size[number] - 1


async def run(api: API, policy: str, upstream: RecordingUpstream, step: Step) -> Traffic:
    """Run the task through the proxy; the answer must be right."""
    async with proxy_for(upstream.base_url(api.kind), step, toml=api.toml, kind=api.kind) as proxy:
        raw = await proxy.client().chat.completions.with_raw_response.create(
            model=api.model, messages=QUESTION, temperature=0.5, extra_headers={"x-asynclm-policy": policy}
        )
        said = raw.parse().choices[0].message.content
        assert all(f'{name} = "done {name}"' in said for name in AFTER), said
        timeline = proxy.server.registry.timeline(raw.headers["x-asynclm-run-id"])
    assert timeline is not None
    return Traffic(api, timeline.entries, upstream.bodies)


@every_api
@pytest.mark.parametrize("policy", POLICIES)
async def test_every_prompt_goes_on_where_one_before_it_ended(api: API, policy: str) -> None:
    async def step(name: str) -> str:
        """One step."""
        await asyncio.sleep({"a": 0.0, "b": 0.003, "c": 0.008}.get(name[0], 0.0))
        return f"done {name}"

    async with RecordingUpstream(tpot_s=0.0002) as upstream:
        traffic = await run(api, policy, upstream, step)
    assert len(traffic.bodies) >= LEAST_STREAMS
    traffic.check()


@every_api
async def test_branches_share_all_that_was_there_when_they_opened(api: API) -> None:
    """Three branches beside each other, for certain: the first two are answered when the third has arrived."""

    async def step(name: str) -> str:
        """One step."""
        await upstream.arrivals({"b0": 2, "c0": 3}.get(name, 0))
        return f"done {name}"

    async with RecordingUpstream(hold=lambda number: 4 if number in (1, 2) else 0) as upstream:
        traffic = await run(api, "fork", upstream, step)
    _, (first, *_) = traffic.bases()
    assert len(first) == 3
    traffic.check()
