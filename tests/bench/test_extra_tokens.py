"""`max_extra_tokens` bounds what `auto` may spend beyond `coalesce`, on every case."""

import functools

import pytest

from asynclm.bench.measure import result
from asynclm.bench.methods import METHODS
from asynclm.bench.results import Result, Setting
from asynclm.bench.virtual import run_case
from asynclm.bench.workloads import load_cases
from asynclm.proxy.config import Limits

SETTING = Setting(ttft_ms=310, tpot_ms=5, tool_ms=110)


@functools.cache
def results(method: str, bound: int) -> list[Result]:
    limits = Limits(max_extra_tokens=bound)
    return [
        result(run_case(case, METHODS[method], SETTING, limits=limits), METHODS[method], SETTING)
        for case in load_cases("multi-step-parallel", 12, 3, SETTING.tool_ms)
    ]


def tokens(one: Result) -> int:
    return one.prompt_tokens + one.completion_tokens


@pytest.mark.parametrize("policy", ["auto", "fork"])
@pytest.mark.parametrize("bound", [0, 12_000, 25_000, 40_000])
def test_the_bound_holds(policy: str, bound: int) -> None:
    extra = [
        tokens(mine) - tokens(plain)
        for mine, plain in zip(results(policy, bound), results("coalesce", bound), strict=True)
    ]
    assert max(extra) <= bound
    assert not any(one.problems for one in results(policy, bound))


def test_without_extra_tokens_auto_is_coalesce() -> None:
    for mine, plain in zip(results("auto", 0), results("coalesce", 0), strict=True):
        assert (mine.latency_s, tokens(mine), mine.streams) == (plain.latency_s, tokens(plain), plain.streams)


def test_more_tokens_buy_time() -> None:
    spent = [sum(map(tokens, results("auto", bound))) for bound in (0, 30_000, 100_000)]
    time = [sum(one.latency_s for one in results("auto", bound)) for bound in (0, 30_000, 100_000)]
    assert spent == sorted(set(spent))
    assert time[0] > time[1] >= time[2]


def test_a_bound_that_is_soon_reached_costs_no_time() -> None:
    for bound in (12_000, 20_000, 25_000):
        mine, plain = results("auto", bound), results("coalesce", 0)
        assert sum(one.latency_s for one in mine) <= 1.01 * sum(one.latency_s for one in plain)
