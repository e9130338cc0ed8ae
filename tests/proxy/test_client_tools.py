"""Tools of the client's own beside the proxy's, through the real proxy, with OpenAI's own client."""

import asyncio
import itertools
import json
from typing import Any

import aiohttp
import openai
import pytest
from harness import Proxy, proxy_for
from parking import ASK, LOOK, QUESTION, TOOLS, TRAP, Looks, ask, back, kinds, noted, told
from recording import RecordingUpstream
from upstream import Answer, ScriptedUpstream

from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.cml.machine import POLICIES
from asynclm.proxy.client_tools import python_name

# ---------------------------------------------------------------------- whole conversations


def task() -> str:
    nodes = (
        Node("a", "ask_user(question='Sure?')", (), 50),
        Node("b", "look(key='x')", (), 40),
        Node("c", "look(key='y')", ("a", "b"), 30),
        Node("d", "ask_user(question='Really?')", ("b",), 20),
    )
    return encode_task(Task(nodes, say="At once.", answer="So:"))


async def converse(proxy: Proxy, policy: str, *, stream: bool) -> tuple[str, list[str], list[dict[str, Any]]]:
    """Talk as any agent does: until there are no more calls. What was said, what was asked, the usages."""
    client = proxy.client()
    messages: list[Any] = [{"role": "user", "content": f"Do this: {task()}"}]
    said, asked, usages, runs = "", [], [], set()
    while True:
        options: Any = {"model": "simulated", "messages": messages, "tools": TOOLS}
        options["extra_headers"] = {"x-asynclm-policy": policy}
        if stream:
            options["stream_options"] = {"include_usage": True}
            async with client.chat.completions.stream(**options) as events:
                completion: Any = await events.get_final_completion()
        else:
            completion = await client.chat.completions.create(**options)
        (choice,) = completion.choices
        usages.append(completion.usage.model_dump())
        runs.add(completion.usage.asynclm["run"])
        said += choice.message.content or ""
        if choice.finish_reason != "tool_calls":
            assert choice.finish_reason == "stop"
            assert not choice.message.tool_calls
            assert len(runs) == 1
            return said, asked, usages
        for call in choice.message.tool_calls:
            assert call.function.name == "ask-user"
            asked.append(json.loads(call.function.arguments)["question"])
        messages = back(messages, choice.message)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("inject", [False, True], ids=["resume", "inject"])
@pytest.mark.parametrize("policy", POLICIES)
async def test_a_whole_conversation(policy: str, inject: bool, stream: bool) -> None:
    looks = Looks(at_once=True)
    toml = f"ttft_ms = 1\ntpot_ms = 0\ninject = {str(inject).lower()}\n"
    async with proxy_for(None, looks.tool, kind="simulated", toml=toml) as proxy:
        said, asked, usages = await converse(proxy, policy, stream=stream)
    assert sorted(asked) == ["Really?", "Sure?"]
    assert sorted(looks.keys) == ["x", "y"]
    assert said.startswith("At once.")
    assert said.endswith('So:\na = "yes"\nb = "value of x"\nc = "value of y"\nd = "yes"')
    assert sum(usage["asynclm"]["calls"] for usage in usages) == 2


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_prompt_goes_on_where_it_ended(policy: str) -> None:
    looks = Looks(at_once=True)
    async with RecordingUpstream() as upstream, proxy_for(upstream.base_url("openai"), looks.tool) as proxy:
        said, asked, _ = await converse(proxy, policy, stream=True)
    assert sorted(asked) == ["Really?", "Sure?"]
    assert said.endswith('So:\na = "yes"\nb = "value of x"\nc = "value of y"\nd = "yes"')
    prompts = [json.dumps(json.loads(body)["messages"])[:-1] for body in upstream.bodies]
    assert len(prompts) >= 2
    if policy in ("fork", "auto"):  # branches are no prefixes of each other, but all go on from the first prompt
        assert all(prompt.startswith(prompts[0]) for prompt in prompts)
    else:
        for earlier, later in itertools.pairwise(prompts):
            assert later.startswith(earlier)


# ---------------------------------------------------------------------- one answer


