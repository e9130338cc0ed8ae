"""The datasets: the same cases for the same seed, and calls that their tools take."""

import statistics

import pytest

from asynclm.adapters.models.simulated.plan import read
from asynclm.adapters.models.simulated.task import find_tasks
from asynclm.bench.workloads import DATASETS, Workshop, load_cases
from asynclm.bench.workloads.times import running_ms


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_same_seed_draws_the_same_cases(dataset: str) -> None:
    first, again, other = (
        [(case.id, case.prompt()) for case in load_cases(dataset, 12, seed, 110.0)] for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len({id for id, _ in first}) == 12


@pytest.mark.parametrize(("dataset", "count"), [("parallel", 398), ("live-parallel", 39), ("multi-step", 198)])
def test_all_that_there_are(dataset: str, count: int) -> None:
    cases = load_cases(dataset, 1000, 0, 110.0)
    assert len({case.id for case in cases}) == len(cases) == count
    for case in cases:
        assert case.calls
        for chain, each in enumerate(case.chains):
            assert [call.body for call in case.calls if call.chain == chain] == list(each.calls)


def test_parallel_calls_are_independent_and_joined_chains_are_not() -> None:
    (one,) = load_cases("parallel", 1, 0, 110.0)
    assert all(node.after == () for node in one.task().calls)
    (three,) = load_cases("multi-step-parallel", 1, 0, 110.0)
    assert len(three.chains) == 3
    starts = [node.id for node in three.task().calls if not node.after]
    assert starts == ["a1", "b1", "c1"]


def test_times_are_the_papers_and_stretch() -> None:
    times = [running_ms(str(key), 110.0) for key in range(20_000)]
    assert min(times) >= 30
    assert max(times) <= 500
    assert statistics.mean(times) == pytest.approx(110, rel=0.02)
    assert [running_ms(str(key), 1100.0) for key in range(50)] == pytest.approx(
        [10 * ms for ms in times[:50]], rel=0.01
    )
    assert running_ms("0", 0.0) == 0


def test_the_cheat_sheet_survives_its_prompt() -> None:
    for case in load_cases("parallel", 100, 5, 110.0):
        assert find_tasks(case.prompt()) == [case.task()]


@pytest.mark.parametrize(("order", "wanted"), [("longest", -1), ("shortest", 1)])
def test_orders(order: str, wanted: int) -> None:
    for case in load_cases("parallel", 20, 0, 110.0):
        progress = read([{"role": "user", "content": case.prompt(order=order)}])
        written = []
        while (step := progress.next()) is not None and step.id is not None:
            written.append(wanted * case.running_ms[step.id])
            progress.finished(step)
        assert written == sorted(written)
        assert len(written) == len(case.calls)


def test_a_random_order_is_always_the_same_one() -> None:
    first, again = (load_cases("parallel", 30, 0, 110.0) for _ in range(2))
    prompts = [case.prompt(order="random") for case in first]
    assert prompts == [case.prompt(order="random") for case in again]
    assert prompts != [case.prompt() for case in first]


def test_some_chains_of_a_case() -> None:
    (case,) = load_cases("multi-step-parallel", 1, 0, 110.0)
    (task,) = find_tasks(case.prompt([1]))
    assert {node.id[0] for node in task.calls} == {"b"}
    assert case.chains[1].question in case.prompt([1])
    assert case.chains[0].question not in case.prompt([1])


async def test_the_same_call_twice_is_expected_twice() -> None:
    (case,) = [case for case in load_cases("parallel", 400, 0, 0.0) if case.id == "parallel_158"]
    workshop = Workshop(case)
    for call in case.calls:
        await workshop.run(call.tool, call.arguments)
    assert [done.expected.id for done in workshop.done if done.expected is not None] == [call.id for call in case.calls]
    await workshop.run(case.calls[0].tool, case.calls[0].arguments)
    assert workshop.done[-1].expected is None
