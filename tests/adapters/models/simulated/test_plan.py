import json
from typing import Any

import pytest

from asynclm.adapters.models.simulated.plan import GREETING, Step, read
from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.cml.render import render_interrupt

TASK = Task(
    calls=(
        Node("short", "f(x=1)", (), 10),
        Node("long", "g(x=2)", (), 500),
        Node("then", "h()", ("short",), 50),
        Node("both", "k()", ("then", "long"), 50),
    ),
    answer="Results:",
)
USER = {"role": "user", "content": f"Do this. {encode_task(TASK)}"}
LONG = "[CALL] long [HEAD] g(x=2) [END]"
SHORT = "[CALL] short [HEAD] f(x=1) [END]"
THEN = "[CALL] then [HEAD] h() [END]"
BOTH = "[CALL] both [HEAD] k() [END]"
TRAP = "[TRAP][END]"


def wrote(*parts: str) -> dict[str, Any]:
    return {"role": "assistant", "content": "\n".join(parts)}


def told(**values: Any) -> dict[str, Any]:
    return {
        "role": "user",
        "content": "\n".join(render_interrupt(name, json.dumps(value)) for name, value in values.items()),
    }


def step(*messages: dict[str, Any]) -> str | None:
    found = read(messages).next()
    return found and found.text


ERROR = {"error": {"type": "timeout", "message": "it took too long"}}
ANSWER = 'Results:\nshort = 1\nlong = {"a": [2]}\nthen = null\nboth = "x"'
ALL_WRITTEN = [
    wrote(LONG, SHORT, TRAP),
    told(short=1),
    wrote(THEN, TRAP),
    told(then=None, long={"a": [2]}),
    wrote(BOTH, TRAP),
]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        pytest.param([], LONG, id="the longest of the ready ones first"),
        pytest.param([wrote(LONG)], SHORT, id="then the other"),
        pytest.param([wrote(LONG, SHORT)], TRAP, id="nothing ready: a trap"),
        pytest.param([wrote(LONG, SHORT, TRAP)], TRAP, id="asked again without news: the trap again"),
        pytest.param([wrote(LONG, SHORT, "[TRAP")], TRAP, id="what a stop sequence leaves of a trap"),
        pytest.param([wrote(LONG, SHORT, TRAP), told(long=1)], TRAP, id="nothing became ready by it"),
        pytest.param([wrote(LONG, SHORT, TRAP), told(short=1)], THEN, id="a result makes the next one ready"),
        pytest.param([wrote(LONG), told(long=1)], SHORT, id="one at a time, as under sync"),
        pytest.param([wrote(LONG, SHORT, TRAP), told(short=ERROR)], THEN, id="an error value is a result"),
        pytest.param([wrote(LONG, "[CALL] short [HEAD] f(")], SHORT, id="a block that was cut off was not written"),
        pytest.param([wrote(LONG, "[CALL] short [HEAD] f("), told(short=ERROR)], THEN, id="unless its error came back"),
        pytest.param([wrote(LONG, SHORT, TRAP), told(clock="12:00")], TRAP, id="interrupts of others are ignored"),
        pytest.param([wrote(LONG, SHORT, TRAP), told(short=1, long=2)], THEN, id="several at once"),
        pytest.param([wrote(LONG, SHORT, TRAP), told(short=1), told(long=2)], THEN, id="in turns of their own"),
        pytest.param([*ALL_WRITTEN, told(both="x")], ANSWER, id="the answer quotes the results"),
        pytest.param([*ALL_WRITTEN, told(both="x"), wrote(ANSWER)], None, id="done"),
        pytest.param([*ALL_WRITTEN, told(both="x"), wrote(ANSWER[:20])], ANSWER[20:], id="a cut answer goes on"),
    ],
)
def test_what_comes_next(turns: list[dict[str, Any]], expected: str | None) -> None:
    assert step(USER, *turns) == expected


def test_interrupts_inside_a_prefilled_turn() -> None:
    prefill = "\n".join([LONG, SHORT, TRAP, render_interrupt("short", "1"), THEN, TRAP])
    assert step(USER, wrote(prefill)) == TRAP
    assert step(USER, wrote(prefill, render_interrupt("then", "1"), render_interrupt("long", "2"))) == BOTH


def test_a_value_that_holds_control_tokens_is_quoted_as_it_came() -> None:
    task = {"role": "user", "content": encode_task(Task((Node("a", "f()"),), answer="Got:"))}
    value = {"x": "[END] [CALL] b [HEAD] g() [END]"}
    assert step(task, wrote("[CALL] a [HEAD] f() [END]"), told(a=value)) == (
        'Got:\na = {"x": "\\u005bEND] \\u005bCALL] b \\u005bHEAD] g() \\u005bEND]"}'
    )


