import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from asynclm.adapters.models.local.engine import Sampled, Sampling
from asynclm.adapters.models.transformers.sampler import Draw, sample

SIZE = 100


def logits(count: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def draw(mask: object = None, **sampling: object) -> Draw:
    settings = Sampling(**sampling)  # type: ignore[arg-type]
    return Draw(settings, random.Random(settings.seed), mask)


def only(*tokens: int, size: int = SIZE) -> np.ndarray:
    mask = np.zeros(-(-size // 32), dtype=np.uint32)
    for token in tokens:
        mask[token // 32] |= np.uint32(1 << (token % 32))
    return mask.view(np.int32)


def drawn(rows: Tensor, times: int, **sampling: object) -> Counter[int]:
    """How often each token comes out of the first row."""
    one = draw(seed=1, **sampling)
    return Counter(sampled.token for _ in range(times) for sampled in sample(rows, [one]))


def kept(probabilities: Tensor, top_p: float) -> set[int]:
    """By the definition: the fewest of the likeliest that reach `top_p` together."""
    tokens: set[int] = set()
    total = 0.0
    for token in probabilities.argsort(descending=True).tolist():
        if total >= top_p:
            break
        tokens.add(token)
        total += probabilities[token].item()
    return tokens


def test_temperature_zero_takes_the_likeliest_of_each_row() -> None:
    rows = logits(5)
    tokens = [sampled.token for sampled in sample(rows, [draw(temperature=0)] * 5)]
    assert tokens == rows.argmax(-1).tolist()


def test_draws_follow_the_distribution() -> None:
    rows = torch.tensor([[0.1, 0.2, 0.7]]).log()
    counts = drawn(rows, 4000)
    assert [round(counts[token] / 4000, 1) for token in range(3)] == [0.1, 0.2, 0.7]


def test_temperature_sharpens() -> None:
    rows = torch.tensor([[0.1, 0.2, 0.7]]).log()
    expected = torch.tensor([0.1, 0.2, 0.7]) ** 2
    counts = drawn(rows, 4000, temperature=0.5)
    assert [round(counts[t] / 4000, 1) for t in range(3)] == [round(x, 1) for x in (expected / expected.sum()).tolist()]


def test_a_tiny_temperature_is_greedy() -> None:
    rows = logits()
    assert drawn(rows, 20, temperature=1e-30) == {int(rows.argmax()): 20}


def test_top_k_bounds_the_choice() -> None:
    rows = logits()
    assert set(drawn(rows, 2000, top_k=3, temperature=3.0)) == set(rows[0].topk(3).indices.tolist())
    assert set(drawn(rows, 20, top_k=1)) == {int(rows.argmax())}
    assert len(drawn(rows, 500, top_k=SIZE + 5, temperature=20.0)) > SIZE / 2


@pytest.mark.parametrize("top_p", [0.3, 0.8, 0.95])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float) -> None:
    rows = logits() / 2
    assert set(drawn(rows, 6000, top_p=top_p)) == kept(torch.softmax(rows[0], -1), top_p)


def test_top_p_of_nothing_keeps_the_likeliest() -> None:
    rows = logits()
    assert set(drawn(rows, 20, top_p=0.0)) == {int(rows.argmax())}


@pytest.mark.parametrize("size", [1_000, 10_000])
def test_top_p_of_a_flat_distribution_looks_beyond_the_first_few(size: int) -> None:
    """More tokens are kept than top-p looks at in its first go, and in its second."""
    rows = torch.linspace(0, -1e-3, size)[None]
    one = draw(seed=3, top_p=0.9)
    tokens = [sampled.token for _ in range(300) for sampled in sample(rows, [one])]
    assert size * 0.7 < max(tokens) < size * 0.9005


def test_top_k_and_top_p_together() -> None:
    rows = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Of the first three (0.9 in all), 0.7 of it is 0.63: two of them.
    assert set(drawn(rows, 500, top_k=3, top_p=0.7)) == {0, 1}


def test_a_mask_bounds_the_choice_and_may_end_before_the_vocabulary() -> None:
    rows = logits()
    assert set(drawn(rows, 500, temperature=5.0)) > {1, 40}
    for mask in (only(1, 40, 99), only(1, 40, size=64)):
        one = draw(mask, temperature=5.0, seed=1)
        tokens = {sampled.token for _ in range(500) for sampled in sample(rows, [one])}
        assert tokens == {1, 40, 99} & {token for token in range(SIZE) if token < len(mask) * 32}
        [greedy] = sample(rows, [draw(mask, temperature=0)])
        assert greedy.token == max(tokens, key=lambda token: rows[0, token].item())


def test_masks_are_each_row_s_own() -> None:
    rows = logits(3)
    draws = [draw(only(5), temperature=0), draw(temperature=0), draw(only(31, 32), seed=1)]
    first, second, third = sample(rows, draws)
    assert first.token == 5
    assert second.token == int(rows[1].argmax())
    assert third.token in (31, 32)


def test_logprobs_are_those_of_the_model_before_temperature_and_masks() -> None:
    rows = logits()
    expected = torch.log_softmax(rows[0], -1)
    [sampled] = sample(rows, [draw(only(5, 6), temperature=7.0, top_k=1, logprobs=3)])
    assert sampled.logprob == pytest.approx(expected[sampled.token].item(), abs=1e-5)
    best = expected.topk(3)
    assert [token for token, _ in sampled.top] == best.indices.tolist()
    assert [value for _, value in sampled.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_logprobs_without_alternatives_and_none_at_all() -> None:
    rows = logits(2)
    with_one, without = sample(rows, [draw(temperature=0, logprobs=0), draw(temperature=0)])
    assert with_one.logprob < 0
    assert with_one.top == ()
    assert math.isnan(without.logprob)


@pytest.mark.parametrize(("temperature", "value"), [(0.0, math.nan), (1.0, math.nan), (1.0, math.inf)])
def test_a_row_that_is_no_numbers_has_an_error_and_the_others_a_token(temperature: float, value: float) -> None:
    rows = logits(3)
    alone = sample(rows[[0, 2]], [draw(temperature=temperature, seed=s) for s in (1, 2)])
    rows[1, 50] = value
    results = sample(rows, [draw(temperature=temperature, seed=s, logprobs=None) for s in (1, 9, 2)])
    assert [results[0].token, results[2].token] == [sampled.token for sampled in alone]
    assert results[1].token == -1
    assert "isn't made of numbers" in (results[1].error or "")


def test_a_mask_that_leaves_nothing_is_an_error_of_its_own() -> None:
    rows = logits(2)
    bad, good = sample(rows, [draw(only(), logprobs=2), draw(temperature=0)])
    assert bad == Sampled(-1, pytest.approx(math.nan, nan_ok=True), error="the mask leaves no token to be drawn")
    assert good.token == int(rows[1].argmax())


def test_logits_are_left_as_they_are() -> None:
    rows = logits(2)
    before = rows.clone()
    sample(rows, [draw(only(3), temperature=2.0, top_p=0.5, seed=1), draw(temperature=0, logprobs=1)])
    torch.testing.assert_close(rows, before)


def test_a_stream_moves_on_by_one_number_a_draw_and_only_if_it_draws() -> None:
    rows = logits(2)
    one, other = draw(seed=4), draw(seed=4, top_p=0.9, top_k=50)
    for _ in range(5):
        sample(rows, [one, other])
    state = random.Random(4)
    for _ in range(5):
        state.random()
    assert one.stream.getstate() == other.stream.getstate() == state.getstate()
    greedy = draw(seed=4, temperature=0)
    sample(rows[:1], [greedy])
    assert greedy.stream.getstate() == random.Random(4).getstate()
