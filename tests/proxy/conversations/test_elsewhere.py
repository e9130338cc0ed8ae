"""Parked runs that go on in another proxy, or after a restart: real proxies over HTTP, on one store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from harness import Proxy, proxy_for
from parking import ASK, LOOK, QUESTION, TOOLS, TRAP, Looks, ask, back, kinds, noted, said, told
from redis_server import RedisServer
from upstream import Answer, ScriptedUpstream

SCRIPT = [Answer("Wait. ", LOOK, ASK, TRAP), Answer("Fine.")]
COALESCE: Any = {"extra_headers": {"x-asynclm-policy": "coalesce"}}
YES = '[INTR] a [HEAD] "yes" [END]'
VALUE = '[INTR] b [HEAD] "value of x" [END]'


def run_of(raw: Any) -> str:
    return str(raw.headers["x-asynclm-run-id"])


def message_of(raw: Any) -> Any:
    return raw.parse().choices[0].message


async def kept(proxy: Proxy) -> None:
    """Wait until what the calls of parked runs returned is in the store."""
    depot = proxy.server.runs.lobby.depot
    assert depot is not None
    await depot.aclose()


async def test_another_proxy_goes_on_with_the_run(shared: str) -> None:
    """What was written and told stands in its prompt byte for byte, with what the first one's tool returned since."""
    looks = Looks()
    async with (
        ScriptedUpstream(SCRIPT) as upstream,
        proxy_for(upstream.url, looks.tool, toml=shared) as first,
        proxy_for(upstream.url, looks.tool, toml=shared) as second,
    ):
        parked = await ask(first, QUESTION)
        run = run_of(parked)
        looks.go.set()
        await noted(first, run, "result")
        await kept(first)
        raw = await ask(second, back(QUESTION, message_of(parked)))
        assert message_of(raw).content == "Fine."
        assert run_of(raw) == run
        assert raw.headers["x-request-id"] == f"{run}-2"
        assert kinds(second, run)[:2] == ["restored", "result"]
    assert looks.keys == ["x"]
    assert said(upstream.requests[1]).startswith(said(upstream.requests[0]))
    written = upstream.requests[1]["messages"][-2]
    assert written == {"role": "assistant", "content": f"Wait. {LOOK}{ASK}{TRAP}"}
    assert told(upstream.requests[1]) == f"{VALUE}\n{YES}"


@pytest.mark.parametrize("effect", ["read_only", "effectful"])
async def test_what_the_first_proxy_is_still_doing_is_waited_for(shared: str, effect: str) -> None:
    """It runs once, whatever it is, and its result gets to the run where that goes on."""
    looks = Looks(effect=effect)
    toml = f"{shared}[cache]\nlease_s = 0.3\n"
    async with (
        ScriptedUpstream(SCRIPT) as upstream,
        proxy_for(upstream.url, looks.tool, toml=toml) as first,
        proxy_for(upstream.url, looks.tool, toml=toml) as second,
    ):
        parked = await ask(first, QUESTION, **COALESCE)
        run = run_of(parked)
        await looks.began.wait()
        asking = asyncio.create_task(ask(second, back(QUESTION, message_of(parked)), **COALESCE))
        await noted(second, run, "continued")
        await noted(first, run, "taken")  # it has noticed, and goes on with the call
        assert not looks.cancelled.is_set()
        async with aiohttp.ClientSession() as http:
            late = await http.post(f"{first.url}/asynclm/runs/{run}/interrupts", json={"text": "Hurry."})
            assert late.status == 409
        looks.go.set()
        raw = await asking
        assert message_of(raw).content == "Fine."
        assert first.server.registry.summaries()[0].status == "finished"
    assert looks.keys == ["x"]
    assert told(upstream.requests[1]) == f"{YES}\n{VALUE}"


