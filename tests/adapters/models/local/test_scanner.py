from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import FAMILIES, vocabulary

from asynclm.adapters.models.local.lexicon import Lexicon
from asynclm.adapters.models.local.scanner import THINK
from asynclm.cml.parser import Parser
from asynclm.cml.tokens import CALL, CONTROL_TOKENS, INTR

PIECES = st.sampled_from(
    [
        *CONTROL_TOKENS,
        *(token[:-1] for token in CONTROL_TOKENS),
        *("[", "]", "[[", "'", '"', "''", '"""', "'''", "\\", "\n", " ", "a", "f(x=1)", ", ", "."),
        *("<think>", "</think>", "<", "</", "think>", "END]", "CALL]", "[C"),
    ]
)


@cache
def scanner(family: str):
    return Lexicon(vocabulary(family)).scanner


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(PIECES, max_size=25))
def test_it_is_where_the_parser_is_after_every_token(family, pieces):
    words = vocabulary(family)
    machine = scanner(family)
    state, parser = machine.start, Parser()
    for token in words.encode("".join(pieces)):
        state = machine.move(state, token).state
        parser.feed(words.pieces[token].decode())
        assert (state.block or bool(state.held) or state.mode in (THINK, "cut")) == parser.critical
        assert (state.mode is THINK) == parser.thinking


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(PIECES, max_size=25))
def test_tokens_without_what_a_state_cares_for_leave_it_as_it_is(pieces):
    words = vocabulary("gpt2")
    lexicon = Lexicon(words)
    state = lexicon.scanner.start
    for token in words.encode("".join(pieces)):
        for other in range(len(words.pieces)):
            if not lexicon.flags[other] & state.care:
                assert lexicon.scanner.move(state, other).state is state
        state = lexicon.scanner.move(state, token).state


def test_what_stands_behind_the_token_that_opens_a_block():
    words = vocabulary("sentencepiece")
    machine = scanner("sentencepiece")
    token = words.pieces.index(b"[CALL]c")
    move = machine.move(machine.start, token)
    assert (move.state.mode, move.inside, move.first) == (CALL, b"c", (CALL, b"c"))
    # A block opened and closed by the same token is open no more.
    move = machine.move(machine.text, words.pieces.index(b"[TRAP][END]\n"))
    assert (move.state, move.inside, move.first) == (machine.text, None, ("[TRAP]", b"[END]\n"))
    assert machine.move(machine.text, words.pieces.index(INTR.encode())).state.mode == "cut"
