"""Runs the demo's cases, over real HTTP all the way: official client, proxy, simulated upstream.

The upstream is a process of its own. Each run (a case under a policy) has a proxy of its own, because its tools act
upon fresh instances. A few runs go side by side: they wait for most of their time.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence

import aiohttp
import msgspec
import openai
from aiohttp import web

from asynclm.adapters.models.simulated.task import encode_task
from asynclm.cml.timeline import Timeline
from asynclm.proxy.config import Config, Model, Upstream
from asynclm.proxy.demo.bfcl import Case
from asynclm.proxy.demo.report import Outcome
from asynclm.proxy.demo.tools import Workshop, build_task
from asynclm.proxy.server import make_app

_START_S = 30.0  # an interpreter on a busy machine
_STOP_S = 5.0


class DemoError(Exception):
    """The demo can't go on; the message is one line."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`ttft_ms` and `tpot_ms` are the simulated model's; `concurrency` is how many runs go on at once."""

    seed: int
    policies: Sequence[str]
    ttft_ms: float
    tpot_ms: float
    concurrency: int


async def run_cases(cases: Sequence[Case], settings: Settings, done: Callable[[Outcome], None]) -> list[Outcome]:
    """Run every case under every policy, in this order; `done` is told of each as it ends.

    Raises `DemoError`, and `MissingDatasetError` where a module that BFCL needs is missing.
    """
    # Made beforehand: it takes tens of milliseconds each, which would show in the runs that go on meanwhile.
    runs = [(case, policy, Workshop(case, settings.seed)) for case in cases for policy in settings.policies]
    async with _upstream(settings) as url:
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
            raise DemoError(f"a run failed: {_first(errors)}") from None
        return [task.result() for task in tasks]


async def _run(case: Case, policy: str, workshop: Workshop, upstream: str, settings: Settings) -> Outcome:
    prompt = _prompt(case, settings.seed)
    async with _proxy(upstream, workshop) as url, openai.AsyncOpenAI(base_url=url, api_key="demo") as client:
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
        timeline = await _timeline(url, response.headers["x-asynclm-run-id"])
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


async def _timeline(url: str, run: str) -> Timeline:
    async with (
        aiohttp.ClientSession(raise_for_status=True) as session,
        session.get(f"{url}/asynclm/runs/{run}") as response,
    ):
        return msgspec.json.decode(await response.read(), type=Timeline)


@contextlib.asynccontextmanager
async def _proxy(upstream: str, workshop: Workshop) -> AsyncIterator[str]:
    config = Config(
        upstreams={"main": Upstream(kind="openai", base_url=upstream)}, models={"*": Model(upstream="main")}
    )
    runner = web.AppRunner(make_app(config, workshop.toolbox), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _upstream(settings: Settings) -> AsyncIterator[str]:
    """The simulated model in a process of its own; gives its base URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "asynclm.adapters.models.simulated", "--port", "0"),
        *("--ttft-ms", str(settings.ttft_ms), "--tpot-ms", str(settings.tpot_ms)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None  # a pipe was asked for
        try:
            async with asyncio.timeout(_START_S):
                line = (await process.stdout.readline()).decode()
        except TimeoutError:
            line = ""
        if "http://" not in line:
            raise DemoError("the simulated model did not start")
        yield line.split()[-1]
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _first(errors: BaseExceptionGroup[Exception]) -> str:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
