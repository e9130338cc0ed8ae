"""Tools of the client's own: when the answer ends for them, and how the run goes on. `k` and `m` are the client's."""

import pytest
from playbook import Playbook, small

from asynclm.cml.machine import POLICIES, RunError
from asynclm.cml.machine import events as ev
from asynclm.cml.machine.costs import Costs
from asynclm.cml.machine.events import Scheduling
from asynclm.cml.transcript import Segment
from asynclm.cml.usage import Usage

A, B, C = "[CALL] a [HEAD] f() [END]\n", "[CALL] b [HEAD] g() [END]\n", "[CALL] c [HEAD] h() [END]\n"
K, M = "[CALL] k1 [HEAD] k(x=1) [END]\n", "[CALL] m1 [HEAD] m() [END]\n"
TRAP = "[TRAP][END]"


def intr(id: str, value: object) -> str:
    return f"[INTR] {id} [HEAD] {value} [END]"


def reasons(p: Playbook) -> list[str]:
    return [answer.reason for answer in p.answers]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("inject", [False, True])
def test_every_policy_parks_at_a_trap_and_goes_on(policy: str, inject: bool) -> None:
    p = Playbook(policy, inject=inject).writes(K + TRAP)
    assert p.parked
    assert (p.open, p.executed, p.sent, reasons(p)) == ([], [], [0], ["tool_calls"])
    p.resumes({0: 7})
    assert p.prompt[-1] == f"runtime: {intr('k1', 7)}"
    p.writes("It is 7.").ends()
    assert (p.shown, reasons(p)) == ("It is 7.", ["tool_calls", "stop"])


@pytest.mark.parametrize("policy", ["immediate", "coalesce", "fork", "auto"])
def test_a_call_goes_out_while_the_model_writes_on(policy: str) -> None:
    p = Playbook(policy).writes("Hm. ", K)
    assert (p.sent, p.parked) == ([0], False)
    p.writes("So ", "far.").ends()
    assert p.parked
    assert p.shown == "Hm.\nSo far."


def test_under_sync_it_is_asked_for_each_call() -> None:
    p = Playbook("sync").writes(f"{K}{M}{TRAP}")
    assert p.sent == [0]
    p.resumes({0: 7})
    assert p.prompt == [f"model: {K.strip()}", f"runtime: {intr('k1', 7)}"]


def test_calls_of_the_runtimes_own_go_on_and_are_told_with_the_clients() -> None:
    p = Playbook("immediate").writes(A, B, K, TRAP)
    assert (p.parked, p.live) == (True, {0, 1})
    p.returns(0, 1)
    assert p.parked
    p.resumes({2: 7})
    assert p.prompt[-1] == f"runtime: {intr('a', 1)}\n{intr('k1', 7)}"
    p.writes(TRAP).returns(1, 2)
    assert p.prompt[-1] == f"runtime: {intr('b', 2)}"


def test_a_trap_for_a_call_of_the_runtimes_own_is_kept() -> None:
    p = Playbook("immediate").writes(A, K, "[TRAP] a [END]").resumes({1: 7})
    assert p.streams == 1
    assert not p.parked
    p.returns(0, 1)
    assert p.prompt[-1] == f"runtime: {intr('k1', 7)}\n{intr('a', 1)}"


def test_nothing_is_told_while_no_client_is_there() -> None:
    p = Playbook("immediate").writes(A, K, TRAP)
    for scheduling in Scheduling:
        p.handle(ev.OutsideInterrupt("user", scheduling.value, scheduling))
    p.returns(0, 1).passes(10)
    assert p.streams == 1
    p.resumes({1: 7})
    assert p.prompt[-1].count("[INTR]") == 5


def test_an_outside_interrupt_comes_before_the_client_is_asked() -> None:
    p = Playbook("coalesce").writes(K)
    p.handle(ev.OutsideInterrupt("user", "stop", Scheduling.WHEN_IDLE))
    p.writes(TRAP)
    assert not p.parked
    assert p.prompt[-1] == f"runtime: {intr('user', chr(34) + 'stop' + chr(34))}"
    p.writes(TRAP)
    assert p.parked


def test_what_the_client_did_not_answer_is_an_error() -> None:
    p = Playbook("immediate").writes(K, M, TRAP).resumes({1: 2})
    lost, given = p.prompt[-1].split("\n")
    assert '"type":"no_result"' in lost
    assert given == intr("m1", 2)
    assert p.noted("continued") == [{"results": 1}]


