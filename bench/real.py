"""Runs a case in real time over HTTP on loopback: official client, proxy, simulated model.

The model is a process of its own; for the methods that inject it stands in the proxy's process. Each run has a proxy of
its own, because its tools act upon a fresh world. A few runs go side by side: they wait for most of their time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Sequence
from typing import Final

import aiohttp
import msgspec
import openai

from asynclm.bench.evaluation import Plan
from asynclm.bench.measure import Finished
from asynclm.bench.methods import ALL, Method
from asynclm.bench.results import Result, Setting
from asynclm.bench.scenario import Said
from asynclm.bench.workloads import Case, Workshop
from asynclm.bench.workloads.checks import Ran
from asynclm.proxy.config import Config, Model, Upstream
from asynclm.proxy.demo.loopback import LoopbackError, first_of, proxy, simulated_upstream, timeline_of

_MODEL: Final = "simulated"
_TAKEN: Final = 202
_TOO_LATE: Final = 409


async def evaluate(plan: Plan, concurrency: int, done: Callable[[int], None]) -> list[Result]:
    """Run the plan, so many runs at once; `done` is told of each that has ended. Raises `LoopbackError`."""
    results: list[Result] = []
    free = asyncio.Semaphore(concurrency)

    async def one(client: openai.AsyncOpenAI, upstream: str, case: Case, method: str, setting: Setting) -> None:
        async with free:
            finished = await _run(client, upstream, case, ALL[method], setting, plan)
        results.append(plan.result(finished, method, setting))
        done(1)

    try:
        async with openai.AsyncOpenAI(base_url="http://127.0.0.1", api_key="bench", max_retries=0) as client:
            for setting in plan.settings:
                cases = plan.cases(setting)
                async with simulated_upstream(setting.ttft_ms, setting.tpot_ms) as upstream:
                    # The first request pays for imports and caches; what they leave is not looked through again.
                    await _run(client, upstream, cases[0], ALL[plan.methods[0]], setting, plan)
                    gc.collect()
                    gc.freeze()
                    async with asyncio.TaskGroup() as group:
                        for case in cases:
                            for method in plan.methods:
                                group.create_task(one(client, upstream, case, method, setting))
    except* (openai.OpenAIError, aiohttp.ClientError) as errors:
        raise LoopbackError(f"a run failed: {first_of(errors)}") from None
    return plan.sorted(results)


async def _run(
    client: openai.AsyncOpenAI, upstream: str, case: Case, method: Method, setting: Setting, plan: Plan
) -> Finished:
    workshop = Workshop(case)
    model = Upstream(kind="simulated", inject=True) if method.inject else Upstream(kind="openai", base_url=upstream)
    model = msgspec.structs.replace(model, ttft_ms=setting.ttft_ms, tpot_ms=setting.tpot_ms)
    config = Config(upstreams={"main": model}, models={"*": Model(upstream="main")}, limits=plan.limits)
    async with proxy(config, workshop.toolbox) as url:
        asker = _Client(client.with_options(base_url=url), url, method.policy)
        return Finished(workshop, await plan.scenario(asker, case, method))


class _Client:
    """Asks a proxy, as anybody's client would; says the interrupts as a second one."""

    def __init__(self, client: openai.AsyncOpenAI, url: str, policy: str) -> None:
        self._client = client
        self._url = url
        self._policy = policy
        self._clock = asyncio.get_running_loop().time

    async def ask(self, prompt: str, interrupts: Sequence[Said] = ()) -> Ran:
        """Send a chat request, and say the interrupts meanwhile."""
        began = self._clock()
        response = await self._client.chat.completions.with_raw_response.create(
            model=_MODEL,
            messages=[{"role": "user", "content": prompt}],
            stream=True,
            extra_headers={"x-asynclm-policy": self._policy},
        )
        run = response.headers["x-asynclm-run-id"]
        taken: list[str] = []
        saying = asyncio.create_task(self._say(run, began, interrupts, taken))
        answer, reason = "", None
        try:
            async for chunk in response.parse():
                for choice in chunk.choices:
                    answer += choice.delta.content or ""
                    reason = choice.finish_reason or reason
            total_s = self._clock() - began
        finally:
            saying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await saying
        return Ran(began, total_s, answer, reason, await timeline_of(self._url, run), tuple(taken))

    async def _say(self, run: str, began: float, interrupts: Sequence[Said], taken: list[str]) -> None:
        """Send each interrupt when it is due; note those that were taken."""
        if not interrupts:
            return
        address = f"{self._url}/asynclm/runs/{run}/interrupts"
        async with aiohttp.ClientSession() as session:
            for said in interrupts:
                await asyncio.sleep(max(0.0, began + said.after_s - self._clock()))
                async with session.post(address, json={"text": said.text}) as response:
                    if response.status == _TAKEN:
                        taken.append(said.text)
                    elif response.status != _TOO_LATE:
                        response.raise_for_status()
