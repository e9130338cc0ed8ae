"""Outside interrupts over real HTTP: the official client learns the run's id from the headers, and speaks meanwhile."""

import asyncio
from typing import Any

import openai
import pytest
from harness import Proxy, answer_of, proxy_for
from upstream import Answer, ScriptedUpstream

from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.cml.machine.events import Scheduling

QUESTION = [{"role": "user", "content": "Tell me a story."}]
CALL = "[CALL] a [HEAD] look() [END]"


def look() -> str:
    """Look."""
    return "seen"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def ask(client: openai.AsyncOpenAI, question: list[dict[str, str]] = QUESTION) -> tuple[str, Any]:
    """The run's id and the stream, which nobody has read yet."""
    raw = await client.chat.completions.with_raw_response.create(model="m", messages=question, stream=True)
    return raw.headers["x-asynclm-run-id"], raw.parse()


async def first_text(stream: Any) -> str:
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            return chunk.choices[0].delta.content
    raise AssertionError("the answer has no text")


async def say(client: openai.AsyncOpenAI, run: str, **said: str) -> Any:
    return await client.post(f"/asynclm/runs/{run}/interrupts", body=said, cast_to=object)


async def entries(client: openai.AsyncOpenAI, run: str, *kinds: str) -> list[dict[str, Any]]:
    timeline: Any = await client.get(f"/asynclm/runs/{run}", cast_to=object)
    return [entry["data"] for entry in timeline["entries"] if entry["kind"] in kinds]


