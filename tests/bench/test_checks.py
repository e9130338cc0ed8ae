"""The checks find whatever is wrong with a run: a right one, tampered with."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from asynclm.bench.methods import METHODS
from asynclm.bench.results import Setting
from asynclm.bench.virtual import run_case
from asynclm.bench.workloads import Workshop, load_cases
from asynclm.bench.workloads.checks import Ran, problems
from asynclm.bench.workloads.workshop import Done
from asynclm.cml.render import render_interrupt
from asynclm.cml.timeline import Entry

SETTING = Setting(ttft_ms=310.0, tpot_ms=5.0, tool_ms=110.0)
CASE = next(
    case
    for case in load_cases("multi-step-parallel", 20, 0, 110.0)
    if [call.tool for call in case.calls][:2] == ["lockDoors", "pressBrakePedal"]
)
FIRST, SECOND = CASE.calls[:2]  # a1, a2


@pytest.fixture
def workshop_and_run() -> tuple[Workshop, Ran]:
    """A run with nothing wrong."""
    workshop, (run,) = run_case(CASE, METHODS["fork"], SETTING)
    assert problems(workshop, [run]) == []
    return workshop, run


Tamper = Callable[[Workshop, Ran], Ran]


def forget(workshop: Workshop, run: Ran) -> Ran:
    del workshop.done[-1]
    return run


def twice(workshop: Workshop, run: Ran) -> Ran:
    done = workshop.done[0]
    workshop.done.append(Done(done.tool, done.arguments, None, done.value))
    return run


def another(workshop: Workshop, run: Ran) -> Ran:
    workshop.done[0] = replace(workshop.done[0], arguments={"unlock": False}, expected=None)
    return run


def too_early(workshop: Workshop, run: Ran) -> Ran:
    at = {done.expected.id: number for number, done in enumerate(workshop.done) if done.expected is not None}
    first, second = at[FIRST.id], at[SECOND.id]
    workshop.done[first], workshop.done[second] = workshop.done[second], workshop.done[first]
    return run


def returned(workshop: Workshop, run: Ran) -> Ran:
    workshop.done[0].value = {"forged": 1}
    return run


def state(workshop: Workshop, run: Ran) -> Ran:
    workshop.world.call("lockDoors", {"unlock": True, "door": ["driver"]})
    return run


def answered(workshop: Workshop, run: Ran) -> Ran:
    return replace(run, answer=f"{run.answer}\n{run.answer}")


def chatted(workshop: Workshop, run: Ran) -> Ran:
    return replace(run, answer=f"Wait. {run.answer}")


def cut(workshop: Workshop, run: Ran) -> Ran:
    return replace(run, finish_reason="length")


def unheard(workshop: Workshop, run: Ran) -> Ran:
    return replace(run, said=("a further task",))


def told(run: Ran) -> list[Entry]:
    return [entry for entry in run.timeline.entries if entry.kind == "interrupt"]


def untold(workshop: Workshop, run: Ran) -> Ran:
    run.timeline.entries.remove(told(run)[0])
    return run


def told_twice(workshop: Workshop, run: Ran) -> Ran:
    run.timeline.entries.append(told(run)[0])
    return run


def told_otherwise(workshop: Workshop, run: Ran) -> Ran:
    entry = told(run)[0]
    entry.data["text"] = "\n".join(render_interrupt(id, '"something else"') for id in entry.data["ids"])
    return run


def told_of_nothing(workshop: Workshop, run: Ran) -> Ran:
    run.timeline.add(1.0, "interrupt", stream=0, ids=["zz"], text=render_interrupt("zz", "1"))
    return run


def given_up(workshop: Workshop, run: Ran) -> Ran:
    run.timeline.add(1.0, "merged", stream=told(run)[0].stream, into=9)
    return run


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (forget, "was not executed: "),
        (twice, "which nobody asked for or once too often"),
        (another, "which nobody asked for or once too often"),
        (too_early, "was executed as number 1 of its chain"),
        (returned, "returned {'forged': 1}, not "),
        (state, "the end state is wrong: "),
        (answered, "the answer is "),
        (chatted, "the answer is "),
        (cut, "finish_reason is 'length', not 'stop'"),
        (unheard, "1 further tasks were sent, and the model was told 0 of them"),
        (untold, "the model was told [], not once "),
        (told_twice, "the model was told ["),
        (told_otherwise, "the model was told ['something else'], not once "),
        (told_of_nothing, "the model was told of zz, which is no call: [1]"),
        (given_up, "the model was told [], not once "),
    ],
)
def test_what_is_wrong_is_found(workshop_and_run: tuple[Workshop, Ran], tamper: Tamper, said: str) -> None:
    workshop, run = workshop_and_run
    found = problems(workshop, [tamper(workshop, run)])
    assert any(said in problem for problem in found), found


def test_what_a_branch_that_was_given_up_was_told_counts_once(workshop_and_run: tuple[Workshop, Ran]) -> None:
    workshop, run = workshop_and_run
    entry = told(run)[0]
    run.timeline.add(entry.t, "interrupt", stream=99, **entry.data)
    assert problems(workshop, [run]) != []
    run.timeline.add(entry.t, "merged", stream=99, into=entry.stream)
    assert problems(workshop, [run]) == []


def test_a_task_told_as_an_interrupt_has_an_answer_of_its_own(workshop_and_run: tuple[Workshop, Ran]) -> None:
    workshop, run = workshop_and_run
    run.timeline.add(1.0, "interrupt", stream=0, ids=["user"], text=render_interrupt("user", '"more"'))
    run = replace(run, said=("more",), answer=f"{run.answer}\n\n{run.answer}")
    assert problems(workshop, [run]) == []
