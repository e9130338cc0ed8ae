import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.adapters.models.simulated.plan import read
from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.adapters.models.simulated.tokens import Splitter, count_tokens
from asynclm.adapters.models.simulated.writer import Writer
from asynclm.adapters.models.stops import Stops
from asynclm.cml.render import render_interrupt


@given(st.text())
def test_tokens_join_to_the_text(text: str) -> None:
    tokens = list(Splitter().split(text))
    assert "".join(tokens) == text
    assert not any(token[-1].isspace() for token in tokens[:-1])


def test_tokens_are_about_four_characters() -> None:
    text = "".join(f"[CALL] c{n} [HEAD] get_weather(city='{'Paris' * (n % 3)}') [END]\n" for n in range(50))
    tokens = list(Splitter().split(text))
    assert 3.5 < len(text) / len(tokens) < 4.5
    assert abs(count_tokens(text) - len(tokens)) < 0.2 * len(tokens)
    cuts = {token[token.index("[") :] for token in tokens if "[" in token}
    assert {"[", "[C", "[CA", "[H", "[HEA", "[E", "[EN", "[END"} <= cuts  # control tokens are cut in many ways


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(0, 2**32),
)
def test_stop_sequences_cut_where_the_first_begins_however_the_text_comes(
    text: str, sequences: list[str], seed: int
) -> None:
    chance = random.Random(seed)
    stops = Stops(sequences)
    out, at = "", 0
    while at < len(text) and not stops.hit:
        size = chance.randint(1, 4)
        out += stops.feed(text[at : at + size])
        at += size
        assert text.startswith(out)
    read_so_far = text[:at]
    found = [where for sequence in sequences if (where := read_so_far.find(sequence)) >= 0]
    assert stops.hit == bool(found)
    assert out + stops.flush() == (read_so_far[: min(found)] if found else text)


TASK = Task((Node("a", "f()", (), 1), Node("b", "g()", ("a",), 1)), say="Well now, let me see.")


def writer(**options: object) -> Writer:
    return Writer(read([{"role": "user", "content": encode_task(TASK)}]), **options)  # type: ignore[arg-type]


def drain(writer: Writer) -> str:
    parts = []
    while writer.finish_reason is None and not writer.waiting:
        parts.append(writer.next())
    return "".join([*parts, writer.flush()])


def test_it_writes_the_plan_and_ends_at_a_trap() -> None:
    one = writer()
    assert drain(one) == "Well now, let me see.\n[CALL] a [HEAD] f() [END]\n[TRAP][END]"
    assert one.finish_reason == "stop"
    assert one.next() == ""
    assert one.completion_tokens == 16


def test_a_live_one_waits_at_a_trap_and_goes_on_when_told() -> None:
    one = writer(live=True)
    assert drain(one).endswith("[TRAP][END]")
    assert (one.waiting, one.finish_reason) == (True, None)
    one.inject(render_interrupt("a", "1"))
    assert drain(one) == "\n[CALL] b [HEAD] g() [END]\n[TRAP][END]"
    one.inject(render_interrupt("b", "2"))
    assert drain(one) == "\nDone.\na = 1\nb = 2"
    assert (one.waiting, one.finish_reason) == (False, "stop")


def test_what_is_injected_in_the_middle_counts_from_the_next_block_on() -> None:
    one = writer(live=True)
    text = ""
    while "[CALL] a [HEAD] f() [END]" not in text:
        text += one.next()
    one.inject(render_interrupt("a", "1"))
    assert drain(one) == "\n[CALL] b [HEAD] g() [END]\n[TRAP][END]"


def test_text_goes_on_behind_an_interrupt() -> None:
    one = writer(live=True)
    text = one.next() + one.next()
    more = encode_task(Task((Node("c", "h()", (), 900),), say="Sure."))
    one.inject(render_interrupt("user", f'"{more.replace(chr(34), chr(92) + chr(34))}"'))
    assert text + drain(one) == (
        "Well now, let me see.\nSure.\n[CALL] c [HEAD] h() [END]\n[CALL] a [HEAD] f() [END]\n[TRAP][END]"
    )


@pytest.mark.parametrize(
    ("options", "text", "reason"),
    [
        ({"max_tokens": 3}, "Well now, le", "length"),
        ({"max_tokens": 500}, "Well now, let me see.\n[CALL] a [HEAD] f() [END]\n[TRAP][END]", "stop"),
        ({"stop": ["\n"]}, "Well now, let me see.", "stop"),
        ({"stop": ["xyz", " me s", "[CALL]"]}, "Well now, let", "stop"),
        ({"stop": ["][END]"]}, "Well now, let me see.\n[CALL] a [HEAD] f() [END]\n[TRAP", "stop"),
        ({"stop": ["[END]\nnever"]}, "Well now, let me see.\n[CALL] a [HEAD] f() [END]\n[TRAP][END]", "stop"),
        ({"stop": ["let me tell"], "max_tokens": 3}, "Well now, le", "length"),
    ],
)
def test_bounds(options: dict[str, object], text: str, reason: str) -> None:
    one = writer(**options)
    assert drain(one) == text
    assert one.finish_reason == reason