async def test_a_run_that_ends_elsewhere_ends_its_calls_here(shared: str) -> None:
    looks = Looks()
    toml = f"{shared}[cache]\nlease_s = 0.3\n"
    script = [SCRIPT[0], Answer("Well, ", "then.", hold=asyncio.Event(), hold_at=1)]
    async with (
        ScriptedUpstream(script) as upstream,
        proxy_for(upstream.url, looks.tool, toml=toml) as first,
        proxy_for(upstream.url, looks.tool, toml=toml) as second,
    ):
        parked = await ask(first, QUESTION)
        await looks.began.wait()
        stream = await second.client().chat.completions.create(
            model="m", messages=back(QUESTION, message_of(parked)), tools=TOOLS, stream=True
        )
        await anext(stream)
        await stream.close()
        await looks.cancelled.wait()


@pytest.mark.parametrize("effect", ["read_only", "idempotent", "effectful"])
async def test_a_proxy_that_stops(shared: str, effect: str) -> None:
    """What it was doing is done again where that does no harm, else the model reads that nobody knows."""
    looks, again = Looks(effect=effect), Looks(effect=effect, at_once=True)
    toml = f"{shared}[server]\ngrace_s = 0\n"
    async with ScriptedUpstream(SCRIPT) as upstream:
        async with proxy_for(upstream.url, looks.tool, toml=toml) as first:
            parked = await ask(first, QUESTION, **COALESCE)
            await looks.began.wait()
            await first.server.drain()
        assert looks.cancelled.is_set()
        async with proxy_for(upstream.url, again.tool, toml=toml) as second:
            raw = await ask(second, back(QUESTION, message_of(parked)), **COALESCE)
            assert message_of(raw).content == "Fine."
            assert run_of(raw) == run_of(parked)
    assert again.keys == ([] if effect == "effectful" else ["x"])
    first_told, _, rest = told(upstream.requests[1]).partition("\n")
    assert first_told == YES
    if effect == "effectful":
        assert rest.startswith('[INTR] b [HEAD] {"error":{"type":"outcome_unknown"')
    else:
        assert rest == VALUE


async def test_a_proxy_that_stops_lets_calls_of_parked_runs_return(shared: str) -> None:
    looks = Looks()
    async with ScriptedUpstream(SCRIPT) as upstream:
        async with proxy_for(upstream.url, looks.tool, toml=shared) as first:
            parked = await ask(first, QUESTION)
            await looks.began.wait()
            draining = asyncio.create_task(first.server.drain())
            await asyncio.sleep(0)
            looks.go.set()
            await draining
        async with proxy_for(upstream.url, looks.tool, toml=shared) as second:
            await ask(second, back(QUESTION, message_of(parked)))
    assert looks.keys == ["x"]
    assert told(upstream.requests[1]) == f"{VALUE}\n{YES}"


