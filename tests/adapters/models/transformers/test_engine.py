import math

import pytest
import torch
from tiny_models import CONTEXT, VOCABULARY, WINDOW, Fresh, engine, stock

from asynclm.adapters.models.local.engine import Feed, Memory, OutOfMemoryError, Pick, Sampling
from asynclm.adapters.models.transformers.engine import TransformersEngine

GREEDY = Sampling(temperature=0)
KINDS = ("llama", "qwen2", "qwen3", "mistral", "gpt2")


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def agree(engine: TransformersEngine, sequence: int, fresh: Fresh, history: list[int]) -> None:
    torch.testing.assert_close(engine.logits(sequence), fresh.logits(history), atol=1e-4, rtol=0)


def write(engine: TransformersEngine, sequence: int, count: int) -> list[int]:
    written = []
    for _ in range(count):
        [sampled] = engine.sample([Pick(sequence)])
        written.append(sampled.token)
        engine.forward([Feed(sequence, [sampled.token])])
    return written


@pytest.mark.parametrize("kind", KINDS)
def test_any_split_of_a_text_gives_the_logits_of_one_full_pass(kind: str) -> None:
    local, fresh = engine(kind), Fresh(kind)
    text = tokens(70)
    sequence, done = local.open(GREEDY), 0
    for size in (1, 3, 20, 1, 1, 7, 30, 2, 5):
        local.forward([Feed(sequence, text[done : done + size])])
        done += size
        agree(local, sequence, fresh, text[:done])
    assert done == len(text) == local.length(sequence)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_of_prompts_injections_and_decoded_tokens_together_computes_each_as_if_alone(kind: str) -> None:
    local, fresh = engine(kind), Fresh(kind)
    texts = {local.open(GREEDY): tokens(40, seed) for seed in range(4)}
    shares = [(9, 1, 25, 3), (1, 13, 1, 1), (1, 1, 9, 30), (20, 1, 1, 1)]
    done = dict.fromkeys(texts, 0)
    for share in shares:
        local.forward(
            [Feed(s, texts[s][done[s] : done[s] + n]) for (s, n) in zip(texts, share, strict=True)],
        )
        for sequence, count in zip(texts, share, strict=True):
            done[sequence] += count
            agree(local, sequence, fresh, texts[sequence][: done[sequence]])


def test_an_injection_computes_only_its_own_tokens() -> None:
    local, fresh = engine(), Fresh("llama")
    text = tokens(50)
    sequence = local.open(GREEDY)
    local.forward([Feed(sequence, text)])
    text += write(local, sequence, 5)
    rows: list[int] = []
    local._model.model.embed_tokens.register_forward_hook(
        lambda _module, inputs, _output: rows.append(inputs[0].numel())
    )
    local.forward([Feed(sequence, tokens(8, seed=1))])
    assert rows == [8]
    agree(local, sequence, fresh, text + tokens(8, seed=1))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_greedy_tokens_do_not_depend_on_the_batch(kind: str) -> None:
    local = engine(kind)
    alone = local.open(GREEDY)
    local.forward([Feed(alone, tokens(30))])
    expected = write(local, alone, 20)
    crowd = [local.open(GREEDY) for _ in range(3)]
    again = local.open(GREEDY)
    local.forward([Feed(again, tokens(30)), *(Feed(s, tokens(10 + s, seed=s)) for s in crowd)])
    written = []
    for step in range(20):
        picks = local.sample([Pick(again), *map(Pick, crowd)])
        written.append(picks[0].token)
        # Others decode, get injections, or sit out.
        feeds = [Feed(s, tokens(1 + (step * s) % 9, seed=step)) for s in crowd if (step + s) % 3]
        local.forward([*feeds, Feed(again, [picks[0].token])])
    assert written == expected