async def test_the_call_goes_out_at_once_and_the_chunks_are_standard() -> None:
    """While the model writes on, and a tool of the proxy's runs."""
    hold, looks = asyncio.Event(), Looks()
    script = [Answer("Wait. ", LOOK, ASK, ASK.replace(" a ", " c "), "So ", "far.", TRAP, hold=hold, hold_at=4)]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, looks.tool) as proxy:
        stream = await proxy.client().chat.completions.create(
            model="m", messages=QUESTION, tools=TOOLS, stream=True, stream_options={"include_usage": True}
        )
        chunks: list[Any] = []
        async for chunk in stream:
            chunks.append(chunk)
            if len([True for each in chunks if each.choices and each.choices[0].delta.tool_calls]) == 2:
                hold.set()
        assert not looks.go.is_set()
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [call.index for call in calls] == [0, 1]
    assert [(call.type, call.function.name) for call in calls] == [("function", "ask-user")] * 2
    assert [call.function.arguments for call in calls] == ['{"question":"Sure?"}'] * 2
    assert len({call.id for call in calls}) == 2
    assert all(20 < len(call.id) <= 40 for call in calls)
    order = ["call" if delta.tool_calls else delta.content for delta in deltas]
    assert [each for each in order if each] == ["Wait.", "call", "call", "\nSo", " far."]
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["tool_calls"]
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []


async def test_a_wrong_call_is_for_the_model_to_mend() -> None:
    script = [
        Answer("[CALL] a [HEAD] ask_user(text='Sure?') [END]", TRAP),
        Answer("[CALL] b [HEAD] ask_user(question='Sure?') [END]", TRAP),
    ]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        raw = await ask(proxy, QUESTION)
    (call,) = raw.parse().choices[0].message.tool_calls
    assert call.function.arguments == '{"question":"Sure?"}'
    assert "unexpected keyword argument 'text'" in told(upstream.requests[1])


