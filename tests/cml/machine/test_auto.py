"""The policy `auto`: what it chooses, by what was measured, and what it says about it."""

import pytest
from playbook import Playbook, small

from asynclm.cml.machine import RunError
from asynclm.cml.machine import events as ev
from asynclm.cml.machine.costs import Costs, Speed, ToolRecords
from asynclm.cml.tools import ToolSpec
from asynclm.cml.usage import Usage

A, B, C = "[CALL] a [HEAD] f() [END]\n", "[CALL] b [HEAD] g() [END]\n", "[CALL] c [HEAD] h() [END]\n"
TRAP = "[TRAP][END]"


def costs(ttft: float | None = 0.3, **running: float) -> Costs:
    tools = ToolRecords()
    for name, seconds in running.items():
        tools.of(ToolSpec(name=name)).add(seconds)
    return Costs(Speed(ttft), tools)


def trapped(*calls: str, known: Costs | None = None, **options: object) -> Playbook:
    """A model that wrote its calls, the first token after 0.3 s, and waits."""
    p = Playbook("auto", costs=known or costs(), **options).passes(0.3)
    return p.writes(*calls, TRAP)


def chosen(p: Playbook) -> list[str]:
    return [note["choice"] for note in p.noted("decided")]


def test_the_last_result_is_just_delivered() -> None:
    p = trapped(A).passes(1).returns(0, 1)
    assert chosen(p) == ["deliver"]
    assert p.noted("decided")[0]["why"] == "nothing else is pending"
    assert p.streams == 2


def test_a_result_opens_a_branch_while_others_are_pending_and_the_timeline_says_why() -> None:
    p = trapped(A, B).passes(0.1).returns(0, 1)
    assert chosen(p) == ["fork"]
    expected = (
        "the next result is expected at an unknown time; a resume takes 300 ms; 100% of such results led to a call"
    )
    assert p.noted("decided")[0]["why"] == expected
    assert len(p.noted("branch")) == 1


def test_a_second_result_that_comes_at_once_is_merged_into_the_branch() -> None:
    p = trapped(A, B, C).returns(0, 1).passes(0.005).returns(1, 2)
    assert chosen(p) == ["fork", "merge"]
    assert p.noted("decided")[1]["why"].startswith("a branch was opened 5 ms ago and has not begun")
    assert p.noted("merged") == [{"into": 2}]
    assert p.open == [2]
    assert p.prompt[-1] == "runtime: [INTR] a [HEAD] 1 [END]\n[INTR] b [HEAD] 2 [END]"


def burst(calls: int, **options: object) -> Playbook:
    """Results that come one millisecond after another, each beside a branch that has not begun."""
    p = trapped(*(f"[CALL] c{n} [HEAD] f(x={n}) [END]" for n in range(calls)), **options)
    for call in range(calls):
        p.passes(0.001).returns(call, call)
    return p


def test_merging_does_not_use_up_the_resumes() -> None:
    p = burst(100)
    assert chosen(p)[-1] == "coalesce"
    p.writes(TRAP).writes("All.").ends()
    assert (p.shown, p.finish.reason) == ("All.", "stop")


def test_merging_keeps_to_the_bound_on_tokens() -> None:
    p = burst(20, limits=small(max_extra_tokens=20_000), prompt_chars=8000)
    assert 0 < len(p.noted("merged")) < 9
    assert sum(sum(len(s.text) for s in prompt) + 8000 for prompt in p.prompts[1:]) / 4 < 20_000


def test_a_run_that_ends_while_branches_are_merged_goes_no_further() -> None:
    known = costs()
    for name in "fgh":
        for _ in range(30):
            known.tools.of(ToolSpec(name=name)).led(False)
    p = trapped(A, B, C, known=known, max_tokens=2).passes(1).returns(0, 1)
    p.handle(ev.OutsideInterrupt("user", "hello"))
    p.writes("Hello ", "you ", "there.", stream=2).ends(stream=2)  # folded when the first branch is given up
    p.passes(0.01).returns(1, 2)
    assert (p.shown, p.finish.reason) == ("Hello you", "length")


def test_a_second_result_that_comes_later_has_a_branch_of_its_own() -> None:
    p = trapped(A, B, C).returns(0, 1).passes(0.05).returns(1, 2)
    assert chosen(p) == ["fork", "fork"]
    assert p.open == [1, 2]


def test_a_branch_that_has_begun_is_never_given_up() -> None:
    p = trapped(A, B, C).returns(0, 1).passes(0.001).writes("[CALL] d", stream=1).returns(1, 2)
    assert chosen(p) == ["fork", "fork"]


def test_all_results_at_once_make_one_stream() -> None:
    p = trapped(A, B).returns(0, 1).passes(0.001).returns(1, 2)
    assert p.open == [2]
    p.writes("Both.").ends()
    assert (p.shown, p.finish.reason, p.streams) == ("Both.", "stop", 3)


