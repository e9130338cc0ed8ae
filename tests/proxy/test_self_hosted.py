"""Runs on self-hosted servers, through the whole proxy: the server gets the tokens that it has, and what is new."""

from __future__ import annotations

import pytest
from harness import Proxy, answer_of, proxy_for
from token_servers import PATHS, TokenUpstream

CALL = ["I", " look", ".\n[", "CA", "LL] a [HEAD]", " stock(article='x') [E", "ND]\n"]
TRAP = ["[TR", "AP][", "END]"]
TOLD = "[INTR] a [HEAD] 17 [END]"
everywhere = pytest.mark.parametrize("kind", list(PATHS))


def stock(article: str) -> int:
    """How many there are."""
    return 17


async def ask(proxy: Proxy, policy: str) -> tuple[str, str | None]:
    stream = await proxy.client().chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "How many?"}],
        stream=True,
        extra_headers={"x-asynclm-policy": policy},
    )
    return await answer_of(stream)


@everywhere
async def test_a_run_that_traps(kind: str) -> None:
    script = [[*CALL, *TRAP, "never"], ["Seven", "teen", "."]]
    async with (
        TokenUpstream(kind, script) as upstream,
        proxy_for(upstream.url, stock, toml='prefill = "tokens"\n') as proxy,
    ):
        completion = await proxy.client().chat.completions.create(
            model="m", messages=[{"role": "user", "content": "How many?"}]
        )
    assert completion.choices[0].message.content == "I look.\n\nSeventeen."
    first, second = upstream.prompts
    assert second == f"{first}{''.join([*CALL, *TRAP])}\n{TOLD}\n"
    one, two = (body["prompt"] for body in upstream.requests)
    assert two[: len(one)] == one
    assert upstream.tokens(two)[len(one) :][: len(CALL)] == CALL  # although no tokenizer would make them so
    assert completion.usage is not None
    assert completion.usage.prompt_tokens_details is not None
    assert completion.usage.prompt_tokens_details.cached_tokens == len(one) + len(two) - 2
    assert upstream.dropped == 0


@everywhere
async def test_a_run_that_is_cut_in_the_middle_of_a_sentence(kind: str) -> None:
    on = [" While", " that", " runs", ":"]
    # It writes on only when it is resumed: the first stream stays open until the result has cut it.
    async with (
        TokenUpstream(
            kind, [[*CALL, *on, " never"], [" there", " are", " 17", "."]], hold_at=len(CALL + on)
        ) as upstream,
        proxy_for(upstream.url, stock, toml='prefill = "tokens"\n') as proxy,
    ):
        text, reason = await ask(proxy, "immediate")
        await upstream.until_dropped()
    assert reason == "stop"
    first, second = upstream.prompts
    assert second.startswith(f"{first}{''.join(CALL).rstrip()}")
    assert second.endswith(f"\n{TOLD}\n")
    assert text.startswith("I look.")
    assert text.endswith(" there are 17.")
    assert "never" not in text
    one, two = (body["prompt"] for body in upstream.requests)
    assert two[: len(one) + len(CALL) - 1] == one + [upstream.id(token) for token in CALL[:-1]]
