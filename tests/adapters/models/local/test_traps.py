"""What becomes of a cache at a trap, by its costs, the wait, and who else wants the memory."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.adapters.models.local.costs import Costs, Curve
from asynclm.adapters.models.local.traps import Choice, CostHandler, Rule, left, worth

# Swapping is dearer below 100 tokens, computing again above.
COSTS = Costs(Curve(10.0, 0.1), Curve(0.0, 0.1, 0.001))
FREE = {"crowded": False, "must": False}
CROWDED = {"crowded": True, "must": False}
MUST = {"crowded": True, "must": True}

tokens = st.integers(1, 100_000)
waits = st.floats(0.001, 1000)


def choice(rule: Rule, n: int, wait: float, **others: bool) -> Choice:
    return CostHandler(COSTS, rule).decide(n, wait, **others).choice  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n", "wait", "best"),
    [
        (50, 0.007, Choice.KEEP),  # 7.5 and 15 ms
        (50, 0.008, Choice.RECOMPUTE),
        (50, 60.0, Choice.RECOMPUTE),
        (1000, 0.109, Choice.KEEP),  # 1100 and 110 ms
        (1000, 0.111, Choice.SWAP),
        (1000, 60.0, Choice.SWAP),
    ],
)
def test_the_rule_of_the_paper(n: int, wait: float, best: Choice) -> None:
    assert choice("paper", n, wait, **FREE) is best
    assert choice("paper", n, wait, **CROWDED) is best
    assert choice("auto", n, wait, **CROWDED) is best


@given(tokens, waits)
def test_what_nobody_needs_the_memory_of_is_kept(n: int, wait: float) -> None:
    assert choice("auto", n, wait, **FREE) is Choice.KEEP


@given(tokens, waits, st.sampled_from(["auto", "paper", "keep"]))
def test_what_must_go_goes_the_cheaper_way(n: int, wait: float, rule: Rule) -> None:
    cheaper = Choice.SWAP if COSTS.swap(n) <= COSTS.recompute(n) else Choice.RECOMPUTE
    assert choice(rule, n, wait, **MUST) is cheaper


@given(tokens, waits, st.booleans(), st.booleans())
def test_a_rule_that_names_a_choice_makes_it(n: int, wait: float, crowded: bool, must: bool) -> None:
    for always in (Choice.SWAP, Choice.RECOMPUTE):
        assert choice(always.value, n, wait, crowded=crowded, must=must) is always
    assert choice("keep", n, wait, crowded=crowded, must=False) is Choice.KEEP


def test_a_decision_says_why_and_what_each_way_costs() -> None:
    decision = CostHandler(COSTS).decide(1000, 5.0, **MUST)
    assert decision.why == "its memory is needed"
    assert decision.costs_ms == {"swap": 110.0, "recompute": 1100.0}


def test_where_nothing_was_measured_it_is_kept_and_computed_again_if_it_had_to_go() -> None:
    handler = CostHandler(None)
    assert handler.decide(1000, 5.0, **CROWDED).choice is Choice.KEEP
    assert handler.decide(1000, 5.0, **MUST).choice is Choice.RECOMPUTE
    assert handler.worth(10, 1.0) > handler.worth(1000, 2.0), "what is needed last is worth least"


@given(st.floats(0.01, 1e5), tokens, waits)
def test_a_cache_is_worth_more_the_more_it_costs_and_less_the_more_memory_it_takes_for_longer(
    cost: float, n: int, wait: float
) -> None:
    assert worth(2 * cost, n, wait) > worth(cost, n, wait)
    assert worth(cost, 2 * n, wait) < worth(cost, n, wait)
    assert worth(cost, n, 2 * wait) < worth(cost, n, wait)


def test_of_caches_with_the_same_cost_for_each_token_the_one_needed_last_goes() -> None:
    handler = CostHandler(Costs(Curve(each=0.1), Curve(each=1.0)))
    candidates = list(itertools.product((100, 1000), (0.1, 1.0, 10.0)))
    assert min(candidates, key=lambda each: handler.worth(*each))[1] == 10.0


def test_what_is_needed_at_once_stays() -> None:
    handler = CostHandler(COSTS)
    assert handler.worth(4000, 0.0) > handler.worth(50, 1.0)


def test_a_wait_that_nobody_knows_is_taken_for_a_second() -> None:
    assert left(None, 0.0) == 1.0
    assert left(None, 10.0) > 1.0


@given(st.floats(0.001, 1000), st.floats(0, 100))
def test_what_is_left_of_a_wait_is_never_nothing(expected: float, waited: float) -> None:
    rest = left(expected, waited)
    assert 0 < rest < math.inf
    assert rest >= (expected - waited) * (1 - 1e-9), "what took long already takes longer in all, if anything"
    assert left(expected, 0.0) == expected


@given(st.floats(0.01, 100), st.floats(1.0, 1e6))
def test_the_later_it_is_the_later_it_gets(expected: float, times: float) -> None:
    late = expected * times
    assert left(expected, 1.5 * late) > left(expected, late)


@pytest.mark.parametrize("waited", [0.2, 1.0, 3.0])
def test_what_is_left_is_the_median_of_what_is_left_of_log_normal_times(waited: float) -> None:
    dice = random.Random(11)
    times = [dice.lognormvariate(0.0, 1.0) for _ in range(100_000)]  # median 1
    longer = [time - waited for time in times if time > waited]
    assert left(1.0, waited) == pytest.approx(statistics.median(longer), rel=0.03)
