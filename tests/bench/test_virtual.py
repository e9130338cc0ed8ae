"""Cases on the virtual clock: right under every method, and the same every time."""

import pytest

from asynclm.bench.evaluation import Plan, evaluate
from asynclm.bench.methods import METHODS, ORDERS
from asynclm.bench.results import Result, Setting

SETTING = Setting(ttft_ms=310.0, tpot_ms=5.0, tool_ms=110.0)


def run(dataset: str, count: int, *methods: str, seed: int = 3, jobs: int = 1, **more: object) -> list[Result]:
    plan = Plan(
        **{
            "dataset": dataset,
            "count": count,
            "seed": seed,
            "settings": (SETTING,),
            "methods": methods or tuple(METHODS),
            **more,
        }
    )
    told: list[int] = []
    results = evaluate(plan, jobs, told.append)
    assert sum(told) == len(results) == plan.runs()
    return results


@pytest.mark.parametrize("dataset", ["parallel", "live-parallel", "multi-step", "multi-step-parallel"])
def test_every_method_is_right(dataset: str) -> None:
    results = run(dataset, 3)
    assert [result for result in results if result.problems] == []
    assert len({result.calls for result in results if result.case == results[0].case}) == 1
    assert {result.first_token_s for result in results} == {0.31}


def test_the_same_seed_gives_the_same_figures_however_many_processes_there_are() -> None:
    two = (SETTING, Setting(ttft_ms=60.0, tpot_ms=10.0, tool_ms=550.0))
    alone = run("multi-step-parallel", 6, settings=two)
    assert run("multi-step-parallel", 6, settings=two, jobs=2) == alone
    assert [(result.setting, result.method) for result in alone[:7]] == [(two[0], method) for method in METHODS]
    assert run("multi-step-parallel", 6, "sync", seed=4) != alone[::7][:6]


def test_a_chain_alone_takes_its_calls_and_a_first_token_after_each() -> None:
    fast = Setting(ttft_ms=310.0, tpot_ms=0.0, tool_ms=110.0)
    plan = Plan(dataset="multi-step", count=5, seed=0, settings=(fast,), methods=("sync",))
    for case, result in zip(plan.cases(fast), evaluate(plan, 1, lambda count: None), strict=True):
        expected = sum(call.running_ms + fast.ttft_ms for call in case.calls) / 1000
        assert result.latency_s == pytest.approx(expected, abs=2e-6)


def test_longest_first_is_the_best_order_and_shortest_first_the_worst() -> None:
    results = run("parallel", 12, *ORDERS)
    totals = {order: sum(each.latency_s for each in results if each.method == order) for order in ORDERS}
    assert totals["lpt"] < totals["random"] < totals["shortest"]
    assert [result for result in results if result.problems] == []


@pytest.mark.parametrize("method", ["sync", "parallel", "coalesce", "in-sequence"])
def test_tasks_that_arrive_one_by_one(method: str) -> None:
    (result,) = run("multi-step-parallel", 1, method, gap_ms=200.0, timelines=True)
    assert result.problems == ()
    assert result.timeline is not None
    outside = [entry.t for entry in result.timeline.entries if entry.kind == "outside"]
    assert outside == ([] if method in ("sync", "parallel") else [0.2, 0.4])


def test_a_task_that_arrives_after_the_end_is_a_request_of_its_own() -> None:
    (result,) = run("multi-step-parallel", 1, "in-sequence", gap_ms=60_000.0, timelines=True)
    assert result.problems == ()
    assert result.streams == 3
    assert 120 < result.latency_s < 122
    assert result.timeline is not None
    assert [round(entry.t) for entry in result.timeline.entries if entry.kind == "opened"] == [0, 60, 120]
