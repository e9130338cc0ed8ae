"""The stream that is opened ahead, in case that no open branch brings a further call."""

import pytest
from playbook import Playbook, small

from asynclm.cml.machine import RunError
from asynclm.cml.machine import events as ev
from asynclm.cml.machine.costs import Costs

A, B, C = "[CALL] a [HEAD] f() [END]\n", "[CALL] b [HEAD] g() [END]\n", "[CALL] c [HEAD] h() [END]\n"
TRAP = "[TRAP][END]"


def all_in(policy: str = "fork", **options: object) -> Playbook:
    """Two results have come one after the other: branches 1 and 2 are open, and 3 ahead of them."""
    return Playbook(policy, **options).passes(0.3).writes(A, B, TRAP).returns(0, 1).passes(0.1).returns(1, 2)


def test_it_is_opened_with_all_that_the_branches_were_told() -> None:
    p = all_in()
    assert p.open == [1, 2, 3]
    assert p.prompt == [f"model: {A}{B}{TRAP}", "runtime: [INTR] a [HEAD] 1 [END]", "runtime: [INTR] b [HEAD] 2 [END]"]
    assert len(p.noted("ahead")) == 1


def test_auto_opens_it_too() -> None:
    assert all_in("auto").open == [1, 2, 3]


def test_it_goes_on_when_the_branches_bring_nothing_new() -> None:
    p = all_in().writes("It is ", stream=3)
    assert p.shown == ""
    p.writes("Still waiting. ", TRAP, stream=1).writes(TRAP, stream=2)
    assert p.shown == "It is"
    assert len(p.noted("adopted")) == 1
    p.writes("3.", stream=3).ends()
    assert (p.shown, p.finish.reason, p.streams) == ("It is 3.", "stop", 4)
    assert [segment.text for segment in p.run.transcript[1:]] == [
        "[INTR] a [HEAD] 1 [END]",
        "[INTR] b [HEAD] 2 [END]",
        "It is 3.",
    ]


def test_what_the_last_branch_says_before_it_traps_is_chatter_too() -> None:
    p = all_in().writes(TRAP, stream=1).writes("b is 2. ", "Still waiting for a.\n", TRAP, stream=2)
    assert p.shown == ""
    assert len(p.noted("adopted")) == 1
    p.writes("It is 3.").ends()
    assert (p.shown, p.streams) == ("It is 3.", 4)


def test_what_it_wrote_to_the_end_is_held_back_until_then() -> None:
    p = all_in().writes("It is 3.", stream=3).ends(stream=3)
    assert (p.finish, p.shown) == (None, "")
    p.writes(TRAP, stream=1).writes(TRAP, stream=2)
    assert (p.shown, p.finish.reason) == ("It is 3.", "stop")


def test_its_calls_run_when_it_goes_on_and_not_before() -> None:
    p = all_in().writes(C, TRAP, stream=3)
    assert p.executed == [0, 1]
    p.writes(TRAP, stream=1).writes(TRAP, stream=2)
    assert p.executed == [0, 1, 2]
    p.returns(2, 3).writes("Done.").ends()
    assert p.shown == "Done."


def test_it_is_dropped_when_a_branch_brings_a_call() -> None:
    p = all_in().writes("It is", stream=3).writes(C, stream=1)
    assert p.open == [1, 2]
    p.writes(TRAP, stream=1).writes(TRAP, stream=2)
    assert p.shown == ""
    p.returns(2, 3).writes("Done.").ends()
    assert (p.shown, p.finish.reason) == ("Done.", "stop")


def test_it_is_dropped_when_it_has_ended_and_a_branch_brings_a_call() -> None:
    p = all_in().writes("It is.", stream=3).ends(stream=3).writes(C, stream=2)
    assert (p.open, p.shown) == ([1, 2], "")


def test_it_is_dropped_when_somebody_speaks() -> None:
    p = all_in().handle(ev.OutsideInterrupt("user", "also"))
    assert 3 not in p.open


def test_it_is_dropped_when_a_branch_answers_without_having_seen_everything() -> None:
    p = all_in().writes("It is 3.", stream=3)
    p.writes("One came. ", stream=1).ends(stream=1).writes(TRAP, stream=2)
    assert p.shown == "One came."
    p.writes("It is 3.").ends()
    assert (p.shown, p.streams) == ("One came.\n\nIt is 3.", 5)


def test_its_failure_does_no_harm() -> None:
    p = all_in()
    p.open.remove(3)
    p.handle(ev.StreamFailed(3, RunError("it broke")))
    assert p.finish is None
    p.writes(TRAP, stream=1).writes(TRAP, stream=2).writes("It is 3.").ends()
    assert (p.shown, p.finish.error) == ("It is 3.", None)


def test_it_ends_with_the_run() -> None:
    p = all_in().handle(ev.Abandoned(RunError("gone", 499)))
    assert p.open == []  # the playbook also checks that none is left open at the finish


def test_what_it_wrote_is_paid_for_though_nobody_reads_it() -> None:
    p = all_in().writes(*["word "] * 10, stream=3)
    p.writes(C, TRAP, stream=1).writes(TRAP, stream=2).returns(2, 3).writes("It is 6.").ends()
    assert p.finish.usage.completion_tokens == 3 + 10 + 2 + 1 + 1


def test_the_timeline_says_how_it_ended_even_if_it_is_dropped_then() -> None:
    p = all_in().writes("It is 3.", stream=3).ends(stream=3).writes(C, stream=1)
    assert [note.data for note in p.notes if (note.kind, note.stream) == ("closed", 3)] == [{"reason": "stop"}]


def test_the_time_it_was_held_back_for_is_not_taken_for_writing() -> None:
    known = Costs()
    p = all_in(costs=known)
    for _ in range(20):
        p.writes("word ", stream=3).passes(0.01)
    p.ends(stream=3).passes(100).writes(TRAP, stream=1).writes(TRAP, stream=2)
    assert p.finish is not None
    assert known.speed.token == pytest.approx(0.01, rel=0.1)


def test_there_is_none_beyond_the_bound_on_tokens() -> None:
    p = all_in(limits=small(max_extra_tokens=300), prompt_chars=100)
    assert p.noted("ahead") == []


def test_there_is_none_while_something_is_pending() -> None:
    p = Playbook("fork").writes(A, B, C, TRAP).returns(0, 1).returns(1, 2)
    assert p.noted("ahead") == []
