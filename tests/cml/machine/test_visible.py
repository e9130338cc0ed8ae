"""The visible answer: white space where blocks stood, and the client's own bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.cml.machine.visible import Visible


def shown(pieces: list[str | None], **bounds: object) -> tuple[str, str | None]:
    """None stands for a block."""
    visible = Visible(**bounds)  # type: ignore[arg-type]
    out = ""
    for piece in pieces:
        if piece is None:
            visible.block()
        else:
            out += visible.text(piece)
        if visible.finished:
            break
    return out + visible.end(), visible.finished


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([" Hello", " world", "\n"], " Hello world\n"),
        (["Hi.\n\n", None, "\n\n", None, "\n\n", "Bye."], "Hi.\n\nBye."),
        (["Hi.\n", None, "\n", "Bye."], "Hi.\nBye."),
        (["Hi. ", None, " ", None, " Bye."], "Hi. Bye."),
        (["Hi", None, "Bye"], "HiBye"),
        ([None, "\n\n", None, "\n", "Bye."], "Bye."),
        (["Hi.\n\n", None, "\n"], "Hi."),
        (["List:\n", None, "\n", "  - one\n  - two"], "List:\n  - one\n  - two"),
        (["a\n\n\n\nb"], "a\n\n\n\nb"),  # the model's own blank lines are its own
        ([" ", "\n", " x"], " \n x"),
    ],
)
def test_white_space(pieces: list[str | None], text: str) -> None:
    assert shown(pieces) == (text, None)


def test_a_new_turn_is_a_new_paragraph() -> None:
    visible = Visible()
    out = visible.text("One.")
    visible.turn()
    out += visible.text("Two.")
    visible.turn()
    out += visible.text(" Three.")
    visible.turn()
    out += visible.text("It is")
    visible.turn()
    out += visible.text("12 degrees.")
    assert out == "One.\n\nTwo.\n\nThree.\n\nIt is 12 degrees."


@pytest.mark.parametrize(
    ("pieces", "stop", "text", "finished"),
    [
        (["one two"], ("two",), "one ", "stop"),
        (["one t", "w", "o three"], ("two",), "one ", "stop"),
        (["one t", "w"], ("two",), "one tw", None),
        (["a\n\nb"], ("\n\n",), "a", "stop"),
        (["a\n", "\n", "b"], ("\n\n",), "a", "stop"),
        (["abcd"], ("cd", "b"), "a", "stop"),
        (["aab"], ("ab",), "a", "stop"),
        (["x", None, "sto", None, "p y"], ("stop",), "x", "stop"),
        (["Hi", None, "\nBye."], ("Hi there",), "Hi\nBye.", None),
    ],
)
def test_stop(pieces: list[str | None], stop: tuple[str, ...], text: str, finished: str | None) -> None:
    assert shown(pieces, stop=stop) == (text, finished)


@given(st.text("ab ", max_size=30), st.lists(st.text("ab ", min_size=1, max_size=3), min_size=1, max_size=3))
def test_stop_holds_for_any_split(text: str, stop: list[str]) -> None:
    cut = min(((text.find(each) + len(each), text.find(each)) for each in stop if each in text), default=(0, len(text)))
    want = text[: cut[1]]
    assert shown(list(text), stop=tuple(stop))[0] == want
    assert shown([text] if text else [], stop=tuple(stop))[0] == want


def test_max_tokens_counts_pieces() -> None:
    assert shown([" one", None, " two", " three"], max_tokens=2) == (" one two", "length")
    assert shown([" one", " two"], max_tokens=2) == (" one two", None)
    assert shown(["x" * 100], max_tokens=10) == ("x" * 40, "length")