async def test_a_proxy_that_is_killed(fresh_redis: RedisServer) -> None:
    """Nothing was given back: its lease ends, and the model reads that nobody knows what became of the call."""
    toml = f'[store]\nurl = "{fresh_redis.url}"\ntimeout_s = 5.0\n[cache]\nlease_s = 0.5\n'
    again = Looks(at_once=True)
    async with ScriptedUpstream(SCRIPT) as upstream:
        code = f"""
            import asyncio, sys
            sys.path.insert(0, {str(Path(__file__).parents[2] / "support")!r})
            from harness import proxy_for
            from parking import Looks
            async def main():
                looks = Looks()
                async with proxy_for({upstream.url!r}, looks.tool, toml={toml!r}) as proxy:
                    print(proxy.url, flush=True)
                    await asyncio.Event().wait()
            asyncio.run(main())
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", textwrap.dedent(code), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        async with openai.AsyncOpenAI(base_url=url, api_key="sk-client-key") as client:
            parked = await client.chat.completions.with_raw_response.create(
                model="m", messages=QUESTION, tools=TOOLS, **COALESCE
            )  # type: ignore[call-overload]
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        async with proxy_for(upstream.url, again.tool, toml=toml) as second:
            raw = await ask(second, back(QUESTION, message_of(parked)), **COALESCE)
            assert message_of(raw).content == "Fine."
    assert again.keys == []
    yes, unknown = told(upstream.requests[1]).split("\n")
    assert yes == YES
    assert unknown.startswith('[INTR] b [HEAD] {"error":{"type":"outcome_unknown"')


@pytest.mark.parametrize("where", ["both", "one", "first"])
async def test_of_several_requests_at_once_one_has_the_run(shared: str, where: str) -> None:
    """The others go on with a copy: they know all that it knew, and nothing is done twice."""
    looks = Looks(at_once=True)
    async with (
        ScriptedUpstream(SCRIPT) as upstream,
        proxy_for(upstream.url, looks.tool, toml=shared) as first,
        proxy_for(upstream.url, looks.tool, toml=shared) as second,
    ):
        parked = await ask(first, QUESTION)
        await noted(first, run_of(parked), "result")
        await kept(first)
        proxies = {"both": [first, second] * 3, "one": [second] * 6, "first": [first] * 6}[where]
        messages = back(QUESTION, message_of(parked))
        answers = await asyncio.gather(*(ask(proxy, messages) for proxy in proxies))
    runs = [run_of(answer) for answer in answers]
    assert runs.count(run_of(parked)) == 1
    assert len(set(runs)) == 6
    assert looks.keys == ["x"]
    prompts = [told(body) for body in upstream.requests[1:]]
    assert all(prompt.split("\n") in ([VALUE, YES], [YES]) for prompt in prompts), prompts


async def test_a_request_that_is_sent_again_knows_as_much(shared: str) -> None:
    """Because the client lost the answer, or wants another one: the calls of before are not made again."""
    looks = Looks(at_once=True)
    async with ScriptedUpstream(SCRIPT) as upstream, proxy_for(upstream.url, looks.tool, toml=shared) as proxy:
        parked = await ask(proxy, QUESTION)
        await noted(proxy, run_of(parked), "result")
        messages = back(QUESTION, message_of(parked))
        answers = [await ask(proxy, messages) for _ in range(2)]
    assert run_of(answers[0]) == run_of(parked) != run_of(answers[1])
    assert looks.keys == ["x"]
    assert upstream.requests[1]["messages"] == upstream.requests[2]["messages"]


async def test_what_came_from_outside_is_kept_too(shared: str) -> None:
    looks = Looks(at_once=True)
    async with (
        ScriptedUpstream([Answer(ASK, TRAP), Answer("Fine.")]) as upstream,
        proxy_for(upstream.url, looks.tool, toml=shared) as first,
        proxy_for(upstream.url, looks.tool, toml=shared) as second,
    ):
        parked = await ask(first, QUESTION)
        async with aiohttp.ClientSession() as http:
            url = f"{first.url}/asynclm/runs/{run_of(parked)}/interrupts"
            assert (await http.post(url, json={"text": "Hurry."})).status == 202
        await kept(first)
        await ask(second, back(QUESTION, message_of(parked)))
    assert told(upstream.requests[1]) == f'[INTR] user [HEAD] "Hurry." [END]\n{YES}'


async def test_a_copy_knows_nothing_of_what_was_said_later(shared: str) -> None:
    looks = Looks()
    script = [SCRIPT[0], Answer(ASK.replace(" a ", " c "), TRAP), Answer("Fine.")]
    options: Any = {"extra_headers": {"x-asynclm-policy": "immediate"}}
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, looks.tool, toml=shared) as proxy:
        parked = await ask(proxy, QUESTION, **options)
        messages = back(QUESTION, message_of(parked))
        await ask(proxy, messages, **options)
        async with aiohttp.ClientSession() as http:
            url = f"{proxy.url}/asynclm/runs/{run_of(parked)}/interrupts"
            assert (await http.post(url, json={"text": "Hurry."})).status == 202
        looks.go.set()
        await noted(proxy, run_of(parked), "result")
        await kept(proxy)
        copy = await ask(proxy, messages, **options)
        assert run_of(copy) != run_of(parked)
    assert told(upstream.requests[2]) == f"{VALUE}\n{YES}"


async def test_it_parks_again_elsewhere_and_comes_home(shared: str) -> None:
    looks = Looks()
    script = [SCRIPT[0], Answer(ASK.replace(" a ", " c "), TRAP), Answer("Fine.")]
    async with (
        ScriptedUpstream(script) as upstream,
        proxy_for(upstream.url, looks.tool, toml=shared) as first,
        proxy_for(upstream.url, looks.tool, toml=shared) as second,
    ):
        options: Any = {"extra_headers": {"x-asynclm-policy": "immediate"}}
        parked = await ask(first, QUESTION, **options)
        messages = back(QUESTION, message_of(parked))
        again = await ask(second, messages, **options)
        looks.go.set()
        await noted(second, run_of(parked), "result")  # of the call that runs in the first one
        await kept(second)
        last = await ask(first, back(messages, message_of(again)), **options)
        assert message_of(last).content == "Fine."
    assert last.headers["x-request-id"] == f"{run_of(parked)}-3"
    assert looks.keys == ["x"]
    assert said(upstream.requests[2]).startswith(said(upstream.requests[1]))
    assert told(upstream.requests[2]) == '[INTR] b [HEAD] "value of x" [END]\n[INTR] c [HEAD] "yes" [END]'


@pytest.mark.parametrize("change", ["key", "messages", "text", "policy", "off"])
async def test_what_is_not_the_same_conversation_is_not_found(shared: str, change: str) -> None:
    looks = Looks(at_once=True)
    toml = f"{shared}[conversations]\nstore = {json.dumps(change != 'off')}\n"
    async with (
        ScriptedUpstream(SCRIPT) as upstream,
        proxy_for(upstream.url, looks.tool, toml=toml) as first,
        proxy_for(upstream.url, looks.tool, toml=toml) as second,
    ):
        parked = await ask(first, QUESTION)
        await noted(first, run_of(parked), "result")
        messages = back(QUESTION, message_of(parked))
        options: Any = {}
        match change:
            case "key":
                options["extra_headers"] = {"authorization": "Bearer sk-another"}
            case "messages":
                messages[0] = {"role": "system", "content": "Be very brief."}
            case "text":
                messages[2]["content"] = "Wait!"
            case "policy":
                options["extra_headers"] = {"x-asynclm-policy": "sync"}
        raw = await ask(second, messages, **options)
        assert run_of(raw) != run_of(parked)
        assert "rebuilt" in kinds(second, run_of(raw))
        assert "value of x" not in json.dumps(upstream.requests[1])
        if change == "key":  # and nothing has happened to the run
            assert run_of(await ask(first, messages)) == run_of(parked)


async def test_nothing_secret_is_stored(fresh_redis: RedisServer) -> None:
    looks = Looks(at_once=True)
    toml = f'[store]\nurl = "{fresh_redis.url}"\ntimeout_s = 5.0\n'
    async with ScriptedUpstream(SCRIPT) as upstream, proxy_for(upstream.url, looks.tool, toml=toml) as proxy:
        parked = await ask(proxy, QUESTION, extra_headers={"authorization": "Bearer sk-hunter2", "x-tenant": "t-1"})
        await ask(proxy, back(QUESTION, message_of(parked)), extra_headers={"authorization": "Bearer sk-hunter2"})
        client = fresh_redis.client()
        keys: list[bytes] = client.keys("*")
        dump = b"".join([*keys, *(bytes(client.dump(key)) for key in keys)])
        assert any(b":parked:" in key for key in keys)
        assert any(b":turn:" in key for key in keys)
        assert all(client.pttl(key) > 0 for key in keys if not key.endswith(b":secret"))
    for secret in (b"hunter2", b"t-1", b"Be brief."):
        assert secret not in dump


async def test_a_store_that_is_down_takes_no_run_down() -> None:
    looks = Looks(at_once=True)
    toml = '[store]\nurl = "redis://127.0.0.1:1/0"\n'
    async with ScriptedUpstream(SCRIPT) as upstream, proxy_for(upstream.url, looks.tool, toml=toml) as proxy:
        parked = await ask(proxy, QUESTION)
        await noted(proxy, run_of(parked), "result")
        raw = await ask(proxy, back(QUESTION, message_of(parked)))
        assert (message_of(raw).content, run_of(raw)) == ("Fine.", run_of(parked))


async def test_a_store_that_goes_down_meanwhile(fresh_redis: RedisServer) -> None:
    looks = Looks()
    toml = f'[store]\nurl = "{fresh_redis.url}"\ntimeout_s = 0.2\n[cache]\nlease_s = 0.3\n'
    async with (
        ScriptedUpstream([SCRIPT[0], *SCRIPT]) as upstream,
        proxy_for(upstream.url, looks.tool, toml=toml) as first,
        proxy_for(upstream.url, looks.tool, toml=toml) as second,
    ):
        parked, other = await ask(first, QUESTION), await ask(first, QUESTION)
        asking = asyncio.create_task(ask(second, back(QUESTION, message_of(other))))
        await noted(second, run_of(other), "continued")
        with fresh_redis.frozen():
            looks.go.set()
            raw = await ask(first, back(QUESTION, message_of(parked)))
            assert run_of(raw) == run_of(parked)
            assert message_of(raw).content.startswith("Fine.")
            assert message_of(await asking).content.startswith("Fine.")  # and knows not what came of the call
    assert looks.keys == ["x", "x"]
    assert "outcome_unknown" in told(upstream.requests[-1])


async def test_a_record_that_is_damaged_is_as_good_as_none(fresh_redis: RedisServer) -> None:
    looks = Looks(at_once=True)
    toml = f'[store]\nurl = "{fresh_redis.url}"\ntimeout_s = 5.0\n'
    async with (
        ScriptedUpstream(SCRIPT) as upstream,
        proxy_for(upstream.url, looks.tool, toml=toml) as first,
        proxy_for(upstream.url, looks.tool, toml=toml) as second,
    ):
        parked = await ask(first, QUESTION)
        client = fresh_redis.client()
        (key,) = [key for key in client.keys("asynclm:parked:*") if key.endswith(b"}")]
        client.hset(key, "record", b'{"version": 1}')
        raw = await ask(second, back(QUESTION, message_of(parked)))
        assert message_of(raw).content == "Fine."
        assert "rebuilt" in kinds(second, run_of(raw))


async def test_room_for_others_and_time_that_is_up(shared: str) -> None:
    """A run that had to make room goes on from the store; one whose time is up does not."""
    looks = Looks(at_once=True)
    room = f"{shared}[limits]\nmax_parked = 0\n"
    async with ScriptedUpstream(SCRIPT) as upstream, proxy_for(upstream.url, looks.tool, toml=room) as proxy:
        parked = await ask(proxy, QUESTION)
        await noted(proxy, run_of(parked), "finished")
        await kept(proxy)
        raw = await ask(proxy, back(QUESTION, message_of(parked)))
        assert run_of(raw) == run_of(parked)
        assert YES in told(upstream.requests[1])
    late = f"{shared}[limits]\nparked_s = 0.05\n"
    async with ScriptedUpstream(SCRIPT) as upstream, proxy_for(upstream.url, looks.tool, toml=late) as proxy:
        parked = await ask(proxy, QUESTION)
        await noted(proxy, run_of(parked), "finished")
        raw = await ask(proxy, back(QUESTION, message_of(parked)))
        assert run_of(raw) != run_of(parked)
        assert "rebuilt" in kinds(proxy, run_of(raw))
