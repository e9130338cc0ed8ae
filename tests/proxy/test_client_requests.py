"""What clients with tools of their own send, and in what form: each request is read, or refused with a reason."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from harness import proxy_for
from parking import ASK, LOOK, QUESTION, TOOLS, TRAP, Looks, ask, back, function, kinds, noted, said, told
from upstream import Answer, ScriptedUpstream

SCRIPT = [Answer("Wait. ", LOOK, ASK, TRAP), Answer("Fine.")]
YES, VALUE = '[INTR] a [HEAD] "yes" [END]', '[INTR] b [HEAD] "value of x" [END]'


async def resumed(script: list[Answer], change: Any, **options: Any) -> tuple[Any, Any, ScriptedUpstream]:
    """Ask, come back with what `change` makes of the messages; both answers, and what the upstream was asked."""
    looks = Looks(at_once=True)
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, looks.tool) as proxy:
        first = await ask(proxy, QUESTION)
        run = first.headers["x-asynclm-run-id"]
        await noted(proxy, run, "result")
        messages = change(back(QUESTION, first.parse().choices[0].message))
        second = await ask(proxy, messages, **options)
        assert "rebuilt" not in kinds(proxy, second.headers["x-asynclm-run-id"])
    assert second.headers["x-asynclm-run-id"] == run
    assert looks.keys == ["x"]
    return first, second, upstream


def written_anew(messages: list[Any]) -> list[Any]:
    """As frameworks do: arguments decoded and encoded, content left out, fields of their own, text in parts."""
    *question, message, result = messages
    call = message["tool_calls"][0]
    arguments = json.dumps(json.loads(call["function"]["arguments"]), indent=1)
    call = {**call, "index": 0, "function": {"arguments": arguments, "name": call["function"]["name"]}}
    question = [{**each, "content": [{"type": "text", "text": f"{each['content']}\n"}]} for each in question]
    content = [{"type": "text", "text": '"ye'}, {"type": "text", "text": 's"'}]
    return [
        *question,
        {"role": "assistant", "name": "bot", "content": None, "tool_calls": [call]},
        {**result, "name": "ask-user", "content": content},
    ]


async def test_a_client_that_writes_its_messages_anew_has_the_same_run() -> None:
    _, second, upstream = await resumed(SCRIPT, written_anew)
    assert second.parse().choices[0].message.content == "Fine."
    assert told(upstream.requests[1]) == f"{VALUE}\n{YES}"
    assert said(upstream.requests[1]).startswith(said(upstream.requests[0]))


@pytest.mark.parametrize("content", ["Now?", [{"type": "text", "text": "Now?"}]])
async def test_what_the_user_says_behind_the_results_is_told_with_them(content: Any) -> None:
    _, _, upstream = await resumed(SCRIPT, lambda messages: [*messages, {"role": "user", "content": content}])
    assert told(upstream.requests[1]) == f'{VALUE}\n{YES}\n[INTR] user [HEAD] "Now?" [END]'


async def test_a_last_step_without_the_clients_tools() -> None:
    """As agents end that have made enough steps: the run goes on, and can't ask the client any more."""
    script = [SCRIPT[0], Answer(ASK.replace(" a ", " c "), TRAP), Answer("Fine.")]
    _, second, upstream = await resumed(script, list, tool_choice="none")
    assert second.parse().choices[0].message.content == "Fine."
    assert "ask_user(question: str)" not in json.dumps(upstream.requests[1])
    assert VALUE in told(upstream.requests[1])
    assert '[INTR] c [HEAD] {"error":{"type":"unknown_tool"' in told(upstream.requests[2])


async def test_other_tools_from_now_on() -> None:
    script = [SCRIPT[0], Answer("[CALL] c [HEAD] other() [END]", TRAP)]
    _, second, _ = await resumed(script, list, tools=[*TOOLS, function("other")])
    assert second.parse().choices[0].message.tool_calls[0].function.name == "other"


