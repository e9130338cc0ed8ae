"""What streams have written is known token by token, up to where it counts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.adapters.models.written import Known, Memory, Written, keys_of
from asynclm.cml.transcript import Segment, as_continued

TEXTS = st.lists(st.text("ab[] \n", min_size=1, max_size=4), max_size=8)


def plain(known: Known | None) -> tuple[list[int], str]:
    assert known is not None
    return known.tokens.tolist(), known.rest


class Spelled:
    """A stream whose tokens say what they stand for."""

    def __init__(self, prompt: str, pieces: list[str]) -> None:
        self.texts = [prompt, *pieces]
        self.written = Written([0])
        for number, piece in enumerate(pieces, 1):
            self.written.add([number], piece, piece)

    def read(self, tokens: Any) -> str:
        return "".join(self.texts[token] for token in tokens)


@given(TEXTS, st.data())
def test_tokens_and_rest_are_exactly_the_text(pieces: list[str], data: st.DataObject) -> None:
    stream = Spelled("prompt:", pieces)
    whole = "".join(pieces)
    cut = data.draw(st.integers(0, len(whole)))
    text = whole[:cut] + data.draw(st.text("ab[] \n", max_size=5))
    known = stream.written.known(text)
    assert stream.read(known.tokens) + known.rest == f"prompt:{text}"
    fitting = sum(whole[: len("".join(pieces[:n]))] == text[: len("".join(pieces[:n]))] for n in range(len(pieces) + 1))
    assert len(known.tokens) >= fitting - 1  # all that fit but the last


def test_reasoning_stays_although_the_answer_does_not_hold_it() -> None:
    written = Written([1], opened_thinking=True)
    written.add([2], "hm", "")
    written.add([3], "</think>", "")
    written.add([4], "Yes", "Yes")
    written.add([5], ", no", ", no")
    assert plain(written.known("Yes")) == ([1, 2, 3], "Yes")
    assert plain(written.known("Yes, no!")) == ([1, 2, 3, 4], ", no!")
    assert not written.known("Yes").thinking


def test_reasoning_that_ends_in_the_middle_of_a_piece() -> None:
    written = Written([1])
    written.add([2], "<think>hm", "")
    written.add([3], "</think>Yes", "Yes")
    assert plain(written.known("Yes")) == ([1, 2], "</think>Yes")
    assert not written.known("Yes").thinking
    assert plain(written.known("No")) == ([1, 2], "No")
    assert written.known("No").thinking


@pytest.mark.parametrize(("ended", "closed", "cut"), [(False, True, 2), (True, True, 0), (False, False, 0)])
def test_cut_while_the_model_was_writing(ended: bool, closed: bool, cut: int) -> None:
    written = Written([1, 2])
    written.ended, written.closed = ended, closed
    assert written.known("").cut == cut


def test_behind_what_is_lost_there_is_only_text() -> None:
    written = Written([0])
    written.add([1], "a", "a")
    written.add([2], "b", "b")
    written.lose()
    written.add([9], "d", "d")
    assert plain(written.known("abcd")) == ([0, 1], "bcd")


CALL, TOLD = Segment("model", "call"), Segment("runtime", "told")


def test_what_a_transcript_goes_on_from() -> None:
    memory = Memory()
    transcript = [CALL, TOLD, Segment("model", "answer"), Segment("runtime", "more")]
    keys = keys_of("prompt", transcript)
    assert memory.find(keys, transcript) is None
    first, second = Spelled("p", ["ca", "ll", " and so on"]), Spelled("p", ["an", "swer"])
    memory.keep(keys[0], first.written)
    assert plain(memory.find(keys, transcript)) == ([0, 1], "ll" + as_continued(transcript[1:]))
    memory.keep(keys[2], second.written)
    assert plain(memory.find(keys, transcript)) == ([0, 1], "swer\nmore\n")
    assert plain(memory.find(keys[:3], transcript[:2])) == ([0], "")
    # A branch tells something else.
    other = [CALL, Segment("runtime", "something else")]
    assert plain(memory.find(keys_of("prompt", other), other)) == ([0, 1], "ll\nsomething else\n")
    assert memory.find(keys_of("another prompt", transcript), transcript) is None


def test_the_author_and_the_bounds_of_segments_are_part_of_the_key() -> None:
    keys = {
        keys_of("p", transcript)[-1]
        for transcript in (
            [Segment("model", "ab")],
            [Segment("runtime", "ab")],
            [Segment("model", "a"), Segment("model", "b")],
            [],
        )
    }
    assert len(keys) == 4


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    memory = Memory(max_tokens=10)
    kept = [Written([1, 2, 3]) for _ in range(4)]
    for n, written in enumerate(kept):
        memory.keep(bytes([n]), written)
    assert len(memory) == 3
    assert memory.find([bytes([0])], []) is None
    kept[1].add([1] * 20, "x", "x")  # it grows after it was kept
    memory.keep(b"new", Written([1]))
    assert memory.find([bytes([1])], []) is None
    assert memory.find([bytes([3])], []) is not None