def test_it_waits_for_a_result_that_is_expected_in_a_moment() -> None:
    p = trapped(A, B, known=costs(g=0.505)).passes(0.5).returns(0, 1)
    assert chosen(p) == ["wait"]
    assert "the next result is expected in 5 ms" in p.noted("decided")[0]["why"]
    p.passes(0.004).returns(1, 2)
    assert (chosen(p), p.streams) == (["wait", "deliver"], 2)


def test_it_does_not_wait_for_ever() -> None:
    p = trapped(A, B, known=costs(g=0.505)).passes(0.5).returns(0, 1).passes(0.02)
    assert (chosen(p), p.streams) == (["wait", "fork"], 2)
    p.passes(10)
    assert p.streams == 2


def test_it_does_not_wait_where_that_costs_more_than_a_resume() -> None:
    p = trapped(A, B, known=costs(g=0.8)).passes(0.5).returns(0, 1)
    assert chosen(p) == ["fork"]


def test_it_learns_that_the_results_of_a_tool_lead_nowhere() -> None:
    known = costs(g=0.6)
    for _ in range(30):  # two calls side by side, and the answer: no result ever leads to a further call
        p = trapped(A, B, known=known).passes(0.4).returns(0, 1)
        if len(p.open) == 1:
            p.passes(0.3).writes(TRAP, stream=1)
        p.passes(0.1).returns(1, 2).passes(0.3)
        p.writes("Both.").ends()
    assert (chosen(p), p.streams) == (["wait", "deliver"], 2)


def test_it_learns_that_they_lead_on() -> None:
    known = costs(g=0.6)
    record = known.tools.of(ToolSpec(name="f"))
    for _ in range(30):
        record.led(False)
    before = record.leads
    trapped(A, B, known=known).passes(0.5).returns(0, 1).passes(0.1).returns(1, 2).passes(0.3).writes(C)
    assert record.leads > before


@pytest.mark.parametrize("end", [ev.OutsideInterrupt("user", "hurry"), ev.Abandoned(RunError("gone", 499))])
def test_what_was_broken_off_says_nothing_about_where_results_lead(end: ev.Event) -> None:
    known = costs()
    p = trapped(A, known=known).passes(1).returns(0, 1).passes(0.3).writes("So ").handle(end)
    assert 1 not in p.open
    assert known.tools.of(ToolSpec(name="f")).leads == 1.0


def test_the_measured_time_to_first_token_counts() -> None:
    known = costs(ttft=None)
    p = Playbook("auto", costs=known).passes(0.25).writes(A, B, TRAP).passes(1).returns(0, 1)
    assert known.speed.ttft == 0.25
    assert "a resume takes 250 ms" in p.noted("decided")[0]["why"]


def test_the_time_for_a_token_is_measured() -> None:
    known = costs(ttft=None)
    p = Playbook("auto", costs=known)
    for _ in range(11):
        p.writes("word ").passes(0.01)
    p.ends()
    assert known.speed.token == pytest.approx(0.011, rel=0.01)  # the end came one later


def test_without_room_for_branches_it_is_coalesce() -> None:
    p = trapped(A, B, C, limits=small(max_extra_tokens=0)).returns(0, 1).passes(1).returns(1, 2)
    assert (chosen(p), p.streams) == (["coalesce", "coalesce"], 1)
    p.passes(1).returns(2, 3)
    assert p.prompt[-1].count("[INTR]") == 3
    assert p.streams == 2


def test_branches_end_where_the_bound_on_tokens_does() -> None:
    p = trapped(A, B, C, limits=small(max_extra_tokens=2500), prompt_chars=1600)
    p.handle(ev.UsageReported(0, Usage(400, 20)))
    p.returns(0, 1).passes(1).handle(ev.UsageReported(1, Usage(400, 1200))).returns(1, 2)
    assert chosen(p) == ["fork", "coalesce"]


def test_it_does_not_begin_to_fork_where_it_could_not_go_on() -> None:
    # 400 tokens of prompt and 64 of answer: for five such there is no room.
    p = trapped(A, B, C, limits=small(max_extra_tokens=2300), prompt_chars=1600)
    p.handle(ev.UsageReported(0, Usage(400, 20))).returns(0, 1)
    assert chosen(p) == ["coalesce"]


def test_half_of_the_resumes_are_kept_for_going_on() -> None:
    p = trapped(A, B, C, limits=small(max_resumes=3)).returns(0, 1).passes(1).returns(1, 2)
    assert chosen(p) == ["fork", "coalesce"]


def test_as_many_branches_as_may_be() -> None:
    p = trapped(A, B, C, limits=small(max_branches=1)).returns(0, 1).passes(1).returns(1, 2)
    assert chosen(p) == ["fork", "coalesce"]
    assert "1 branches are open, as many as may be" in p.noted("decided")[1]["why"]


def test_where_delivery_costs_no_resume_there_is_nothing_to_decide() -> None:
    p = Playbook("auto", inject=True).writes(A, B).returns(0, 1)
    assert (chosen(p), len(p.injected)) == ([], 1)