@pytest.mark.parametrize("policy", ["immediate", "coalesce", "fork", "auto", "parallel"])
async def test_a_client_that_takes_one_call_at_a_time(policy: str) -> None:
    """`parallel_tool_calls: false`. The second goes out at the beginning of the next answer, behind the role."""
    script = [Answer("Hm. ", ASK, ASK.replace(" a ", " c "), TRAP), Answer("Fine.")]
    options: Any = {"parallel_tool_calls": False, "extra_headers": {"x-asynclm-policy": policy}}
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        first = (await ask(proxy, QUESTION, **options)).parse().choices[0]
        assert first.finish_reason == "tool_calls"
        assert len(first.message.tool_calls) == 1
        messages = back(QUESTION, first.message)
        stream = await proxy.client().chat.completions.create(
            model="m", messages=messages, tools=TOOLS, stream=True, **options
        )
        deltas = [chunk.choices[0] async for chunk in stream]
        assert deltas[0].delta.role == "assistant"
        calls = [call for each in deltas for call in each.delta.tool_calls or ()]
        assert [(call.index, call.function.name) for call in calls] == [(0, "ask-user")]
        assert [each.finish_reason for each in deltas if each.finish_reason] == ["tool_calls"]
        text = "".join(each.delta.content or "" for each in deltas)
        call = {"id": calls[0].id, "type": "function", "function": calls[0].function.model_dump()}
        messages += [
            {"role": "assistant", "content": text, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": calls[0].id, "content": "no"},
        ]
        third = (await ask(proxy, messages, **options)).parse().choices[0]
        assert third.finish_reason == "stop"
    assert '[INTR] c [HEAD] "no" [END]' in told(upstream.requests[-1])


async def test_a_conversation_that_begins_with_a_call() -> None:
    """Its user's words were cut away, as some clients do with long histories."""
    call = {"id": "x1", "type": "function", "function": {"name": "ask-user", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x1", "content": "yes"},
    ]
    async with ScriptedUpstream([Answer("Fine.")]) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        assert (await ask(proxy, messages)).parse().choices[0].message.content == "Fine."
    assert [message["role"] for message in upstream.requests[0]["messages"]] == ["system", "assistant", "user"]


async def test_part_of_the_results_first_and_all_of_them_later() -> None:
    """The second request finds what was known when the run parked, and is told all."""
    looks = Looks(at_once=True)
    script = [Answer(LOOK, ASK, ASK.replace(" a ", " c "), TRAP), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, looks.tool) as proxy:
        first = await ask(proxy, QUESTION)
        await noted(proxy, first.headers["x-asynclm-run-id"], "result")
        message = first.parse().choices[0].message
        await ask(proxy, back(QUESTION, message, {1: "yes"}))
        await ask(proxy, back(QUESTION, message, {1: "yes", 0: "no"}))
    assert looks.keys == ["x"]
    partly, wholly = told(upstream.requests[1]), told(upstream.requests[2])
    assert "no_result" in partly
    assert wholly == f'{VALUE}\n[INTR] a [HEAD] "no" [END]\n[INTR] c [HEAD] "yes" [END]'


NO_TOOL = {"role": "tool", "content": "yes"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (lambda message: [{**NO_TOOL, "tool_call_id": "call_unknown"}], "messages[3].tool_call_id"),
        (lambda message: [NO_TOOL], "messages[3].tool_call_id"),
        (lambda message: [{**NO_TOOL, "tool_call_id": message.tool_calls[0].id}] * 2, "messages[4].tool_call_id"),
        (
            lambda message: [
                {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": [{"type": "image_url"}]}
            ],
            "messages[3].content",
        ),
        (lambda message: [QUESTION[1], {**NO_TOOL, "tool_call_id": message.tool_calls[0].id}], "messages[4]"),
    ],
    ids=["unknown", "none", "twice", "image", "apart"],
)
async def test_results_that_belong_to_nothing(change: Any, param: str) -> None:
    """Refused, and the run waits for the right request."""
    looks = Looks(at_once=True)
    async with ScriptedUpstream(SCRIPT) as upstream, proxy_for(upstream.url, looks.tool) as proxy:
        first = await ask(proxy, QUESTION)
        run, message = first.headers["x-asynclm-run-id"], first.parse().choices[0].message
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(proxy, [*QUESTION, message.model_dump(exclude_none=True), *change(message)])
        assert refused.value.param == param
        assert (await ask(proxy, back(QUESTION, message))).headers["x-asynclm-run-id"] == run


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "ask-user"}}}, "tool_choice"),
        ({"n": 2}, "n"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0]"),
        ({"tools": [function("look")]}, "tools"),
        ({"tools": [*TOOLS, *TOOLS]}, "tools"),
    ],
    ids=["required", "forced", "n", "functions", "custom", "name of the proxy's", "twice"],
)
async def test_what_can_not_be_kept_is_refused(options: Any, param: str) -> None:
    async with ScriptedUpstream(SCRIPT) as upstream, proxy_for(upstream.url, Looks().tool) as proxy:
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(proxy, QUESTION, **options)
        assert refused.value.param == param
    assert upstream.requests == []


async def test_a_client_that_leaves_before_the_answer_has_ended() -> None:
    """It has had a call, but no end: nobody comes back for that run, so its tools are cancelled."""
    looks, hold = Looks(), asyncio.Event()
    script = [Answer(LOOK, ASK, "So ", "far.", hold=hold, hold_at=3), Answer("Fine.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, looks.tool) as proxy:
        stream = await proxy.client().chat.completions.create(model="m", messages=QUESTION, tools=TOOLS, stream=True)
        calls = []
        async for chunk in stream:
            calls += chunk.choices[0].delta.tool_calls or []
            if calls:
                break
        await stream.close()
        await looks.cancelled.wait()
        call = {"id": calls[0].id, "type": "function", "function": calls[0].function.model_dump()}
        messages = [
            *QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": calls[0].id, "content": "yes"},
        ]
        raw = await ask(proxy, messages)  # it comes back all the same
        assert raw.parse().choices[0].message.content == "Fine."
        assert "rebuilt" in kinds(proxy, raw.headers["x-asynclm-run-id"])
    assert told(upstream.requests[1]) == YES