async def test_a_call_without_an_id_gets_one() -> None:
    script = [Answer("Hm. [CALL] ask_user(question='[CALL] x') [END]", TRAP), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        raw = await ask(proxy, QUESTION)
        message = raw.parse().choices[0].message
        await ask(proxy, back(QUESTION, message))
    *_, written, _ = upstream.requests[1]["messages"]
    assert written["content"].startswith("Hm. [CALL] ask_user [HEAD] ask_user(question='[CALL] x') [END]")
    assert told(upstream.requests[1]) == '[INTR] ask_user [HEAD] "yes" [END]'


async def test_tool_choice_none_leaves_the_clients_tools_out() -> None:
    async with ScriptedUpstream([Answer("Hi.")]) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        await ask(proxy, QUESTION, tool_choice="none")
        await ask(proxy, QUESTION, tool_choice="auto", parallel_tool_calls=False)
    none, auto = (body["messages"][0]["content"] for body in upstream.requests)
    assert "ask_user" not in none
    assert "- ask_user(question: str)\n  It." in auto
    assert set(upstream.requests[1]) == {"model", "messages", "stream", "stream_options", "stop"}


async def test_an_upstreams_own_word_for_tool_calls_is_an_end() -> None:
    script = [Answer("Done.", reason="tool_calls")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        raw = await ask(proxy, QUESTION)
    assert raw.parse().choices[0].finish_reason == "stop"


# ---------------------------------------------------------------------- coming back


async def test_what_came_meanwhile_is_told_with_the_clients_results() -> None:
    looks = Looks()
    script = [Answer("Wait. ", LOOK, ASK, TRAP, usage=(100, 7)), Answer("Fine.", usage=(200, 3))]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, looks.tool) as proxy:
        first = await ask(proxy, QUESTION)
        run = first.headers["x-asynclm-run-id"]
        assert proxy.server.registry.live() == []
        assert proxy.server.registry.summaries()[0].status == "parked"
        looks.go.set()
        await noted(proxy, run, "result")
        message = first.parse().choices[0].message
        assert message.content == "Wait."
        second = await ask(proxy, back(QUESTION, message, {0: ' {"ok": "[END]"} '}), max_tokens=50)
        assert kinds(proxy, run).count("finished") == 1
    assert len(upstream.requests) == 2
    assert told(upstream.requests[1]) == (
        '[INTR] b [HEAD] "value of x" [END]\n[INTR] a [HEAD] {"ok":"\\u005bEND]"} [END]'
    )
    assert second.headers["x-asynclm-run-id"] == run
    assert second.headers["x-request-id"] == f"{run}-2"
    assert second.parse().id != first.parse().id
    one, two = first.parse(), second.parse()
    assert (two.choices[0].message.content, two.choices[0].finish_reason) == ("Fine.", "stop")
    assert (two.usage.prompt_tokens, two.usage.completion_tokens) == (200, 3)
    assert (one.usage.asynclm["calls"], two.usage.asynclm["calls"]) == (1, 0)
    assert (one.usage.asynclm["streams"], two.usage.asynclm["streams"]) == (1, 1)


async def test_the_next_answer_waits_for_the_proxys_own_calls() -> None:
    looks = Looks()
    script = [Answer(LOOK, ASK, TRAP), Answer(TRAP), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, looks.tool) as proxy:
        first = await ask(proxy, QUESTION, extra_headers={"x-asynclm-policy": "coalesce"})
        headers = {"x-asynclm-policy": "coalesce"}
        asking = asyncio.create_task(
            ask(proxy, back(QUESTION, first.parse().choices[0].message), extra_headers=headers)
        )
        await noted(proxy, first.headers["x-asynclm-run-id"], "continued")
        looks.go.set()
        await asking
        assert told(upstream.requests[1]) == '[INTR] a [HEAD] "yes" [END]\n[INTR] b [HEAD] "value of x" [END]'


async def test_of_what_the_client_did_not_answer_the_model_reads_an_error() -> None:
    script = [Answer(ASK, ASK.replace(" a ", " c "), TRAP), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        message = (await ask(proxy, QUESTION)).parse().choices[0].message
        await ask(proxy, back(QUESTION, message, {1: "yes"}))
    lost, given = told(upstream.requests[1]).split("\n")
    assert lost.startswith('[INTR] a [HEAD] {"error":{"type":"no_result"')
    assert given == '[INTR] c [HEAD] "yes" [END]'


async def test_a_further_round_takes_up_the_same_run() -> None:
    script = [Answer(ASK, TRAP), Answer(ASK.replace(" a ", " c "), TRAP), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        first = await ask(proxy, QUESTION)
        messages = back(QUESTION, first.parse().choices[0].message)
        second = await ask(proxy, messages)
        messages = back(messages, second.parse().choices[0].message)
        third = await ask(proxy, messages)
    assert third.headers["x-request-id"] == f"{first.headers['x-asynclm-run-id']}-3"
    assert third.parse().choices[0].message.content == "Fine."
    bodies = [json.dumps(body["messages"])[:-1] for body in upstream.requests]
    assert bodies[2].startswith(bodies[1])
    assert bodies[1].startswith(bodies[0])


async def test_a_word_from_outside_waits_for_the_client() -> None:
    script = [Answer(ASK, TRAP), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        first = await ask(proxy, QUESTION)
        run = first.headers["x-asynclm-run-id"]
        async with aiohttp.ClientSession() as http:
            said = await http.post(f"{proxy.url}/asynclm/runs/{run}/interrupts", json={"text": "Hurry."})
            assert said.status == 202
        assert len(upstream.requests) == 1
        await ask(proxy, back(QUESTION, first.parse().choices[0].message))
    assert told(upstream.requests[1]) == '[INTR] user [HEAD] "Hurry." [END]\n[INTR] a [HEAD] "yes" [END]'


# ---------------------------------------------------------------------- runs that are gone


@pytest.mark.parametrize("change", ["messages", "behind", "policy", "model", "text", "arguments"])
async def test_another_request_than_was_waited_for_ends_the_run_and_builds_it_anew(change: str) -> None:
    looks = Looks()
    script = [Answer("Wait. ", LOOK, ASK, TRAP), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, looks.tool) as proxy:
        first = await ask(proxy, QUESTION)
        run = first.headers["x-asynclm-run-id"]
        await looks.began.wait()
        messages = back(QUESTION, first.parse().choices[0].message)
        options: dict[str, Any] = {}
        match change:
            case "messages":
                messages[0] = {"role": "system", "content": "Be very brief."}
            case "behind":
                messages.append({"role": "assistant", "content": "Now."})
            case "policy":
                options["extra_headers"] = {"x-asynclm-policy": "sync"}
            case "model":
                options["model"] = "n"
            case "text":
                messages[2]["content"] = "Wait!"
            case "arguments":
                messages[2]["tool_calls"][0]["function"]["arguments"] = '{"question": "Really?"}'
        second = await proxy.client().chat.completions.with_raw_response.create(
            **{"model": "m", "tools": TOOLS, "messages": messages, **options}
        )
        assert second.parse().choices[0].message.content == "Fine."
        assert second.headers["x-asynclm-run-id"] != run
        await looks.cancelled.wait()
        assert "error" in kinds(proxy, run)
        assert ("rebuilt" in kinds(proxy, second.headers["x-asynclm-run-id"])) == (change != "behind")
    at = -2 if change == "behind" else -1
    written, answered = upstream.requests[1]["messages"][at - 1], upstream.requests[1]["messages"][at]
    wait, sure = "Wait!" if change == "text" else "Wait.", "Really?" if change == "arguments" else "Sure?"
    wanted = f"{wait}\n[CALL] a [HEAD] ask_user(question={sure!r}) [END]\n[TRAP][END]"
    assert written == {"role": "assistant", "content": wanted}
    assert answered == {"role": "user", "content": '[INTR] a [HEAD] "yes" [END]'}


async def test_a_run_that_is_gone_is_rebuilt() -> None:
    """Told and asked by the simulated model: it knows what was done, and does the rest."""
    looks = Looks(at_once=True)
    toml = "ttft_ms = 1\ntpot_ms = 0\ninject = false\n[limits]\nmax_parked = 0\n[conversations]\nstore = false\n"
    async with proxy_for(None, looks.tool, kind="simulated", toml=toml) as proxy:
        client = proxy.client()
        messages: list[Any] = [{"role": "user", "content": f"Do this: {task()}"}]
        asked = []
        while True:
            completion: Any = await client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
            (choice,) = completion.choices
            if choice.finish_reason != "tool_calls":
                break
            asked += [call.function.arguments for call in choice.message.tool_calls]
            messages = back(messages, choice.message)
        assert proxy.server.registry.live() == []
    assert choice.message.content.endswith('a = "yes"\nb = "value of x"\nc = "value of y"\nd = "yes"')
    assert sorted(asked) == ['{"question":"Really?"}', '{"question":"Sure?"}']


async def test_a_client_that_never_comes_back_is_waited_for_a_while() -> None:
    looks = Looks()
    toml = "[limits]\nparked_s = 0.05\n"
    script = [Answer(LOOK, ASK, TRAP), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, looks.tool, toml=toml) as proxy:
        first = await ask(proxy, QUESTION)
        run = first.headers["x-asynclm-run-id"]
        await looks.cancelled.wait()
        assert kinds(proxy, run)[-1] == "finished"
        assert proxy.server.registry.summaries()[0].status == "failed"
        async with aiohttp.ClientSession() as http:
            said = await http.post(f"{proxy.url}/asynclm/runs/{run}/interrupts", json={"text": "Hurry."})
            assert said.status == 409
        second = await ask(proxy, back(QUESTION, first.parse().choices[0].message))
        assert second.parse().choices[0].message.content == "Fine."


async def test_the_same_request_twice_takes_the_run_up_once() -> None:
    """As a client sends it that has lost patience, or its connection."""
    script = [Answer("Wait. ", ASK, TRAP), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        first = await ask(proxy, QUESTION)
        messages = back(QUESTION, first.parse().choices[0].message)
        answers = await asyncio.gather(*(ask(proxy, messages) for _ in range(3)))
    runs = [answer.headers["x-asynclm-run-id"] for answer in answers]
    assert runs.count(first.headers["x-asynclm-run-id"]) == 1
    assert len(set(runs)) == 3
    assert [answer.parse().choices[0].message.content for answer in answers] == ["Fine."] * 3


async def test_a_client_that_leaves_the_further_answer_ends_the_run() -> None:
    looks = Looks()
    script = [Answer(LOOK, ASK, TRAP), Answer("Well, ", "then.", hold=asyncio.Event(), hold_at=1), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, looks.tool) as proxy:
        first = await ask(proxy, QUESTION)
        run = first.headers["x-asynclm-run-id"]
        messages = back(QUESTION, first.parse().choices[0].message)
        stream = await proxy.client().chat.completions.create(model="m", messages=messages, tools=TOOLS, stream=True)
        await anext(stream)
        await stream.close()
        await looks.cancelled.wait()
        await upstream.until(lambda: upstream.dropped == 1)
        await noted(proxy, run, "error")
        again = await ask(proxy, messages)
        assert again.parse().choices[0].message.content.startswith("Fine.")
        assert "restored" in kinds(proxy, again.headers["x-asynclm-run-id"])
    assert looks.keys == ["x"]
    assert '[INTR] b [HEAD] {"error":{"type":"outcome_unknown"' in json.dumps(upstream.requests[-1]).replace("\\", "")


async def test_an_upstream_that_fails_in_the_further_answer() -> None:
    script = [Answer(ASK, TRAP), Answer(status=400), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        first = await ask(proxy, QUESTION)
        messages = back(QUESTION, first.parse().choices[0].message)
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(proxy, messages)
        assert refused.value.response.headers["x-asynclm-run-id"] == first.headers["x-asynclm-run-id"]
        assert (await ask(proxy, messages)).parse().choices[0].message.content == "Fine."


async def test_a_whole_turn_later_the_tools_answers_are_known() -> None:
    script = [Answer("Wait. ", ASK, TRAP), Answer("Fine."), Answer("As I said.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        first = await ask(proxy, QUESTION)
        messages = back(QUESTION, first.parse().choices[0].message)
        second = await ask(proxy, messages)
        messages += [second.parse().choices[0].message.model_dump(exclude_none=True)]
        third = await ask(proxy, [*messages, {"role": "user", "content": "And?"}])
    assert third.parse().choices[0].message.content == "As I said."
    roles = [message["role"] for message in upstream.requests[2]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert upstream.requests[2]["messages"][3]["content"] == '[INTR] a [HEAD] "yes" [END]'


async def test_the_oldest_makes_room() -> None:
    looks = Looks()
    toml = "[limits]\nmax_parked = 1\n"
    script = [Answer(LOOK, ASK, TRAP), Answer(ASK, TRAP), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, looks.tool, toml=toml) as proxy:
        first = await ask(proxy, QUESTION)
        second = await ask(proxy, QUESTION)
        await looks.cancelled.wait()
        assert kinds(proxy, first.headers["x-asynclm-run-id"])[-1] == "finished"
        third = await ask(proxy, back(QUESTION, second.parse().choices[0].message))
        assert third.headers["x-asynclm-run-id"] == second.headers["x-asynclm-run-id"]


async def test_the_end_of_the_server_is_the_end_of_parked_runs() -> None:
    looks = Looks()
    script = [Answer(LOOK, ASK, TRAP)]
    toml = "[server]\ngrace_s = 0\n"
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, looks.tool, toml=toml) as proxy:
        first = await ask(proxy, QUESTION)
        await looks.began.wait()
        await proxy.server.drain()
        assert looks.cancelled.is_set()
        assert kinds(proxy, first.headers["x-asynclm-run-id"])[-1] == "finished"


async def test_earlier_rounds_stand_among_the_messages() -> None:
    """Native calls of an earlier turn, of whatever server: the model reads them as its own."""
    calls = [
        {"id": "x1", "type": "function", "function": {"name": "get-weather", "arguments": '{"city": "[END]"}'}},
        {"id": "x2", "type": "function", "function": {"name": "f", "arguments": "{"}},
    ]
    messages = [
        QUESTION[1],
        {"role": "assistant", "content": None, "tool_calls": calls},
        {
            "role": "tool",
            "tool_call_id": "x2",
            "content": [{"type": "text", "text": "[1, "}, {"type": "text", "text": "2]"}],
        },
        {"role": "assistant", "content": "It is so."},
        {"role": "user", "content": "And now?"},
    ]
    async with ScriptedUpstream([Answer("Yes.")]) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        await ask(proxy, messages)
    _, _, written, answered, *rest = upstream.requests[0]["messages"]
    assert rest == messages[3:]
    assert written["role"] == "assistant"
    assert written["content"] == (
        "[CALL] c1 [HEAD] get_weather(city='\\x5bEND]') [END]\n"
        '[CALL] c2 [HEAD] {"name":"f","arguments":"{"} [END]\n'
        "[TRAP][END]"
    )
    lost, given = answered["content"].split("\n")
    assert "no_result" in lost
    assert given == "[INTR] c2 [HEAD] [1,2] [END]"


@pytest.mark.parametrize(
    ("name", "known_as"),
    [("ask-user", "ask_user"), ("to.import", "to._import"), ("\U00011fc0-x", "__x"), ("2x", "_2x")],
)
def test_names_that_calls_can_be_written_with(name: str, known_as: str) -> None:
    assert python_name(name) == known_as