def test_a_greedy_continuation_is_the_one_that_transformers_generates() -> None:
    local, model = engine("mistral"), stock("mistral")
    text = tokens(25)
    sequence = local.open(GREEDY)
    local.forward([Feed(sequence, text)])
    with torch.inference_mode():
        expected = model.generate(torch.tensor([text]), max_new_tokens=20, min_new_tokens=20, do_sample=False)
    # `min_new_tokens` keeps transformers from ending: the same is asked of the engine by a mask.
    written = []
    mask = torch.full((VOCABULARY // 32,), -1, dtype=torch.int32)
    mask[0] &= ~(1 << 2)
    for _ in range(20):
        [sampled] = local.sample([Pick(sequence, mask.numpy())])
        written.append(sampled.token)
        local.forward([Feed(sequence, [sampled.token])])
    assert written == expected[0, len(text) :].tolist()


def test_a_fork_goes_its_own_way() -> None:
    local, fresh = engine("mistral"), Fresh("mistral")
    text = tokens(60)
    source = local.open(GREEDY)
    local.forward([Feed(source, text)])
    fork = local.fork(source, 40, GREEDY)
    assert local.length(fork) == 40
    other = tokens(9, seed=1)
    local.forward([Feed(fork, other), Feed(source, other[:1])])
    agree(local, fork, fresh, text[:40] + other)
    agree(local, source, fresh, text + other[:1])
    local.free(source)
    local.forward([Feed(fork, [5])])
    agree(local, fork, fresh, text[:40] + other + [5])


def test_a_fork_of_nothing_is_an_open() -> None:
    local, fresh = engine(), Fresh("llama")
    fork = local.fork(local.open(GREEDY), 0, GREEDY)
    local.forward([Feed(fork, [7, 8])])
    agree(local, fork, fresh, [7, 8])


def test_swapping_out_and_in_changes_nothing_and_keeps_the_distribution() -> None:
    local, fresh = engine(), Fresh("llama")
    text = tokens(40)
    sequence, other = local.open(GREEDY), local.open(GREEDY)
    local.forward([Feed(sequence, text), Feed(other, text[:9])])
    expected = local.sample([Pick(sequence)])
    local.swap_out(sequence)
    assert local.memory() == Memory(16, 40, 2048, local.memory().bytes_per_token)
    assert local.sample([Pick(sequence)]) == expected
    assert local.length(sequence) == 40
    local.forward([Feed(other, tokens(200, seed=3))])  # over the pages that it had
    with pytest.raises(ValueError, match="swapped out"):
        local.forward([Feed(sequence, [4])])
    local.swap_in(sequence)
    assert local.memory().swapped_tokens == 0
    local.forward([Feed(sequence, [4])])
    agree(local, sequence, fresh, [*text, 4])


def test_a_dropped_sequence_is_fed_again_and_goes_on_drawing_where_it_was() -> None:
    sampling = Sampling(temperature=1.0, seed=5)
    local, kept = engine(), engine()
    text = tokens(30)
    results = []
    for each, drops in ((local, True), (kept, False)):
        sequence = each.open(sampling)
        each.forward([Feed(sequence, text)])
        written = write(each, sequence, 4)
        if drops:
            each.drop(sequence)
            assert each.length(sequence) == 0
            assert each.memory().used_tokens == 0
            with pytest.raises(ValueError, match="no distribution"):
                each.sample([Pick(sequence)])
            each.forward([Feed(sequence, text + written)])
        results.append(written + write(each, sequence, 8))
    assert results[0] == results[1]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_truncated_sequence_goes_on_from_there(swapped: bool) -> None:
    local, fresh = engine(), Fresh("llama")
    text = tokens(40)
    sequence = local.open(GREEDY)
    local.forward([Feed(sequence, text)])
    if swapped:
        local.swap_out(sequence)
    local.truncate(sequence, 10)
    assert local.memory()[:2] == ((0, 10) if swapped else (16, 0))
    with pytest.raises(ValueError, match="no distribution"):
        local.sample([Pick(sequence)])
    local.swap_in(sequence)
    local.forward([Feed(sequence, [9, 8])])
    agree(local, sequence, fresh, [*text[:10], 9, 8])


def test_a_hundred_sequences_leave_nothing_behind() -> None:
    local = engine()
    for number in range(100):
        sequence = local.open(GREEDY)
        local.forward([Feed(sequence, tokens(10 + number))])
        fork = local.fork(sequence, 5, GREEDY)
        if number % 3 == 0:
            local.swap_out(sequence)
        local.free(sequence)
        local.free(fork)
        local.free(fork)
    assert local.memory()[:2] == (0, 0)


def test_memory_counts_whole_pages() -> None:
    local = engine(kv_tokens=100, page=16)
    sequence = local.open(GREEDY)
    local.forward([Feed(sequence, tokens(17))])
    assert local.memory() == Memory(32, 0, 96, 2 * 2 * 2 * 16 * 4)


def test_a_full_cache_refuses_a_pass_whole_and_leaves_all_as_it_was() -> None:
    local, fresh = engine(kv_tokens=64), Fresh("llama")
    one, two = local.open(GREEDY), local.open(GREEDY)
    text = tokens(30)
    local.forward([Feed(one, text)])
    before, logits = local.memory(), local.logits(one)
    with pytest.raises(OutOfMemoryError, match="the KV cache is full: 48 tokens more are needed, 32 of 64 are free"):
        local.forward([Feed(one, [5] * 10), Feed(two, [6] * 20)])
    with pytest.raises(OutOfMemoryError):
        local.fork(one, 30, GREEDY) and local.fork(one, 30, GREEDY)
    assert local.length(one) == 30
    assert local.length(two) == 0
    torch.testing.assert_close(local.logits(one), logits)
    local.free(3)  # the first of the forks went through
    assert local.memory() == before
    local.forward([Feed(one, [5] * 10)])
    agree(local, one, fresh, text + [5] * 10)


def test_a_swapped_sequence_that_finds_no_room_stays_on_the_host() -> None:
    local = engine(kv_tokens=64)
    one, two = local.open(GREEDY), local.open(GREEDY)
    local.forward([Feed(one, tokens(30))])
    local.swap_out(one)
    local.forward([Feed(two, tokens(40))])
    before = local.memory()
    with pytest.raises(OutOfMemoryError):
        local.swap_in(one)
    assert local.memory() == before
    local.free(two)
    local.swap_in(one)
    assert local.memory() == Memory(32, 0, 64, before.bytes_per_token)


def test_a_host_without_memory_leaves_a_sequence_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    local = engine("llama")
    sequence = local.open(Sampling(temperature=0.0))
    local.forward([Feed(sequence, tokens(20))])

    def empty(*given: object, **options: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        with pytest.raises(OutOfMemoryError, match="the host has no room for 20 tokens"):
            local.swap_out(sequence)
    assert local.memory().swapped_tokens == 0
    assert len(write(local, sequence, 3)) == 3


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_torch_out_of_memory_in_a_pass_is_ours_and_changes_nothing(error: Exception) -> None:
    local, fresh = engine(), Fresh("llama")
    one, two = local.open(GREEDY), local.open(GREEDY)
    text = tokens(30)
    local.forward([Feed(one, text)])
    expected, before = local.sample([Pick(one)]), local.memory()

    def fail(*_: object) -> None:
        raise error

    hook = local._model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(OutOfMemoryError, match="feed fewer tokens at once"):
        local.forward([Feed(one, tokens(100)), Feed(two, tokens(100))])
    hook.remove()
    assert local.memory() == before
    assert local.sample([Pick(one)]) == expected
    local.forward([Feed(one, [3, 4])])
    agree(local, one, fresh, [*text, 3, 4])


def test_another_error_in_a_pass_is_not_hidden() -> None:
    local = engine()
    sequence = local.open(GREEDY)

    def fail(*_: object) -> None:
        raise RuntimeError("the device is gone")

    local._model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="the device is gone"):
        local.forward([Feed(sequence, [1])])
    assert local.memory().used_tokens == 0


def test_what_cannot_be_fed_is_refused_before_anything_changes() -> None:
    local = engine(context=32)
    sequence = local.open(GREEDY)
    local.forward([Feed(sequence, tokens(30))])
    for feeds, message in (
        ([Feed(sequence, [5] * 3)], "33 tokens, more than the context of 32"),
        ([Feed(sequence, [])], "is fed nothing"),
        ([Feed(sequence, [VOCABULARY])], "isn't in the vocabulary"),
        ([Feed(sequence, [-1])], "isn't in the vocabulary"),
        ([Feed(sequence, [5]), Feed(sequence, [5])], "fed once in a pass"),
        ([Feed(sequence, [5]), Feed(77, [5])], "no sequence 77"),
    ):
        with pytest.raises(ValueError, match=message):
            local.forward(feeds)
        assert local.length(sequence) == 30
    with pytest.raises(ValueError, match="has 30 tokens, not 31"):
        local.fork(sequence, 31, GREEDY)
    with pytest.raises(ValueError, match="has 30 tokens, not 31"):
        local.truncate(sequence, 31)
    local.forward([])
    assert local.sample([]) == []


def test_a_context_that_the_whole_cache_cannot_hold_is_cut_to_it() -> None:
    assert engine(kv_tokens=100, page=16).context == 96
    assert engine().context == CONTEXT


def test_feeding_without_logits_leaves_nothing_to_draw_from() -> None:
    local = engine()
    sequence = local.open(GREEDY)
    local.forward([Feed(sequence, tokens(5))])
    local.forward([Feed(sequence, tokens(5), logits=False)])
    with pytest.raises(ValueError, match="no distribution"):
        local.sample([Pick(sequence)])


def test_only_the_rows_that_are_wanted_reach_the_head() -> None:
    local = engine()
    rows: list[int] = []
    local._model.lm_head.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[1]))
    one, two, three = (local.open(GREEDY) for _ in range(3))
    local.forward([Feed(one, tokens(50)), Feed(two, tokens(60), logits=False), Feed(three, tokens(3))])
    local.forward([Feed(one, tokens(5), logits=False)])
    assert rows == [2, 0]


