"""Runs the demo's cases, over real HTTP all the way: official client, proxy, simulated upstream.

The upstream is a process of its own. Each run (a case under a policy) has a proxy of its own, because its tools act
upon fresh instances. A few runs go side by side: they wait for most of their time.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Sequence

import aiohttp
import msgspec
import openai

from asynclm.adapters.models.simulated.task import encode_task
from asynclm.proxy.config import Config, Model, Upstream
from asynclm.proxy.demo.bfcl import Case
from asynclm.proxy.demo.loopback import LoopbackError, first_of, proxy, simulated_upstream, timeline_of
from asynclm.proxy.demo.report import Outcome
from asynclm.proxy.demo.tools import Workshop, build_task


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`ttft_ms` and `tpot_ms` are the simulated model's; `concurrency` is how many runs go on at once."""

    seed: int
    policies: Sequence[str]
    ttft_ms: float
    tpot_ms: float
    concurrency: int


async def run_cases(cases: Sequence[Case], settings: Settings, done: Callable[[Outcome], None]) -> list[Outcome]:
    """Run every case under every policy, in this order; `done` is told of each as it ends.

    Raises `LoopbackError`, and `MissingDatasetError` where a module that BFCL needs is missing.
    """
    # Made beforehand: it takes tens of milliseconds each, which would show in the runs that go on meanwhile.
    runs = [(case, policy, Workshop(case, settings.seed)) for case in cases for policy in settings.policies]
    async with simulated_upstream(settings.ttft_ms, settings.tpot_ms) as url:
        free = asyncio.Semaphore(settings.concurrency)

        async def one(case: Case, policy: str, workshop: Workshop) -> Outcome:
            async with free:
                outcome = await _run(case, policy, workshop, url, settings)
            done(outcome)
            return outcome

        try:
            # The first request pays for imports and caches.
            await _run(cases[0], settings.policies[0], Workshop(cases[0], settings.seed), url, settings)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(*run)) for run in runs]
        except* (openai.OpenAIError, aiohttp.ClientError) as errors:
            raise LoopbackError(f"a run failed: {first_of(errors)}") from None
        return [task.result() for task in tasks]


async def _run(case: Case, policy: str, workshop: Workshop, upstream: str, settings: Settings) -> Outcome:
    prompt = _prompt(case, settings.seed)
    config = Config(
        upstreams={"main": Upstream(kind="openai", base_url=upstream)}, models={"*": Model(upstream="main")}
    )
    async with proxy(config, workshop.toolbox) as url, openai.AsyncOpenAI(base_url=url, api_key="demo") as client:
        clock = asyncio.get_running_loop().time
        start = clock()
        response = await client.chat.completions.with_raw_response.create(
            model="simulated",
            messages=[{"role": "user", "content": prompt}],
            stream=True,
            extra_headers={"x-asynclm-policy": policy},
        )
        answer = ""
        async for chunk in response.parse():
            if chunk.choices:
                answer += chunk.choices[0].delta.content or ""
        total_s = clock() - start
        timeline = await timeline_of(url, response.headers["x-asynclm-run-id"])
    kinds = collections.Counter(entry.kind for entry in timeline.entries)
    first_token = min(entry.t for entry in timeline.entries if entry.kind == "first_token")
    return Outcome(
        case=case.number,
        policy=policy,
        total_s=total_s,
        latency_s=total_s - first_token,
        streams=kinds["opened"],
        timeline=timeline,
        problems=tuple(workshop.problems(answer)),
    )


def _prompt(case: Case, seed: int) -> str:
    questions = "\n".join(f"{number}. {sample.question}" for number, sample in enumerate(case.samples, 1))
    return f"Please do these {len(case.samples)} things:\n{questions}\n{encode_task(build_task(case, seed))}"
