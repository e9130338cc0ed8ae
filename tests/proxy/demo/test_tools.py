import json
import statistics

import pytest

from asynclm.cml.body import parse_body
from asynclm.proxy.demo.bfcl import World, draw_cases, load_samples
from asynclm.proxy.demo.tools import Workshop, build_task, call_ids, running_ms

pytestmark = pytest.mark.looptime

CASE = draw_cases(load_samples(), 1, seed=3)[0]


def test_times_are_the_papers_and_the_same_for_the_same_seed() -> None:
    times = [running_ms(1, CASE, tool, nth) for tool in ("f", "g") for nth in range(2000)]
    assert times == [running_ms(1, CASE, tool, nth) for tool in ("f", "g") for nth in range(2000)]
    assert min(times) >= 30
    assert max(times) <= 500
    assert statistics.mean(times) == pytest.approx(110, abs=5)


def test_the_task_holds_every_call_chained_and_with_its_time() -> None:
    task = build_task(CASE, seed=1)
    assert [node.call for node in task.calls] == [call for sample in CASE.samples for call in sample.calls]
    assert [node.id for node in task.calls if not node.after] == ["a1", "b1", "c1"]
    assert {node.after for node in task.calls if node.id == "b2"} == {("b1",)}
    assert all(30 <= node.estimate_ms <= 500 for node in task.calls)


async def work(workshop: Workshop, *, leave_out: int = 0) -> str:
    """Run the ground truth's calls as a model would, and quote the results."""
    truth = World(CASE.samples)
    lines = []
    for sample, names in zip(CASE.samples, call_ids(CASE), strict=True):
        for name, body in list(zip(names, sample.calls, strict=True))[: len(names) - leave_out]:
            spec, arguments = workshop.toolbox.check(parse_body(body))
            await workshop.toolbox[spec.name].run(arguments)
            lines.append(f"{name} = {json.dumps(truth.run([body])[0])}")
    return "\n".join(["Everything is done:", *lines])


async def test_a_right_run_has_no_problems() -> None:
    workshop = Workshop(CASE, seed=1)
    answer = await work(workshop)
    assert workshop.problems(answer) == []


async def test_what_the_answer_leaves_out_or_gets_wrong_is_a_problem() -> None:
    workshop = Workshop(CASE, seed=1)
    answer = await work(workshop)
    lines = answer.splitlines()
    assert len(workshop.problems("\n".join(lines[:-1]))) == 1
    assert len(workshop.problems("\n".join([*lines[:-1], f"{lines[-1].split(' = ')[0]} = 12345"]))) == 1
    assert len(workshop.problems("")) == len(lines) - 1


async def test_calls_that_were_not_made_are_problems() -> None:
    workshop = Workshop(CASE, seed=1)
    answer = await work(workshop, leave_out=1)
    found = "\n".join(workshop.problems(answer))
    assert "the calls returned" in found
    assert "does not say" in found


async def test_a_call_too_many_is_a_problem() -> None:
    workshop = Workshop(CASE, seed=1)
    answer = await work(workshop)
    spec, arguments = workshop.toolbox.check(parse_body(CASE.samples[0].calls[0]))
    await workshop.toolbox[spec.name].run(arguments)
    assert any("the calls returned" in problem for problem in workshop.problems(answer))
