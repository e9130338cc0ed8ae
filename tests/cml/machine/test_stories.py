"""Whole stories: what must not depend on where a stream was cut, or on whether the API took a stop sequence."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playbook import Playbook, small

from asynclm.cml.events import Text
from asynclm.cml.machine import POLICIES
from asynclm.cml.machine import events as ev
from asynclm.cml.parser import Parser
from asynclm.cml.render import STOP

TRAP = "[TRAP][END]"
WORDS = st.text("ab [.\n", max_size=8)
STREAM = st.lists(
    st.one_of(
        WORDS,
        st.just("[CALL] % [HEAD] f(s='x') [END]\n"),
        st.just("[CALL] f() [END]"),
        st.just("[CALL] % [HEAD] f( [END]"),
    ),
    max_size=5,
).map("".join)
POLICY = pytest.mark.parametrize("policy", sorted(POLICIES))


def tell(policy: str, streams: list[str], *, stop: str | None, size: int) -> Playbook:
    """Run a story: each stream writes its text and a trap, the last one an answer. Calls return while nothing is
    open.
    """
    p = Playbook(policy, limits=small(max_empty_traps=99))
    ids = (f"i{n}" for n in range(1000))
    texts = [f"{text}{TRAP}" for text in streams] + ["Done."]
    for n, text in enumerate(texts):
        while "%" in text:
            text = text.replace("%", next(ids), 1)
        texts[n] = text
    for _ in range(200):
        if p.finish is not None:
            return p
        if p.stream is None:
            p.returns(min(p.live), "r")
            continue
        number = p.stream
        text = texts[min(number, len(texts) - 1)]
        if stop is not None:
            text = text.partition(stop)[0]
        for at in range(0, len(text), size):
            if p.stream == number:
                p.writes(text[at : at + size])
        if p.stream == number:
            p.ends()
    raise AssertionError("the run does not finish")


@POLICY
@given(streams=st.lists(STREAM, max_size=4), size=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_stop_sequence_changes_nothing(policy: str, streams: list[str], size: int) -> None:
    cut_by_us = tell(policy, streams, stop=None, size=size)
    cut_upstream = tell(policy, streams, stop=STOP, size=size)
    assert cut_upstream.shown == cut_by_us.shown
    assert cut_upstream.executed == cut_by_us.executed
    assert cut_upstream.prompts == cut_by_us.prompts
    assert cut_upstream.noted("trap") == cut_by_us.noted("trap")


SNIPPETS = [
    "a ",
    "b. ",
    "[",
    "[TR",
    "\n\n",
    "some words. ",
    "[CALL] % [HEAD] f(s='x') [END]\n",
    "[CALL] f() [END]",
    "[CALL] % [HEAD] f( [END]",
    "[CALL] % [HEAD] f(",
    TRAP,
    "[TRAP] i0 [END]",
    "[TRAP] hm.",
    "[END]",
    "[INTR] x",
]


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"fork"}))  # which drops a branch's chatter
@pytest.mark.parametrize("seed", range(150))
def test_the_client_sees_what_the_transcript_holds(policy: str, seed: int) -> None:
    """Cuts lose, double and move no text: but for white space, the answer is the transcript without its blocks."""
    chance = random.Random(seed)
    p = Playbook(policy, limits=small(max_empty_traps=99, max_resumes=30))
    ids = (f"i{n}" for n in range(1000))
    for step in range(400):
        if p.finish is not None:
            break
        if p.live and (p.stream is None or chance.random() < 0.2):
            p.returns(chance.choice(sorted(p.live)), "r")
        elif step < 100 and chance.random() < 0.03:
            p.handle(ev.OutsideInterrupt("user", "hurry"))
        else:
            assert p.stream is not None, "the run waits for nothing"
            if step > 100 or chance.random() < 0.25:
                p.ends()
                continue
            number, text = p.stream, chance.choice(SNIPPETS)
            text = text.replace("%", next(ids))
            while text and p.stream == number:
                size = chance.randint(1, 9)
                p.writes(text[:size])
                text = text[size:]
    assert p.finish is not None
    kept = ""
    for segment in p.run.transcript:
        if segment.author == "model":
            parser = Parser()
            found = [*parser.feed(segment.text), *parser.finish()]
            kept += "".join(event.text for event in found if isinstance(event, Text))
    assert "".join(p.shown.split()) == "".join(kept.split())