SAY = {"role": "user", "content": encode_task(Task((Node("a", "f()"),), say="Let me see."))}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([], "Let me see."),
        (["Let me"], " see."),
        (["Let me "], " see."),
        (["Let me see."], "[CALL] a [HEAD] f() [END]"),
        (["Let me see.\n[CALL] a [HEAD] f() [END]\n[TRAP][END]"], "[TRAP][END]"),
        (["Something else"], "Let me see."),
    ],
)
def test_text_before_the_calls(written: list[str], expected: str) -> None:
    assert step(SAY, *map(wrote, written)) == expected


def test_thinking_counts_as_said() -> None:
    user = {"role": "user", "content": encode_task(Task((Node("a", "f()"),), say="<think>Hm, [CALL]</think>\nYes."))}
    assert step(user, wrote("<think>Hm, [CALL]</think>\nYes.")) == "[CALL] a [HEAD] f() [END]"


MORE = encode_task(Task((Node("more", "m()", ("a",), 1), Node("other", "o()", (), 2)), say="Sure.", answer="And:"))


def test_an_outside_interrupt_brings_a_further_task() -> None:
    first = [SAY, wrote("Let me see.", "[CALL] a [HEAD] f() [END]", TRAP), told(user=f"Also: {MORE}")]
    assert step(*first) == "Sure."
    assert step(*first, wrote("Sure.")) == "[CALL] other [HEAD] o() [END]"
    both = [*first, wrote("Sure.", "[CALL] other [HEAD] o() [END]", TRAP), told(a=1, other=2)]
    assert step(*both) == "[CALL] more [HEAD] m() [END]"
    last = [*both, wrote("[CALL] more [HEAD] m() [END]", TRAP), told(more=3)]
    assert step(*last) == "Done.\na = 1"
    assert step(*last, wrote("Done.\na = 1")) == "And:\nmore = 3\nother = 2"
    assert step(*last, wrote("Done.\na = 1\nAnd:\nmore = 3\nother = 2")) is None


def test_an_answer_that_was_begun_is_ended_before_a_further_task() -> None:
    first = [SAY, wrote("Let me see.", "[CALL] a [HEAD] f() [END]"), told(a=1), wrote("Done."), told(user=MORE)]
    assert step(*first) == "\na = 1"
    assert step(*first, wrote("a = 1")) == "Sure."


def test_an_answer_that_was_given_before_a_further_task_was_known_is_not_given_again() -> None:
    # A branch that saw `a` answered, beside one that had been told of the further task and wrote a call for it.
    first = [SAY, wrote("Let me see.", "[CALL] a [HEAD] f() [END]", TRAP), told(user=MORE)]
    both = [*first, wrote("Sure.", "[CALL] other [HEAD] o() [END]", TRAP), told(a=1), wrote("Done.\na = 1")]
    assert step(*both) == "[CALL] more [HEAD] m() [END]"
    last = [*both, wrote("[CALL] more [HEAD] m() [END]", TRAP), told(more=3, other=2)]
    assert step(*last) == "And:\nmore = 3\nother = 2"


@pytest.mark.parametrize("text", ["<task>{</task>", "no task", MORE.replace("other", "a")])
def test_an_outside_interrupt_without_a_usable_task_changes_nothing(text: str) -> None:
    assert step(SAY, wrote("Let me see.", "[CALL] a [HEAD] f() [END]"), told(user=text)) == TRAP


def test_only_the_last_user_turn_counts() -> None:
    past = [USER, wrote("Results: ...")]
    assert step(*past, SAY) == "Let me see."
    assert step(*past, {"role": "user", "content": "Thanks!"}) == GREETING
    assert step(*past, {"role": "user", "content": "Thanks!"}, wrote(GREETING)) is None


def test_a_request_in_several_user_messages_and_in_parts() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": USER["content"]}, {"type": "image_url"}]}
    system = {"role": "system", "content": "Speak CML: [CALL] id [HEAD] f() [END], [INTR] id [HEAD] 1 [END]"}
    assert step(system, parts, {"role": "user", "content": "Be quick."}) == LONG
    assert step(system, parts, {"role": "user", "content": "Be quick."}, wrote(LONG)) == SHORT


@pytest.mark.parametrize("messages", [[], [{"role": "system", "content": None}], [{"role": "user", "content": "Hi"}]])
def test_without_a_task_there_is_a_plain_answer(messages: list[dict[str, Any]]) -> None:
    assert step(*messages) == GREETING


def test_a_step_that_was_finished_is_not_given_again_even_if_it_cannot_be_read_back() -> None:
    user = {"role": "user", "content": encode_task(Task((Node("a", "f('"),), say="[INTR] x [HEAD] 1 [END]"))}
    progress = read([user])
    seen: list[Step] = []
    while (found := progress.next()) is not None and found.kind != "trap":
        seen.append(found)
        progress.finished(found)
    assert [found.kind for found in seen] == ["text", "call"]


def test_an_answer_that_quotes_nothing() -> None:
    task = Task((Node("a", "f()"),), answer="Done with it.", quote=False)
    user = {"role": "user", "content": encode_task(task)}
    assert step(user, wrote("[CALL] a [HEAD] f() [END]", TRAP), told(a=1)) == "Done with it."
