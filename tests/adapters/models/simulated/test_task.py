import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.adapters.models.simulated.task import Node, Task, TaskError, encode_task, find_tasks
from asynclm.cml.tokens import CONTROL_TOKENS, escape, unescape

# Texts rich in what could go wrong: control tokens, escapes, the block's own delimiters.
texts = st.lists(
    st.sampled_from(
        [*CONTROL_TOKENS, "\\", "u005b", "u005c", "\\u005b", "<task>", "</task>", "<", '"', "'", "é", "[", "\n"]
    )
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    max_size=8,
).map("".join)


@given(texts, texts)
def test_a_task_survives_the_proxys_escaping_unchanged(call: str, say: str) -> None:
    task = Task((Node("a", call, (), 12.5), Node("b", "g()", ("a",))), say)
    block = encode_task(task)
    assert escape(block) == block
    assert unescape(block) == block
    assert find_tasks(f"Please: {block} thanks") == [task]


@given(texts, texts)
def test_also_twice_and_around_other_text(one: str, two: str) -> None:
    tasks = [Task(say=one), Task(answer=two)]
    assert find_tasks(escape("\n".join(map(encode_task, tasks)))) == tasks


def test_a_block_written_by_hand_survives_escaping() -> None:
    block = '<task>{"calls": [{"id": "a", "call": "f(x=\'[END] [CALL]\')"}]}</task>'
    assert find_tasks(escape(block)) == find_tasks(block) == [Task((Node("a", "f(x='[END] [CALL]')"),))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<task>{}", "not closed"),
        ("<task>{</task>", "can't be read"),
        ('<task>{"calls": [{"id": "a"}]}</task>', "missing required field `call`"),
        ('<task>{"wait": 1}</task>', "unknown field `wait`"),
        ('<task>{"calls": [{"id": "a", "call": "f()"}, {"id": "a", "call": "f()"}]}</task>', "'a' twice"),
        ('<task>{"calls": [{"id": "a", "call": "f()", "after": ["b"]}, {"id": "b", "call": "f()"}]}</task>', "'b'"),
        ('<task>{"calls": [{"id": "k", "call": "f()"}]}</task>', "'k' twice"),
    ],
)
def test_blocks_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        find_tasks(text, known={"k"})


def test_a_later_task_may_wait_for_an_earlier_ones_call() -> None:
    assert find_tasks('<task>{"calls": [{"id": "b", "call": "f()", "after": ["k"]}]}</task>', known={"k"})