def test_a_distribution_that_waits_does_not_keep_the_whole_pass_in_memory() -> None:
    local, fresh = engine(), Fresh("llama")
    texts = {local.open(GREEDY): tokens(5, seed) for seed in range(4)}
    local.forward([Feed(s, text) for s, text in texts.items()])
    waiting, *others = texts
    local.forward([Feed(s, [4]) for s in others])
    assert local.logits(waiting).untyped_storage().nbytes() == VOCABULARY * 4
    agree(local, waiting, fresh, texts[waiting])


def test_a_seeded_sequence_draws_the_same_whatever_else_is_drawn() -> None:
    drawn = []
    for crowd in (0, 3):
        local = engine()
        sequence = local.open(Sampling(temperature=0.9, top_p=0.95, seed=11))
        others = [local.open(Sampling(temperature=1.2, seed=i)) for i in range(crowd)]
        everyone = [*others, sequence]
        local.forward([Feed(s, tokens(20)) for s in everyone])
        written = []
        for _ in range(15):
            picks = local.sample([Pick(s) for s in everyone])
            written.append(picks[-1].token)
            local.forward([Feed(s, [p.token]) for s, p in zip(everyone, picks, strict=True)])
        drawn.append(written)
    assert drawn[0] == drawn[1]


def test_logits_that_are_no_numbers_spoil_only_their_own_pick() -> None:
    local = engine()
    good, bad = local.open(Sampling(logprobs=1, seed=1)), local.open(Sampling(logprobs=1))

    def spoil(_module: object, _inputs: object, output: torch.Tensor) -> None:
        output[0, 1, 7] = math.nan

    local._model.lm_head.register_forward_hook(spoil)
    local.forward([Feed(good, tokens(5)), Feed(bad, tokens(6))])
    first, second = local.sample([Pick(good), Pick(bad)])
    assert first.error is None
    assert first.logprob < 0
    assert second.token == -1
    assert second.error is not None
    assert "NaN" in second.error


def test_closing_gives_the_memory_back() -> None:
    local = engine()
    local.forward([Feed(local.open(GREEDY), tokens(5))])
    local.synchronize()
    local.close()
    assert local.memory()[:2] == (0, 0)


def test_a_sliding_window_is_shorter_than_what_these_tests_feed() -> None:
    """Otherwise none of them would see it: the stock model, too, must forget the first token."""
    fresh = Fresh("mistral", num_hidden_layers=1)
    text = tokens(WINDOW + 1)
    torch.testing.assert_close(fresh.logits(text), fresh.logits([9, *text[1:]]))
