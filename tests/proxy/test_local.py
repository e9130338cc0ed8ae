"""The whole proxy on a real, tiny model: its output is forced; sequences, cache and injections are the real thing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from aiohttp import web
from tiny_model import tiny_folder

from asynclm.adapters.models.local.model import Loaded, LocalModel
from asynclm.adapters.models.local.settings import EngineSettings
from asynclm.adapters.models.simulated.forced import Forced
from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.adapters.models.transformers.load import LoadOptions, load
from asynclm.adapters.tools.python import PythonTool
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.events import Call, Interrupt
from asynclm.cml.machine.calls import RUNTIME
from asynclm.cml.parser import Parser
from asynclm.cml.timeline import Timeline
from asynclm.proxy.config import Config, Model, Upstream
from asynclm.proxy.server import SERVER, Server, make_app


def made(**options: Any) -> Loaded:
    loaded = load(LoadOptions(model=str(tiny_folder()), device="cpu", threads=1, **{"kv_tokens": 20_000, **options}))
    return Loaded(loaded.engine, loaded.vocabulary)


class Local:
    def __init__(self, url: str, server: Server, client: openai.AsyncOpenAI, loaded: Loaded) -> None:
        self.url = url
        self.server = server
        self.client = client
        self.loaded = loaded

    def task(self, *calls: Node, answer: str = "Done.") -> list[Any]:
        return [{"role": "user", "content": encode_task(Task(calls, answer=answer, quote=False))}]

    def timeline(self, response: Any) -> Timeline:
        found = self.server.registry.timeline(response.usage.asynclm["run"])
        assert found is not None
        return found


@asynccontextmanager
async def local(
    *tools: Callable[..., Any], settings: EngineSettings | None = None, forced: bool = True, **options: Any
) -> AsyncIterator[Local]:
    loaded = made(**options)
    model = LocalModel(lambda: loaded, settings, guide=(lambda *given: Forced(*given)) if forced else None)
    config = Config(upstreams={"main": Upstream(kind="transformers")}, models={"*": Model(upstream="main")})
    app = make_app(config, Toolbox([PythonTool(tool) for tool in tools]), {}, models={"main": model})
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        async with openai.AsyncOpenAI(base_url=url, api_key="sk-client", max_retries=0) as client:
            yield Local(url, app[SERVER], client, loaded)
    finally:
        await runner.cleanup()


def call(id: str, body: str, estimate_ms: float = 10.0, after: tuple[str, ...] = ()) -> Node:
    return Node(id, body, after, estimate_ms)


async def test_results_go_into_the_live_sequence() -> None:
    slow_may_return = asyncio.Event()

    async def slow(x: int) -> int:
        await slow_may_return.wait()
        return x

    async def fast(x: int) -> int:
        return 10 * x

    async def last(x: int) -> str:
        slow_may_return.set()
        return "é" * x

    async with local(slow, fast, last) as proxy:
        messages = proxy.task(
            call("a", "slow(x=3)", 500),
            call("b", "fast(x=4)"),
            call("c", "last(x=2)", after=("b",)),
            answer="That is it.",
        )
        response = await proxy.client.chat.completions.create(model="tiny", messages=messages)
        assert response.choices[0].message.content == "That is it."
        timeline = proxy.timeline(response)
        kinds = [entry.kind for entry in timeline.entries]
        assert kinds.count("opened") == 1  # one stream, whatever came in between
        assert kinds.count("interrupt") == 3
        assert [entry.data["ok"] for entry in timeline.entries if entry.kind == "result"] == [True] * 3
        told = "".join(entry.data["text"] for entry in timeline.entries if entry.kind == "interrupt")
        assert '"éé"' in told
        assert response.usage is not None
        assert response.usage.completion_tokens > 30


ASK: Any = {
    "type": "function",
    "function": {
        "name": "ask_user",
        "description": "It.",
        "parameters": {"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]},
    },
}


async def test_the_client_s_own_tools_and_the_next_answer_begins_where_the_last_one_stopped() -> None:
    async def look(x: int) -> int:
        return 7 * x

    async with local(look) as proxy:
        messages = proxy.task(
            call("a", "ask_user(question='Sure?')"), call("b", "look(x=3)"), call("c", "look(x=4)", after=("a",))
        )
        parked = await proxy.client.chat.completions.create(model="tiny", messages=messages, tools=[ASK])
        (choice,) = parked.choices
        assert choice.finish_reason == "tool_calls"
        (asked,) = choice.message.tool_calls
        await settled(proxy)
        assert proxy.loaded.engine.memory().used_tokens > 0  # nobody waits in the engine, but its work is kept
        back = [choice.message.model_dump(), {"role": "tool", "tool_call_id": asked.id, "content": "yes"}]
        last = await proxy.client.chat.completions.create(model="tiny", messages=[*messages, *back], tools=[ASK])
        assert last.choices[0].message.content == "Done."
        usage = last.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens is not None
        assert usage.prompt_tokens_details.cached_tokens >= parked.usage.prompt_tokens


async def test_a_conversation_s_next_turn_begins_with_what_is_there_even_if_max_tokens_ended_the_last() -> None:
    async def tool(x: int) -> int:
        return x

    async with local(tool) as proxy:
        messages = proxy.task(answer="word " * 50)
        for _ in range(2):
            response = await proxy.client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)
            assert response.choices[0].finish_reason == "length"
            await settled(proxy)
        (load,) = proxy.server.upstreams.load().values()
        assert load["shared"] > load["computed"] / 2


async def settled(proxy: Local) -> None:
    """Until nothing runs in the engine."""
    async with asyncio.timeout(30):
        while any(proxy.server.upstreams.load()["main"][name] for name in ("running", "waiting")):
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("policy", ["sync", "parallel", "immediate", "coalesce", "auto"])
async def test_every_policy_ends_with_the_same_answer(policy: str) -> None:
    done: list[int] = []

    async def tool(x: int) -> int:
        done.append(x)
        await asyncio.sleep(0.01 * x)
        return x

    async with local(tool) as proxy:
        calls = [call("a", "tool(x=3)", 30), call("b", "tool(x=1)", 10), call("c", "tool(x=2)", 20, after=("b",))]
        response = await proxy.client.chat.completions.create(
            model="tiny",
            messages=proxy.task(*calls, answer="That is it."),
            extra_headers={"x-asynclm-policy": policy},
        )
        assert response.choices[0].message.content == "That is it."
        assert sorted(done) == [1, 2, 3]
        assert [e.kind for e in proxy.timeline(response).entries].count("opened") == 1


async def test_the_live_sequence_is_what_the_transcript_says() -> None:
    """Between any two tokens of many runs at once results come in, and each stands where the run machine thinks."""
    dice = random.Random(3)

    async def tool(x: int) -> int:
        await asyncio.sleep(dice.random() * 0.05)
        return x

    async with local(tool, settings=EngineSettings(kept_tokens=0)) as proxy:
        engine, vocabulary = proxy.loaded.engine, proxy.loaded.vocabulary
        texts: dict[int, str] = {}
        free = engine.free

        def remember(sequence: int) -> None:
            texts[sequence] = b"".join(vocabulary.pieces[token] for token in fed.pop(sequence, [])).decode()
            free(sequence)

        fed: dict[int, list[int]] = {}
        forward, truncate, fork = engine.forward, engine.truncate, engine.fork

        def feed(feeds: Any) -> None:
            forward(feeds)
            for each in feeds:
                fed.setdefault(each.sequence, []).extend(each.tokens)

        def cut(sequence: int, length: int) -> None:
            truncate(sequence, length)
            del fed[sequence][length:]

        def copy(source: int, length: int, sampling: Any) -> int:
            number = fork(source, length, sampling)
            fed[number] = fed[source][:length]
            return number

        vars(engine).update(forward=feed, truncate=cut, free=remember, fork=copy)

        async def run(n: int) -> str:
            calls = [call(f"a{i}", f"tool(x={n * 10 + i})", dice.randrange(1, 60)) for i in range(5)]
            calls += [call(f"b{i}", f"tool(x={n * 10 + 5 + i})", 20, after=(f"a{i}",)) for i in range(3)]
            response = await proxy.client.chat.completions.create(
                model="tiny", messages=proxy.task(*calls, answer=f"That is {n}.")
            )
            assert response.choices[0].message.content == f"That is {n}."
            return "".join(e.data["text"] for e in proxy.timeline(response).entries if e.kind == "interrupt")

        told = await asyncio.gather(*(run(n) for n in range(6)))
        await settled(proxy)
        assert len(texts) == 6
        for n, interrupts in enumerate(told):
            (text,) = [text for text in texts.values() if f"That is {n}." in text.partition("assistant\n")[2]]
            written = text.rpartition("assistant\n")[2]
            events = [*(parser := Parser(interrupts=True)).feed(written), *parser.finish()]
            assert [e.id for e in events if isinstance(e, Interrupt)] == [
                part.split()[1] for part in interrupts.split("[INTR]")[1:] for part in [f"x {part}"]
            ]
            seen = set()
            for event in events:  # a result stands behind its call, and before what needed it
                if isinstance(event, Call):
                    assert event.problem is None
                    seen.add(event.id)
                    assert event.id is not None
                    if event.id.startswith("b"):
                        assert f"a{event.id[1]}:" in seen
                elif isinstance(event, Interrupt) and event.id != RUNTIME:
                    assert event.id in seen
                    seen.add(f"{event.id}:")


@pytest.mark.parametrize("when", ["prefill", "decode", "trap"])
async def test_a_client_that_leaves_frees_its_cache(when: str) -> None:
    called = asyncio.Event()

    async def forever(x: int) -> int:
        called.set()
        await asyncio.Event().wait()
        return x

    async with local(forever, settings=EngineSettings(chunk=64, busy_chunk=16)) as proxy:
        messages = proxy.task(call("a", "forever(x=1)"))
        if when == "prefill":
            messages[0]["content"] += " word" * 800
        asking = asyncio.create_task(proxy.client.chat.completions.create(model="tiny", messages=messages))
        engine = proxy.loaded.engine
        async with asyncio.timeout(30):
            if when == "trap":
                await called.wait()
                (run,) = proxy.server.registry.summaries()
                while not (found := proxy.server.registry.timeline(run.id)) or found.entries[-1].kind != "cache":
                    await asyncio.sleep(0.005)
            else:
                while engine.memory().used_tokens < (64 if when == "prefill" else 1):
                    await asyncio.sleep(0.001)
        asking.cancel()
        await settled(proxy)
        assert engine.memory().used_tokens == 0


async def test_a_hundred_runs_opened_and_dropped_leave_nothing() -> None:
    async def tool(x: int) -> int:
        await asyncio.sleep(5)
        return x

    settings = EngineSettings(max_running=4, max_waiting=200, chunk=256)
    async with local(tool, settings=settings, kv_tokens=40_000) as proxy:
        asking = [
            asyncio.create_task(
                proxy.client.chat.completions.create(model="tiny", messages=proxy.task(call("a", f"tool(x={n})")))
            )
            for n in range(100)
        ]
        async with asyncio.timeout(30):
            while proxy.loaded.engine.memory().used_tokens < 8000:  # the fourth of them is being computed
                await asyncio.sleep(0.005)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await settled(proxy)
        assert proxy.loaded.engine.memory()[:2] == (0, 0)


async def test_what_does_not_fit_is_said_clearly() -> None:
    async def tool(x: int) -> int:
        return x

    async with local(tool, settings=EngineSettings(context=6000, max_running=1, max_waiting=0)) as proxy:
        with pytest.raises(openai.BadRequestError, match="context is 6000 tokens") as found:
            await proxy.client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "word " * 6000}]
            )
        assert found.value.code == "context_length_exceeded"
        for parameters in ({"logit_bias": {"1": 5}}, {"presence_penalty": 1.0}):
            with pytest.raises(openai.BadRequestError, match="not available with a local model"):
                await proxy.client.chat.completions.create(model="tiny", messages=proxy.task(answer="x"), **parameters)
        first = await proxy.client.chat.completions.create(
            model="tiny", messages=proxy.task(answer="word " * 500), stream=True
        )
        with pytest.raises(openai.RateLimitError) as refused:
            await proxy.client.chat.completions.create(model="tiny", messages=proxy.task(answer="x"))
        assert refused.value.code == "queue_full"
        assert refused.value.response.headers["retry-after"] == "1"
        await first.close()
        await settled(proxy)
        response = await proxy.client.chat.completions.create(model="tiny", messages=proxy.task(answer="Again."))
        assert response.choices[0].message.content == "Again."


@pytest.mark.parametrize("overflow", ["shorten", "error"])
async def test_a_result_that_is_too_long_for_the_context(overflow: Any) -> None:
    async def tool(x: int) -> str:
        return "word " * x

    async with local(tool, settings=EngineSettings(context=2600, overflow=overflow)) as proxy:
        messages = proxy.task(call("a", "tool(x=3000)"), answer="That is it.")
        if overflow == "error":
            with pytest.raises(openai.APIError, match="doesn't fit"):
                await proxy.client.chat.completions.create(model="tiny", messages=messages)
        else:
            response = await proxy.client.chat.completions.create(model="tiny", messages=messages)
            assert response.choices[0].message.content == "That is it."
            (note,) = [e for e in proxy.timeline(response).entries if e.kind == "shortened"]
            assert note.data["to"] < 1000 < note.data["tokens"]
        await settled(proxy)
        response = await proxy.client.chat.completions.create(model="tiny", messages=proxy.task(answer="Again."))
        assert response.choices[0].message.content == "Again."


async def test_what_the_model_says_of_itself_is_bounded_and_repeatable() -> None:
    """Random weights write anything at all; the answer ends where it should, and is the same for the same seed."""

    async def tool(x: int) -> int:
        return x

    async with local(tool, forced=False) as proxy:

        async def ask(**options: Any) -> Any:
            messages = [{"role": "user", "content": "Hello."}]
            return await proxy.client.chat.completions.create(model="tiny", messages=messages, **options)  # type: ignore[call-overload]

        same = await asyncio.gather(*(ask(seed=5, max_tokens=40, temperature=0.9) for _ in range(3)))
        assert len({each.choices[0].message.content for each in same}) == 1
        other = await ask(seed=6, max_tokens=40, temperature=0.9)
        assert other.choices[0].message.content != same[0].choices[0].message.content
        greedy = await asyncio.gather(*(ask(temperature=0, max_tokens=20 + n) for n in range(3)))
        texts = [each.choices[0].message.content for each in greedy]
        assert texts[1].startswith(texts[0])
        assert texts[2].startswith(texts[1])
        assert {each.choices[0].finish_reason for each in same} <= {"length", "stop"}
        stop = texts[2][5:8]
        cut = await ask(temperature=0, max_tokens=22, stop=[stop])
        assert cut.choices[0].message.content == texts[2][: texts[2].index(stop)]
        assert cut.choices[0].finish_reason == "stop"