def test_a_call_without_an_id_is_given_one_where_it_stands() -> None:
    p = Playbook("immediate").writes("x [CALL] k(s='[CALL] k() [END]') [END] y [CALL]  [HEAD] k(x=2) [END] z", TRAP)
    assert list(p.handed.values()) == ["k", "k_2"]
    p.resumes({0: 1, 1: 2})
    assert p.prompt == [
        f"model: x [CALL] k [HEAD] k(s='[CALL] k() [END]') [END] y [CALL] k_2 [HEAD] k(x=2) [END] z{TRAP}",
        f"runtime: {intr('k', 1)}\n{intr('k_2', 2)}",
    ]


def test_a_call_without_an_id_in_a_branch() -> None:
    p = Playbook("fork").writes(A, B, TRAP).returns(0, 1)
    p.writes("[CALL] k() [END]", TRAP, stream=1)
    assert p.parked
    p.returns(1, 2).resumes({2: 7})
    p.writes("Done.").ends()
    written = [segment.text for segment in p.run.transcript if segment.author == "model"]
    assert written[1] == f"[CALL] k [HEAD] k() [END]{TRAP}"


def test_it_parks_when_the_last_branch_is_done() -> None:
    p = Playbook("fork").writes(A, B, C, TRAP).returns(0, 1).returns(1, 2)
    p.writes(K, TRAP, stream=1)
    assert (p.sent, p.parked) == ([3], False)
    p.returns(2, 3)
    assert p.open == [2, 3]
    p.writes(TRAP, stream=2)
    assert not p.parked
    p.writes("Three.", stream=3).ends(stream=3)
    assert p.parked
    assert p.shown == "Three."


def test_the_same_client_call_of_two_branches_is_sent_once() -> None:
    p = Playbook("fork").writes(A, B, C, TRAP).returns(0, 1).returns(1, 2)
    p.writes("[CALL] d [HEAD] k(x=1) [END]", TRAP, stream=1)
    p.writes("[CALL] e [HEAD] k(x=1) [END]", TRAP, stream=2)
    assert (p.parked, p.sent) == (True, [3])
    p.resumes({3: 9})
    assert p.prompt[-1] == f"runtime: {intr('d', 9)}\n{intr('e', 9)}"


def test_a_live_sequence_is_closed_and_taken_up_by_a_new_stream() -> None:
    p = Playbook("immediate", inject=True).writes(A)
    p.handle(ev.StreamOpened(0))
    p.writes("x").returns(0, 1)
    assert p.injected == [intr("a", 1)]
    p.writes(K, TRAP)
    assert (p.parked, p.open) == (True, [])
    p.resumes({1: 7})
    assert p.prompt == [f"model: {A}x", f"runtime: {intr('a', 1)}", f"model: {K}{TRAP}", f"runtime: {intr('k1', 7)}"]


def test_usage_and_bounds_are_the_answers_own() -> None:
    p = Playbook("immediate", limits=small(max_resumes=1, max_calls=1), max_tokens=2, prompt_chars=40)
    p.writes("One ", "two ", K)
    p.handle(ev.UsageReported(0, Usage(100, 30))).writes(TRAP)
    for n in range(1, 4):
        p.resumes({n - 1: 0}, max_tokens=2).writes("One ", f"[CALL] n{n} [HEAD] k() [END]")
        p.handle(ev.UsageReported(n, Usage(200 + n, 7))).writes(TRAP)
    p.handle(ev.UsageReported(0, Usage(999, 999)))  # too late to be counted to anybody
    p.resumes({3: 0}, stop=("END",), max_tokens=9).writes("So: ", "the END of it")
    assert [answer.usage for answer in p.answers[:4]] == [Usage(100, 30), *(Usage(200 + n, 7) for n in range(1, 4))]
    assert p.finish.reason == "stop"
    assert p.shown.endswith("So: the ")
    p = Playbook("immediate", max_tokens=2).writes(K, "One ", "two ", "three")
    assert (reasons(p), p.handed) == (["length"], {0: "k1"})


def test_text_that_was_held_back_belongs_to_the_answer_that_ends() -> None:
    p = Playbook("immediate", stop=("STOP",)).writes("Well, S", "T", K, TRAP)
    assert (p.parked, p.shown) == (True, "Well, ST")
    p.resumes({0: 1}, stop=("STOP",)).writes("\n\nOP.").ends()
    assert p.shown == "Well, STOP."


def test_times_of_the_client_are_not_learned() -> None:
    costs = Costs()
    p = Playbook("auto", costs=costs).writes(A, K, TRAP).passes(500).returns(0, 1).resumes({1: 7})
    p.writes("Done.").ends()
    k, f = (spec for name in "kf" for spec in p.catalog.specs() if spec.name == name)
    assert costs.tools.of(k).remaining(0) is None
    assert costs.tools.of(k).leads == 1.0
    assert costs.tools.of(f).leads < 1.0