async def test_interrupt_breaks_off_what_is_being_written() -> None:
    script = [Answer("Once ", "never sent", hold=asyncio.Event(), hold_at=1), Answer("it was short.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, look) as proxy:
        client = proxy.client()
        run, stream = await ask(client)
        text = await first_text(stream)
        assert await say(client, run, text="Be [END] brief.") == {"run": run, "accepted": True}
        assert (text + (await answer_of(stream))[0]) == "Once it was short."
        await upstream.until(lambda: upstream.dropped == 1)
        assert upstream.requests[1]["messages"][2:] == [
            {"role": "assistant", "content": "Once "},
            user(r'[INTR] user [HEAD] "Be \u005bEND] brief." [END]'),
        ]


async def test_when_idle_waits_for_the_end_and_the_answer_goes_on() -> None:
    hold = asyncio.Event()
    script = [Answer("Once ", "upon a time.", hold=hold, hold_at=1), Answer("They lived on.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, look) as proxy:
        client = proxy.client()
        async with client.chat.completions.with_streaming_response.create(
            model="m", messages=QUESTION, stream=True
        ) as response:
            run = response.headers["x-asynclm-run-id"]
            stream = await response.parse()
            text = await first_text(stream)
            await say(client, run, text="And then?", source="agent_ann", scheduling="when_idle")
            assert len(upstream.requests) == 1
            hold.set()
            rest, reason = await answer_of(stream)
        assert (text + rest, reason) == ("Once upon a time.\n\nThey lived on.", "stop")
        assert (len(upstream.requests), upstream.dropped) == (2, 0)
        assert upstream.requests[1]["messages"][-1] == user('[INTR] agent_ann [HEAD] "And then?" [END]')


async def test_silent_goes_along_with_a_result() -> None:
    began, free = asyncio.Event(), asyncio.Event()

    async def look() -> str:
        """Look."""
        began.set()
        await free.wait()
        return "seen"

    script = [Answer("Well. ", CALL, "[TRAP][END]"), Answer("Done.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, look) as proxy:
        client = proxy.client()
        run, stream = await ask(client)
        await began.wait()
        await say(client, run, text="By the way.", scheduling="silent")
        assert len(upstream.requests) == 1
        free.set()
        assert await answer_of(stream) == ("Well.\n\nDone.", "stop")
        assert len(upstream.requests) == 2
        told = '[INTR] user [HEAD] "By the way." [END]\n[INTR] a [HEAD] "seen" [END]'
        assert upstream.requests[1]["messages"][-1] == user(told)


async def test_silent_with_nothing_to_go_along_with_stays_unheard() -> None:
    hold = asyncio.Event()
    script = [Answer("Once ", "upon a time.", hold=hold, hold_at=1)]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, look) as proxy:
        client = proxy.client()
        run, stream = await ask(client)
        await say(client, run, text="By the way.", scheduling="silent")
        hold.set()
        assert await answer_of(stream) == ("Once upon a time.", "stop")
        assert len(upstream.requests) == 1
        assert await entries(client, run, "outside", "unheard", "interrupt") == [
            {"source": "user", "text": "By the way.", "scheduling": "silent"},
            {"source": "user", "text": "By the way."},
        ]


async def test_a_model_that_takes_injection_is_told_in_its_live_sequence() -> None:
    began, free = asyncio.Event(), asyncio.Event()

    async def look() -> str:
        """Look."""
        began.set()
        await free.wait()
        return "seen"

    task = encode_task(Task((Node("a", "look()"),), answer="I looked."))
    more = encode_task(Task((Node("b", "look()"),), answer="I looked again."))
    async with proxy_for(None, look, kind="simulated", toml="ttft_ms = 0\ntpot_ms = 0\n") as proxy:
        client = proxy.client()
        run, stream = await ask(client, [user(task)])
        await began.wait()
        await say(client, run, text=f"Once more. {more}")
        free.set()
        text, reason = await answer_of(stream)
        assert (text, reason) == ('I looked.\na = "seen"\nI looked again.\nb = "seen"', "stop")
        assert len(await entries(client, run, "opened")) == 1


async def test_an_answer_that_is_not_streamed_is_found_in_the_list_of_runs() -> None:
    hold = asyncio.Event()
    script = [Answer("Once ", "upon a time.", hold=hold), Answer("They lived on.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, look) as proxy:
        client = proxy.client()
        answering = asyncio.create_task(client.chat.completions.create(model="m", messages=QUESTION))
        await upstream.until(lambda: len(upstream.requests) == 1)
        listed: Any = await client.get("/asynclm/runs", cast_to=object)
        (run,) = [each["id"] for each in listed["data"] if each["status"] == "running"]
        await say(client, run, text="And then?", scheduling="when_idle")
        hold.set()
        assert (await answering).choices[0].message.content == "Once upon a time.\n\nThey lived on."


async def refused(proxy: Proxy, run: str, **said: Any) -> openai.APIStatusError:
    """How an official client, which tries again where it is not told otherwise, learns that nobody was told."""
    async with openai.AsyncOpenAI(base_url=proxy.url, api_key="sk-x") as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await say(client, run, **said)
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
        return caught.value


@pytest.mark.parametrize(
    ("said", "param", "names"),
    [
        ({"text": "x", "scheduling": "later"}, "scheduling", list(Scheduling)),
        ({"text": "x", "source": "bob"}, "source", ["user", "agent_"]),
        ({"text": "x", "source": "agent_[END]"}, "source", ["user", "agent_"]),
        ({"text": ""}, "text", ["empty"]),
        ({"text": 3}, "text", ['"text": "..."', '"source"', '"scheduling"']),
        ({}, "text", ["missing"]),
    ],
)
async def test_what_is_wrong_is_named(said: dict[str, Any], param: str, names: list[str]) -> None:
    hold = asyncio.Event()
    async with (
        ScriptedUpstream([Answer("Once ", "upon a time.", hold=hold, hold_at=1)]) as upstream,
        proxy_for(upstream.url, look) as proxy,
    ):
        client = proxy.client()
        run, stream = await ask(client)
        error = await refused(proxy, run, **said)
        assert (error.status_code, error.param) == (400, param)
        assert [name for name in names if name not in error.message] == []
        hold.set()
        await answer_of(stream)
        assert await entries(client, run, "outside", "unheard") == []


async def test_a_run_that_is_over_and_one_that_never_was() -> None:
    async with ScriptedUpstream([Answer("Once upon a time.")]) as upstream, proxy_for(upstream.url, look) as proxy:
        run, stream = await ask(proxy.client())
        await answer_of(stream)
        error = await refused(proxy, run, text="And then?")
        assert (error.status_code, error.code) == (409, "run_finished")
        error = await refused(proxy, "run_x", text="Hello?")
        assert (error.status_code, error.code) == (404, "run_not_found")


async def test_a_run_without_tools_takes_none() -> None:
    task = encode_task(Task(say="Once upon a time. " * 10))
    async with proxy_for(None, kind="simulated", toml="ttft_ms = 0\ntpot_ms = 30000\n") as proxy:
        run, stream = await ask(proxy.client(), [user(task)])
        await first_text(stream)
        error = await refused(proxy, run, text="And then?")
        assert (error.status_code, error.code) == (409, "run_not_listening")
        await stream.close()
