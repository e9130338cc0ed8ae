"""Follow-up questions: what was called and told in earlier turns is put back into the prompt."""

import asyncio
import hashlib
import itertools
import json
from typing import Any

import msgspec
import pytest
from harness import Proxy, proxy_for
from redis_server import RedisServer
from upstream import Answer, ScriptedUpstream

from asynclm.adapters.stores import Store, connect
from asynclm.cml.transcript import Segment
from asynclm.proxy.conversations.stored_turns import Kept, StoredTurns
from asynclm.proxy.shared_secret import SharedSecret

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


# ---------------------------------------------------------------------- in the store


async def test_turns_outlive_the_process_and_other_proxies_know_them(shared: str) -> None:
    async with ScriptedUpstream([*SCRIPT, Answer("As I said.")]) as upstream:
        async with proxy_for(upstream.url, stock, toml=shared) as proxy:
            messages = follow(QUESTION, await ask(proxy, QUESTION))
        async with (
            proxy_for(upstream.url, stock, toml=shared) as second,
            proxy_for(upstream.url, stock, toml=shared) as third,
        ):
            messages = follow(messages, await ask(second, messages))
            await ask(third, messages)
            await ask(third, messages, key="sk-2")
    bodies = [json.dumps(body["messages"]) for body in upstream.requests]
    for earlier, later in itertools.pairwise(bodies[1:4]):
        assert later.startswith(earlier.rstrip('"}]'))
    assert json.dumps(TOLD)[1:-1] in bodies[3]
    assert upstream.requests[4]["messages"][1:] == messages[1:]


async def test_two_conversations_with_the_same_beginning(shared: str) -> None:
    """Each answer has its own: a fork, or an answer that was asked for again, does not disturb the other."""
    counts = itertools.count(17)

    def count(article: str) -> int:
        """How many there are."""
        return next(counts)

    call = CALL.replace("stock", "count")
    script = [Answer(call, TRAP), Answer("Many."), Answer(call, TRAP), Answer("Some."), Answer("There.")]
    async with (
        ScriptedUpstream(script) as upstream,
        proxy_for(upstream.url, count, toml=shared) as first,
        proxy_for(upstream.url, count, toml=shared) as second,
    ):
        many, some = [follow(QUESTION, await ask(first, QUESTION)) for _ in range(2)]
        for messages in (many, some, [*many[:-1], {"role": "user", "content": "Really?"}]):
            await ask(second, messages)
    told = [body["messages"][3]["content"] for body in upstream.requests[4:]]
    assert told == [f"[INTR] a [HEAD] {n} [END]" for n in (17, 18, 17)]


@pytest.mark.parametrize("empty", [None, "", []])
async def test_an_answer_without_text(shared: str, empty: Any) -> None:
    script = [Answer(CALL, TRAP), Answer(""), Answer("In the north.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, stock, toml=shared) as proxy:
        assert await ask(proxy, QUESTION) == ""
        await ask(proxy, follow(QUESTION, empty))
    assert TOLD in json.dumps(upstream.requests[-1]).replace("\\", "")


async def test_what_is_switched_off_is_not_stored(fresh_redis: RedisServer) -> None:
    store = f'[store]\nurl = "{fresh_redis.url}"\ntimeout_s = 5.0\n'
    digest = hashlib.sha256(b"sk-1").hexdigest()
    for toml in ("[conversations]\nstore = false\n", f'[recording]\noff_keys = ["{digest}"]\n'):
        async with ScriptedUpstream(SCRIPT) as upstream, proxy_for(upstream.url, stock, toml=store + toml) as proxy:
            await ask(proxy, follow(QUESTION, await ask(proxy, QUESTION)))
            assert TOLD in json.dumps(upstream.requests[2]).replace("\\", "")  # this process remembers it
        assert fresh_redis.client().keys() == []


async def test_a_store_that_fails_takes_no_turn_down() -> None:
    toml = '[store]\nurl = "redis://127.0.0.1:1/0"\n'
    async with ScriptedUpstream(SCRIPT) as upstream, proxy_for(upstream.url, stock, toml=toml) as proxy:
        assert await ask(proxy, follow(QUESTION, await ask(proxy, QUESTION))) == "In the north."
        assert TOLD in json.dumps(upstream.requests[2]).replace("\\", "")


async def test_the_oldest_turns_make_room(shared_store: Store) -> None:
    turns = StoredTurns(shared_store, SharedSecret(shared_store), keep_s=60, max_bytes=10_000)
    digests = [bytes([n]) * 32 for n in range(8)]
    for digest in digests:
        await turns.keep(digest, digest, kept(2000))
    await turns.keep(digests[7], digests[7], kept(2100))  # in its own place
    there = [digest for digest in digests if await turns.find(digest, [digest])]
    assert there == digests[4:]
    assert (await turns.find(digests[7], [digests[7]]))[digests[7]] == kept(2100)
    await turns.keep(digests[0], digests[0], kept(2600))  # more than its share
    assert not await turns.find(digests[0], [digests[0]])


async def test_turns_expire(shared_store: Store) -> None:
    turns = StoredTurns(shared_store, SharedSecret(shared_store), keep_s=0.05, max_bytes=10_000)
    await turns.keep(b"r", b"d", kept(10))
    while await turns.find(b"r", [b"d"]):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("damage", [b"", b"\xc1", msgspec.msgpack.encode([2, [0, []]]), msgspec.msgpack.encode([1, 7])])
async def test_what_is_damaged_is_not_found(fresh_redis: RedisServer, damage: bytes) -> None:
    store = Store(connect(fresh_redis.url, timeout_s=5), name="test", timeout_s=5)
    turns = StoredTurns(store, SharedSecret(store), keep_s=60, max_bytes=10_000)
    await turns.keep(b"r", b"d", kept(10))
    (key,) = [key for key in fresh_redis.client().keys("asynclm:turn:*") if b"index" not in key]
    fresh_redis.client().set(key, damage)
    assert await turns.find(b"r", [b"d"]) == {}
    await store.aclose()


def kept(size: int) -> Kept:
    return Kept(0, (Segment("runtime", "x" * size),))