def test_it_is_given_up() -> None:
    p = Playbook("immediate").writes(A, K, TRAP)
    p.handle(ev.OutsideInterrupt("user", "hello?"))
    p.handle(ev.Abandoned(RunError("nobody came", 504)))
    assert not p.parked
    assert p.cancelled == [0]  # the client's own is not ours to cancel
    assert p.noted("unheard") == [{"source": "user", "text": "hello?"}]
    with pytest.raises(RuntimeError, match="not parked"):
        p.run.resume({}, p.now)


def test_a_run_goes_on_from_a_transcript() -> None:
    before = [Segment("model", f"{K}{TRAP}"), Segment("runtime", intr("k1", 7))]
    p = Playbook("fork", transcript=before, used=["k1"])
    assert p.prompts == [tuple(before)]
    p.writes(K, A, TRAP)
    assert p.noted("rejected")[0]["error"] == "duplicate_id"
    p.returns(1, 1)
    assert p.prompt[:2] == [f"model: {K}{TRAP}", f"runtime: {intr('k1', 7)}"]


@pytest.mark.parametrize("policy", sorted(POLICIES.keys() - {"sync"}))
def test_it_goes_on_in_another_machine_as_it_would_have(policy: str) -> None:
    """The same prompts, the same ids, and what came before is told, not run again."""
    stayed, moved = (Playbook(policy).writes(A, "Hm. ", B, K, TRAP) for _ in range(2))
    for p in (stayed, moved):
        p.handle(ev.OutsideInterrupt("user", "Quick!", Scheduling.SILENT)).returns(0, 1)
    moved.moves().returns(1, 2)
    stayed.returns(1, 2)
    for p in (stayed, moved):
        p.resumes({2: 7})
        assert p.noted("continued") == [{"results": 1}]
        assert p.prompt[-1].count("[INTR]") == 4
        p.writes(A, TRAP)
        assert p.noted("rejected")[0]["error"] == "duplicate_id"
    assert moved.prompts[-2:] == stayed.prompts[-2:]
    assert moved.executed == [0]  # the other one returned before it could be executed once more
    assert moved.noted("restored")[0]["calls"] == [1, 2]


def test_what_runs_still_is_executed_once_more_where_it_goes_on() -> None:
    p = Playbook("immediate").writes(A, K, "[TRAP] a [END]").moves()
    assert p.executed == []
    p.resumes({1: 7})
    assert (p.executed, p.streams) == ([0], 1)  # the trap was for that call
    p.returns(0, 1)
    assert p.prompt[-1] == f"runtime: {intr('k1', 7)}\n{intr('a', 1)}"


def test_another_machine_needs_no_tool_that_has_gone() -> None:
    p = Playbook("coalesce").writes(A, K, TRAP)
    p.catalog.specs = list  # type: ignore[method-assign]
    p.moves().resumes({1: 7})
    p.returns(0, 1)
    assert p.prompt[-1] == f"runtime: {intr('k1', 7)}\n{intr('a', 1)}"


def test_a_run_that_another_machine_has_does_nothing_more() -> None:
    p = Playbook("immediate").writes(A, K, TRAP)
    p.handle(ev.TakenOver()).returns(0, 1)
    assert (p.cancelled, p.run.finished, p.noted("taken")) == ([], True, [{"calls": [0, 1]}])
    with pytest.raises(RuntimeError):
        _ = p.run.state


def test_what_is_parked_no_more_has_no_state() -> None:
    with pytest.raises(RuntimeError):
        _ = Playbook("immediate").writes(A).run.state


@pytest.mark.parametrize("policy", POLICIES)
def test_one_call_an_answer(policy: str) -> None:
    p = Playbook(policy, single=True).writes(K + M + TRAP)
    assert (p.parked, p.sent) == (True, [0])
    while p.parked and len(p.answers) < 3:
        p.resumes({p.sent[-1]: 7}, single=True)
        if p.stream is not None:
            p.writes(M.replace("m1", "m2") + TRAP if 1 not in p.sent and policy == "sync" else TRAP)
    assert len(p.sent) == 2
    told = "\n".join(p.prompt)
    assert intr("k1", 7) in told
    assert intr("m2" if policy == "sync" else "m1", 7) in told


def test_what_the_user_says_behind_the_results_is_told_behind_them() -> None:
    p = Playbook("coalesce").writes(K, TRAP)
    p.resumes({0: 7}, words=["And [END]?"])
    assert p.prompt[-1] == f"runtime: {intr('k1', 7)}\n" + intr("user", '"And \\u005bEND]?"')
