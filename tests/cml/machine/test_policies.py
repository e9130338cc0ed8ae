"""The same short story under each policy: who starts when, and what is delivered when."""

from playbook import Playbook

A, B = "[CALL] a [HEAD] f() [END]\n", "[CALL] b [HEAD] g() [END]\n"
TRAP = "[TRAP][END]"
INTR_A, INTR_B = "[INTR] a [HEAD] 1 [END]", "[INTR] b [HEAD] 2 [END]"


def test_sync_stops_at_each_call() -> None:
    p = Playbook("sync").writes("Hm. ", "[CALL] a [HEAD] f() [END] and")
    assert (p.stream, p.executed) == (None, [0])  # what came behind the block is forgotten
    p.returns(0, 1)
    assert p.prompt == ["model: Hm. [CALL] a [HEAD] f() [END]", f"runtime: {INTR_A}"]
    p.writes(B)
    assert (p.stream, p.executed) == (None, [0, 1])
    p.returns(1, 2).writes("Done.").ends()
    assert (p.finish.reason, p.shown) == ("stop", "Hm.\n\nDone.")


def test_parallel_starts_at_the_trap_and_delivers_together() -> None:
    p = Playbook("parallel").writes(A, B)
    assert p.executed == []
    p.writes(TRAP)
    assert (p.stream, p.executed) == (None, [0, 1])
    p.returns(1, 2)
    assert p.streams == 1
    p.returns(0, 1)
    assert p.prompt == [f"model: {A}{B}{TRAP}", f"runtime: {INTR_B}\n{INTR_A}"]


def test_parallel_starts_at_the_end_of_the_stream() -> None:
    p = Playbook("parallel").writes(A).ends()
    assert p.executed == [0]
    assert p.noted("trap") == [{"names": [], "implicit": True}]
    p.returns(0, 1).writes("Done.").ends()
    assert p.shown == "Done."


def test_immediate_interrupts_the_text() -> None:
    p = Playbook("immediate").writes(A, "While it runs, ")
    assert p.executed == [0]
    p.returns(0, 1)
    assert p.prompt == [f"model: {A}While it runs, ", f"runtime: {INTR_A}"]
    p.writes("it is done.").ends()
    assert p.shown == "While it runs, it is done."


def test_immediate_waits_for_the_end_of_a_block() -> None:
    p = Playbook("immediate").writes(A, "[CALL] b [HEAD] g(")
    p.returns(0, 1)
    assert p.streams == 1
    p.writes(") [END] and the rest")
    assert p.prompt == [f"model: {A}[CALL] b [HEAD] g() [END]", f"runtime: {INTR_A}"]
    assert p.executed == [0, 1]


def test_immediate_delivers_each_result_at_a_trap() -> None:
    p = Playbook("immediate").writes(A, B, TRAP)
    p.returns(1, 2)
    assert p.prompt[-1] == f"runtime: {INTR_B}"
    p.writes(TRAP).returns(0, 1)
    assert p.prompt[-1] == f"runtime: {INTR_A}"
    assert p.streams == 3


def test_coalesce_delivers_all_at_the_trap() -> None:
    p = Playbook("coalesce").writes(A)
    assert p.executed == [0]
    p.returns(0, 1).writes(B)
    assert p.streams == 1
    p.writes(TRAP)
    assert p.streams == 1
    p.returns(1, 2)
    assert p.prompt[-1] == f"runtime: {INTR_A}\n{INTR_B}"


def test_coalesce_has_all_results_before_the_trap() -> None:
    p = Playbook("coalesce").writes(A).returns(0, 1).writes(TRAP)
    assert p.prompt == [f"model: {A}{TRAP}", f"runtime: {INTR_A}"]


def test_a_named_trap_waits_for_those_it_names() -> None:
    for policy in ("coalesce", "immediate"):
        p = Playbook(policy).writes(A, B, "[CALL] c [HEAD] h() [END]", "[TRAP] a, b [END]")
        p.returns(2, 3).returns(0, 1)
        assert p.streams == 1
        p.returns(1, 2)
        assert p.prompt[-1] == f"runtime: [INTR] c [HEAD] 3 [END]\n{INTR_A}\n{INTR_B}"


def test_a_named_trap_does_not_wait_for_the_others() -> None:
    p = Playbook("coalesce").writes(A, B, "[TRAP] b [END]").returns(1, 2)
    assert p.prompt[-1] == f"runtime: {INTR_B}"
    p.writes("So far 2. ").ends()
    assert p.finish is None
    p.returns(0, 1).writes("And 1.").ends()
    assert p.shown == "So far 2.\n\nAnd 1."


def test_auto_is_coalesce_for_resumes_and_immediate_for_injection() -> None:
    p = Playbook("auto").writes(A, "text").returns(0, 1)
    assert p.streams == 1
    p = Playbook("auto", inject=True).writes(A, "text").returns(0, 1)
    assert p.injected == [INTR_A]


def test_injection_goes_into_the_open_stream() -> None:
    p = Playbook("auto", inject=True).writes(A, B, TRAP)
    assert p.paused
    p.returns(0, 1)
    assert not p.paused
    p.writes(TRAP).returns(1, 2).writes("Done.").ends()
    assert (p.streams, p.injected, p.shown) == (1, [INTR_A, INTR_B], "Done.")
    written = [f"{segment.author}: {segment.text}" for segment in p.run.transcript]
    assert written == [
        f"model: {A}{B}{TRAP}",
        f"runtime: {INTR_A}",
        f"model: {TRAP}",
        f"runtime: {INTR_B}",
        "model: Done.",
    ]


def test_sync_pauses_an_injectable_stream() -> None:
    p = Playbook("sync", inject=True).writes(A)
    assert p.paused
    p.returns(0, 1)
    assert (p.streams, p.injected, p.paused) == (1, [INTR_A], False)
