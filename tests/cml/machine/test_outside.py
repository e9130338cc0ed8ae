"""What people and other agents say to a run that is under way: when the model is told, under every policy."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from playbook import Playbook, Tools, small

from asynclm.cml.machine import POLICIES, Run, RunError
from asynclm.cml.machine import events as ev
from asynclm.cml.machine.events import Scheduling

A, B = "[CALL] a [HEAD] f() [END]\n", "[CALL] b [HEAD] g() [END]\n"
TRAP = "[TRAP][END]"
NOW, IDLE, SILENT = Scheduling.INTERRUPT, Scheduling.WHEN_IDLE, Scheduling.SILENT

Begin = Callable[..., Playbook]


@pytest.fixture(params=[(policy, inject) for policy in POLICIES for inject in (False, True)], ids=str)
def begin(request: pytest.FixtureRequest) -> Begin:
    """A run whose first stream is open: under each policy, resumed and in sequence."""
    policy, inject = request.param

    def new(**options: Any) -> Playbook:
        return Playbook(policy, inject=inject, **options).handle(ev.StreamOpened(0))

    return new


def intr(id: str, value: object) -> str:
    return f"[INTR] {id} [HEAD] {json.dumps(value)} [END]"


def both(*interrupts: str) -> str:
    """Interrupts that go in together."""
    return "\n".join(interrupts)


def say(p: Playbook, text: str, scheduling: Scheduling = NOW, source: str = "user") -> Playbook:
    return p.handle(ev.OutsideInterrupt(source, text, scheduling))


def told(p: Playbook) -> list[str]:
    """What the model was told, a piece for each time."""
    return [data["text"] for data in p.noted("interrupt")]


def waiting(p: Playbook, *calls: str) -> Playbook:
    """The model has written calls and waits: at its trap, or where the policy has stopped it."""
    for text in (*calls, TRAP):
        if p.stream is not None and not p.paused:
            p.writes(text)
    assert p.stream is None or p.paused
    return p


def goes_on(p: Playbook) -> bool:
    """Whether the model writes again."""
    return p.stream is not None and not p.paused


def unheard(p: Playbook) -> list[str]:
    return [data["text"] for data in p.noted("unheard")]


def finish(p: Playbook) -> Playbook:
    """From here on everything goes well."""
    while p.finish is None:
        if goes_on(p):
            p.ends()
        else:
            p.returns(min(p.live), "result")
    return p


class TestInterrupt:
    def test_it_goes_in_at_once_where_nothing_is_open(self, begin: Begin) -> None:
        p = say(begin().writes("Once upon", " a time"), "stop")
        assert told(p) == [intr("user", "stop")]
        if p.run.live:
            assert (p.streams, p.injected) == (1, told(p))
        else:
            assert p.prompt == ["model: Once upon a time", f"runtime: {told(p)[0]}"]
        p.writes(", the end.").ends()
        assert (p.shown, p.finish.reason) == ("Once upon a time, the end.", "stop")

    def test_it_is_in_the_timeline(self, begin: Begin) -> None:
        p = say(begin(), "stop", IDLE, "agent_x")
        assert p.noted("outside") == [{"source": "agent_x", "text": "stop", "scheduling": "when_idle"}]

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("[CALL] a [HEAD] f(x='", "') [END]"),
            ("[CALL]", " f() [END]"),
            ("[CA", "RE] of it"),
            ("<think>hm", "</think>"),
            ("<thi", "nner>"),
        ],
    )
    def test_it_waits_for_the_end_of_what_is_open(self, begin: Begin, before: str, after: str) -> None:
        p = say(begin().writes(before), "stop")
        assert told(p) == []
        p.writes(after)
        assert told(p) == [intr("user", "stop")]
        assert p.run.transcript[0].text == before + after

    def test_it_waits_for_the_end_of_reasoning(self, begin: Begin) -> None:
        p = say(begin().handle(ev.ReasoningArrived(0, "hm", "reasoning")), "stop")
        assert told(p) == []
        p.writes("So")
        assert told(p) == [intr("user", "stop")]

    def test_a_block_left_open_at_the_end_does_not_keep_it_out(self, begin: Begin) -> None:
        p = say(begin().writes("[CALL] a [HEAD] f("), "stop").ends()
        assert intr("user", "stop") in both(*told(p))

    def test_it_does_not_wait_for_calls(self, begin: Begin) -> None:
        p = say(waiting(begin(), A), "stop")
        assert told(p) == [intr("user", "stop")]
        assert goes_on(p)
        finish(waiting(p))
        assert told(p)[1:] == [intr("a", "result")]
        assert p.executed == [0]

    def test_nor_for_those_that_a_trap_names(self, begin: Begin) -> None:
        p = say(waiting(begin(), A, B, "[TRAP] a, b [END]"), "stop")
        assert told(p) == [intr("user", "stop")]
        assert intr("a", "result") in both(*told(finish(p)))

    def test_those_of_one_moment_go_in_together_and_in_order(self, begin: Begin) -> None:
        p = begin().writes("[CALL] f(")
        for n in range(3):
            say(p, f"{n}", source=f"agent_{n}")
        p.writes(") [END]")
        assert told(p) == [both(*(intr(f"agent_{n}", f"{n}") for n in range(3)))]

    def test_one_after_the_other_keep_their_order(self, begin: Begin) -> None:
        p = begin()
        for n in range(3):
            say(p.writes("Text. ").handle(ev.StreamOpened(p.streams - 1)), f"{n}")
        assert told(p) == [intr("user", f"{n}") for n in range(3)]


class TestWhenIdle:
    def test_it_breaks_off_nothing_and_the_run_goes_on_at_its_end(self, begin: Begin) -> None:
        p = say(begin().writes("Once upon"), "and then?", IDLE).writes(" a time.")
        assert told(p) == []
        p.ends()
        assert told(p) == [intr("user", "and then?")]
        assert p.finish is None
        p.writes("They lived on.").ends()
        assert (p.shown, p.finish.reason, p.streams) == ("Once upon a time.\n\nThey lived on.", "stop", 2)
        assert unheard(p) == []

    def test_it_is_told_at_a_trap_though_calls_are_pending(self, begin: Begin) -> None:
        p = say(begin().writes("Well. "), "hurry", IDLE).writes(A)
        if not told(p):  # the policy has not stopped it there
            p.writes(TRAP)
        assert told(p) == [intr("user", "hurry")]
        assert p.live == {0}
        assert goes_on(p)
        finish(p)
        assert told(p)[1:] == [intr("a", "result")]

    def test_it_is_told_at_once_to_a_model_that_waits(self, begin: Begin) -> None:
        p = say(waiting(begin(), A), "hurry", IDLE)
        assert told(p) == [intr("user", "hurry")]

    def test_it_is_told_at_a_trap_that_waits_for_nothing(self, begin: Begin) -> None:
        p = say(begin().writes("Well. "), "go on", IDLE).writes(TRAP)
        assert told(p) == [intr("user", "go on")]
        assert [data.get("empty") for data in p.noted("trap")] == [None]

    @pytest.mark.parametrize(("policy", "inject"), [("immediate", False), ("immediate", True), ("auto", True)])
    def test_it_does_not_go_along_with_a_result_that_comes_while_the_model_writes(
        self, policy: str, inject: bool
    ) -> None:
        p = Playbook(policy, inject=inject).handle(ev.StreamOpened(0)).writes(A, "Meanwhile")
        say(p, "later", IDLE).returns(0, 1)
        assert told(p) == [intr("a", 1)]
        p.writes(", this.").ends()
        assert told(p)[1:] == [intr("user", "later")]

    def test_an_interrupt_overtakes_it(self, begin: Begin) -> None:
        p = say(say(begin().writes("Well"), "later", IDLE), "now")
        assert told(p) == [intr("user", "now")]
        p.writes(", yes.").ends()
        assert told(p)[1:] == [intr("user", "later")]

    def test_its_own_kind_keeps_its_order(self, begin: Begin) -> None:
        p = say(say(begin().writes("Well."), "first", IDLE), "second", IDLE).ends()
        assert told(p) == [both(intr("user", "first"), intr("user", "second"))]


class TestSilent:
    def test_it_causes_nothing_and_may_stay_unheard(self, begin: Begin) -> None:
        p = say(begin().writes("Once upon"), "by the way", SILENT).writes(" a time.").ends()
        assert (told(p), p.streams, p.finish.reason) == ([], 1, "stop")
        assert p.noted("unheard") == [{"source": "user", "text": "by the way"}]

    def test_a_model_that_waits_is_told_with_the_result(self, begin: Begin) -> None:
        p = say(waiting(begin(), A), "by the way", SILENT)
        assert (told(p), goes_on(p)) == ([], False)
        p.returns(0, 1)
        assert told(p) == [both(intr("user", "by the way"), intr("a", 1))]
        assert unheard(finish(p)) == []

    @pytest.mark.parametrize("scheduling", [NOW, IDLE])
    def test_it_goes_along_with_what_else_is_said(self, begin: Begin, scheduling: Scheduling) -> None:
        p = say(say(begin().writes("Well."), "by the way", SILENT), "hello", scheduling)
        if scheduling is IDLE:
            assert told(p) == []
            p.ends()
        assert told(p) == [both(intr("user", "by the way"), intr("user", "hello"))]

    def test_it_goes_along_with_what_the_runtime_says(self, begin: Begin) -> None:
        """At a trap with nothing pending the model may go on by itself; told that it may, it is told the rest, too."""
        p = say(begin().writes("Well. "), "by the way", SILENT).writes(TRAP)
        assert [data.get("empty") for data in p.noted("trap")] == [True]
        if not p.run.live:
            assert told(p) == []
            p.ends()
        (text,) = told(p)
        assert text.startswith(f"{intr('user', 'by the way')}\n[INTR] _ [HEAD]")

    def test_a_trap_that_waits_for_nothing_is_not_answered_with_it_alone(self, begin: Begin) -> None:
        p = say(begin(limits=small(max_empty_traps=0)).writes("Well."), "by the way", SILENT).writes(TRAP)
        assert (told(p), p.finish.reason, unheard(p)) == ([], "stop", ["by the way"])

    def test_several_kinds(self, begin: Begin) -> None:
        p = begin().writes("Well. [CALL] f(")
        say(say(say(say(p, "1", IDLE), "2", SILENT), "3", NOW), "4", SILENT)
        p.writes(") [END]")
        assert told(p) == [both(*(intr("user", f"{n}") for n in (2, 3, 4)))]
        say(p, "5", SILENT).ends()
        assert told(p)[1:] == [both(intr("user", "1"), intr("user", "5"))]


class TestBranches:
    """What is said while branches are open."""

    @pytest.fixture(params=["fork", "auto"])
    def p(self, request: pytest.FixtureRequest) -> Playbook:
        """Two calls are pending; a third has returned, and branch 1 was told so."""
        p = Playbook(request.param).passes(0.3).writes(A, B, "[CALL] c [HEAD] h() [END]", TRAP).returns(0, 1)
        assert p.open == [1]
        return p

    def test_an_interrupt_opens_one_more(self, p: Playbook) -> None:
        say(p, "stop")
        assert p.open == [1, 2]
        assert told(p)[-1] == intr("user", "stop")

    def test_at_the_bound_it_waits_until_one_is_over(self) -> None:
        p = Playbook("fork", limits=small(max_branches=2)).writes(A, B, TRAP).returns(0, 1)
        for text in ("one", "two", "three"):
            say(p, text)
        assert p.open == [1, 2]
        p.writes(TRAP, stream=1)
        assert p.open == [2, 3]
        assert told(p)[-1] == both(intr("user", "two"), intr("user", "three"))

    def test_when_idle_waits_until_none_writes(self, p: Playbook) -> None:
        say(p, "and then?", IDLE).passes(0.1).returns(1, 2).passes(0.1)
        assert p.open == [1, 2]  # the second result was told, and nothing else
        p.writes(TRAP, stream=1)
        assert told(p) == [intr("a", 1), intr("b", 2)]
        p.writes(TRAP, stream=2)
        assert told(p)[2:] == [intr("user", "and then?")]
        assert p.live == {2}

    def test_when_idle_at_the_end_of_the_last_one(self) -> None:
        p = Playbook("fork").writes(A, B, TRAP).returns(0, 1)
        say(p, "and then?", IDLE).returns(1, 2).writes("One.", stream=1).ends(stream=1)
        p.writes("Two.", stream=2).ends(stream=2)
        assert told(p)[-1] == intr("user", "and then?")
        p.writes("Three.").ends()
        assert (p.shown, p.finish.reason) == ("One.\n\nTwo.\n\nThree.", "stop")

    def test_silent_goes_along_with_the_next_branch(self, p: Playbook) -> None:
        say(p, "by the way", SILENT)
        assert p.open == [1]
        p.passes(0.1).returns(1, 2).passes(0.1)
        assert told(p)[-1] == both(intr("user", "by the way"), intr("b", 2))

    def test_silent_goes_along_with_the_stream_that_is_told_everything(self) -> None:
        p = Playbook("fork").writes(A, B, TRAP).returns(0, 1).returns(1, 2)
        p.writes("[CALL] f() [END]", TRAP, stream=1)  # so the stream that was opened ahead is of no use
        say(p, "by the way", SILENT).writes(TRAP, stream=2)
        assert p.prompt[-2:] == [f"runtime: {intr('b', 2)}", f"runtime: {intr('user', 'by the way')}"]
        p.writes("Done.").ends()
        assert (p.shown, unheard(p)) == ("Done.", [])

    def test_silent_leaves_the_stream_alone_that_was_opened_ahead(self) -> None:
        p = Playbook("fork").writes(A, B, TRAP).returns(0, 1).returns(1, 2)
        assert p.open == [1, 2, 3]
        say(p, "by the way", SILENT)
        p.writes(TRAP, stream=1).writes(TRAP, stream=2)
        assert (p.open, len(p.noted("adopted"))) == ([3], 1)
        p.writes("Three.").ends()
        assert (p.shown, p.streams, unheard(p)) == ("Three.", 4, ["by the way"])


class TestTheEnd:
    @pytest.mark.parametrize("scheduling", Scheduling)
    def test_what_nobody_was_told_is_noted(self, begin: Begin, scheduling: Scheduling) -> None:
        p = say(begin().writes("[CALL] f("), "hello?", scheduling, "agent_x").handle(ev.Abandoned(RunError("gone")))
        assert p.noted("unheard") == [{"source": "agent_x", "text": "hello?"}]

    @pytest.mark.parametrize("scheduling", Scheduling)
    def test_what_was_told_is_not(self, begin: Begin, scheduling: Scheduling) -> None:
        p = say(waiting(begin(), A), "hello?", scheduling).returns(0, 1)
        assert "hello?" in both(*told(p))
        assert unheard(p.handle(ev.Abandoned(RunError("gone")))) == []

    def test_the_clients_bound_is_an_end_too(self, begin: Begin) -> None:
        p = say(begin(stop=("STOP",)).writes("Well"), "and then?", IDLE).writes(" STOP")
        assert (p.shown, p.finish.reason, unheard(p)) == ("Well ", "stop", ["and then?"])

    @pytest.mark.parametrize("scheduling", [NOW, IDLE])
    def test_past_the_last_resume_nobody_is_told(self, scheduling: Scheduling) -> None:
        p = Playbook("auto", limits=small(max_resumes=0)).writes("Well.")
        say(p, "and then?", scheduling)
        if scheduling is IDLE:
            p.ends()
        assert (p.shown, p.finish.reason, unheard(p)) == ("Well.", "length", ["and then?"])

    def test_nor_by_a_branch(self) -> None:
        p = say(Playbook("fork", limits=small(max_resumes=2)).writes(A, B, TRAP).returns(0, 1), "hello")
        assert p.open == [1, 2]
        say(p, "hello?")
        assert (p.finish.reason, unheard(p)) == ("length", ["hello?"])

    def test_a_run_that_is_over_does_not_listen(self, begin: Begin) -> None:
        p = begin().writes("Done.")
        assert p.run.listens
        p.ends()
        assert not p.run.listens
        assert p.run.handle(ev.OutsideInterrupt("user", "hello?"), 0.0) == []

    @pytest.mark.parametrize("inject", [False, True])
    def test_nor_does_a_plain_run(self, inject: bool) -> None:
        assert not Run(None, POLICIES["auto"], inject=inject).listens
        assert Run(Tools(), POLICIES["auto"], inject=inject).listens
