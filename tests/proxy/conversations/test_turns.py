"""Follow-up questions: what was called and told in earlier turns is put back into the prompt."""

import itertools
import json
from typing import Any

import pytest
from harness import Proxy, proxy_for
from upstream import Answer, ScriptedUpstream

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
CALL = "[CALL] a [HEAD] stock(article='x') [END]\n"
TRAP = "[TRAP][END]"
SCRIPT = [Answer("I look. ", CALL, TRAP), Answer("Seventeen.\n"), Answer("In the north.")]
TOLD = '[INTR] a [HEAD] {"count":17,"where":"[north]"} [END]'


def stock(article: str) -> dict[str, Any]:
    """How many there are."""
    return {"count": 17, "where": "[north]"}


async def ask(proxy: Proxy, messages: list[Any], key: str = "sk-1", **options: Any) -> str:
    completion = await proxy.client().chat.completions.create(
        **{"model": "m", "messages": messages, "extra_headers": {"authorization": f"Bearer {key}"}, **options}
    )
    return str(completion.choices[0].message.content)


def follow(messages: list[Any], answer: Any) -> list[Any]:
    return [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "And where?"}]


PREFILL = 'prefill = "continue_final_message"\n'


@pytest.mark.parametrize("toml", ["", PREFILL], ids=["interleave", "prefill"])
@pytest.mark.parametrize("written", ["as it came", "stripped", "parts"])
async def test_the_next_turn_knows_what_the_tools_said(toml: str, written: str) -> None:
    async with ScriptedUpstream(SCRIPT) as upstream, proxy_for(upstream.url, stock, toml=toml) as proxy:
        answer: Any = await ask(proxy, QUESTION)
        assert answer == "I look.\n\nSeventeen.\n"
        if written != "as it came":
            answer = answer.strip()
        if written == "parts":
            answer = [{"type": "text", "text": answer}]
        assert await ask(proxy, follow(QUESTION, answer)) == "In the north."
    _, second, third = (body["messages"] for body in upstream.requests)
    said = json.dumps(second).rstrip('"}]')
    assert json.dumps(third).startswith(said)
    assert json.dumps(TOLD)[1:-1] in json.dumps(third)
    assert third[-1] == {"role": "user", "content": "And where?"}
    assert third[-2]["content"].rstrip().endswith("Seventeen.")
    assert len(third) == (4 if toml else 6)


@pytest.mark.parametrize("change", ["key", "answer", "before", "bound"])
async def test_what_is_not_known_is_read_as_the_client_tells_it(change: str) -> None:
    toml = "[limits]\nturns_chars = 50\n[conversations]\nstore = false\n" if change == "bound" else ""
    async with ScriptedUpstream(SCRIPT) as upstream, proxy_for(upstream.url, stock, toml=toml) as proxy:
        messages = follow(QUESTION, await ask(proxy, QUESTION))
        if change == "answer":
            messages[2] = {"role": "assistant", "content": "Eighteen."}
        if change == "before":
            messages[0] = {"role": "system", "content": "Be brief!"}
        await ask(proxy, messages, key="sk-2" if change == "key" else "sk-1")
    assert upstream.requests[2]["messages"][1:] == messages[1:]


async def test_an_answer_that_was_cut_within_a_block_is_not_kept() -> None:
    script = [SCRIPT[0], Answer("So: X[CALL] b [HEAD] stock("), SCRIPT[2]]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, stock) as proxy:
        messages = follow(QUESTION, await ask(proxy, QUESTION, stop="X"))
        assert messages[2]["content"] == "I look.\n\nSo: "
        await ask(proxy, messages)
    assert upstream.requests[2]["messages"][1:] == messages[1:]


async def test_turns_of_runs_with_tools_of_the_clients_own() -> None:
    script = [
        Answer("[CALL] k [HEAD] ask_user() [END]\n", CALL, TRAP),
        Answer("Seventeen."),
        Answer("[CALL] a [HEAD] stock(article='y') [END]", TRAP),
        Answer("In the north."),
        Answer("As I said."),
    ]
    tools = [{"type": "function", "function": {"name": "ask_user"}}]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, stock) as proxy:
        options: Any = {"model": "m", "tools": tools, "extra_headers": {"x-asynclm-policy": "coalesce"}}
        client = proxy.client()
        messages: list[Any] = list(QUESTION)
        answered = 0
        while answered < 3:
            completion = await client.chat.completions.create(messages=messages, **options)
            message: Any = completion.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            if message.tool_calls:
                messages.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "yes"})
            else:
                answered += 1
                messages.append({"role": "user", "content": "And where?"})
    prompts = [json.dumps(body["messages"])[:-1] for body in upstream.requests]
    for earlier, later in itertools.pairwise(prompts):
        assert later.startswith(earlier)
    assert prompts[-1].count("[INTR]") == prompts[0].count("[INTR]") + 3
