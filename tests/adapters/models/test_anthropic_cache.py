"""What the cache breakpoints are good for: how much of each prompt is in the provider's cache, by its own rules."""

import itertools

import pytest
from anthropic_cache import AnthropicCache, blocks_of

from asynclm.adapters.models import Request
from asynclm.adapters.models.anthropic_prompt import body_of
from asynclm.cml.transcript import Segment

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go."}]

both_ways = pytest.mark.parametrize("prefill", [False, True], ids=["interleave", "prefill"])


def body(segments=(), messages=MESSAGES, *, prefill=False):
    request = Request(model="claude-x", messages=messages, transcript=segments)
    return body_of(request, prefill=prefill, sampling=True, cache=True, max_tokens=1)


def wrote(name):
    return Segment("model", f"[CALL] {name} [HEAD] f() [END]\n[TRAP][END]")


def told(name):
    return Segment("runtime", f"[INTR] {name} [HEAD] 1 [END]")


def length(prompt):
    return len(blocks_of(prompt))


@both_ways
def test_a_resume_reads_the_whole_prompt_before_it(prefill):
    cache = AnthropicCache()
    segments = []
    before = body(prefill=prefill)
    assert cache.request(before) == 0
    for n in range(30):
        segments += [wrote(f"c{n}"), told(f"c{n}")]
        resume = body(segments, prefill=prefill)
        assert cache.request(resume) == length(before) == length(resume) - 2
        before = resume


@both_ways
def test_a_branch_reads_all_that_it_shares_with_its_siblings(prefill):
    cache = AnthropicCache()
    first = body(prefill=prefill)
    cache.request(first)
    trunk = [wrote("a")]
    branches = [body([*trunk, told(name)], prefill=prefill) for name in "abc"]
    assert cache.request(branches[0]) == length(first)
    for branch in branches[1:]:
        assert cache.request(branch) == length(branch) - 1


@both_ways
@pytest.mark.parametrize("count", [2, 5, 10, 19])
def test_behind_many_folded_branches_the_first_ones_prompt_is_still_found(prefill, count):
    cache = AnthropicCache()
    cache.request(body(prefill=prefill))
    trunk = [wrote("a"), told("a"), wrote("b")]
    cache.request(body(trunk[:2], prefill=prefill))
    branches = [[told(f"c{n}"), wrote(f"d{n}")] for n in range(count)]
    prompts = [body([*trunk, branch[0]], prefill=prefill) for branch in branches]
    for prompt in prompts:
        cache.request(prompt)
    folded = [*trunk, *itertools.chain(*branches), told("d0")]
    assert cache.request(body(folded, prefill=prefill)) == length(prompts[0])


def test_the_next_turn_of_a_conversation_reads_the_one_before():
    cache = AnthropicCache()
    messages = list(MESSAGES)
    read = []
    for n in range(30):
        prompt = body(messages=messages)
        read.append((cache.request(prompt), length(prompt)))
        cache.request(body([wrote("a"), told("a")], messages))
        messages += [{"role": "assistant", "content": f"Done {n}."}, {"role": "user", "content": f"Again {n}."}]
    assert [now for now, _ in read[1:]] == [before for _, before in read[:-1]]


def test_other_conversations_read_the_system_prompt():
    cache = AnthropicCache()
    cache.request(body())
    assert cache.request(body(messages=[MESSAGES[0], {"role": "user", "content": "Stop."}])) == 1
