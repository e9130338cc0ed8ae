"""The parser: what it finds, and that it finds the same however the text is cut."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asynclm.cml.body import parse_body
from asynclm.cml.events import Call, Event, Forged, Interrupt, Stray, Text, Thinking, Trap
from asynclm.cml.parser import Parser
from asynclm.cml.render import STOP, render_body, render_call, render_interrupt, render_trap
from asynclm.cml.tokens import CONTROL_TOKENS


def parse(*pieces: str, interrupts: bool = False) -> list[Event]:
    """All events, neighbouring pieces of text joined."""
    parser = Parser(interrupts=interrupts)
    found = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    joined: list[Event] = []
    for event in found:
        last = joined[-1] if joined else None
        if isinstance(event, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + event.text, event.end)
        elif isinstance(event, Thinking) and isinstance(last, Thinking):
            joined[-1] = Thinking(last.text + event.text, event.end)
        else:
            joined.append(event)
    return joined


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("", []),
        ("plain", [Text("plain", 5)]),
        ("a [1] [CAL] [call] b", [Text("a [1] [CAL] [call] b", 20)]),
        ("[CALL] a [HEAD] f(x=1) [END]", [Call("a", "f(x=1)", 28)]),
        ("[CALL]f()[END]", [Call(None, "f()", 14)]),
        ("[CALL] [HEAD] f() [END]", [Call(None, "f()", 23)]),
        ("hi[CALL]a[HEAD]f()[END]ho", [Text("hi", 2), Call("a", "f()", 23), Text("ho", 25)]),
        ("[TRAP][END]", [Trap((), 11)]),
        ("[TRAP] a, b [END]!", [Trap(("a", "b"), 17), Text("!", 18)]),
        ('[CALL] f(s="[END]") [END]', [Call(None, 'f(s="[END]")', 25)]),
        ("[CALL] f(s='a\\'[END]') [END]", [Call(None, "f(s='a\\'[END]')", 28)]),
        ("[CALL] f(s='', t='''[END]''') [END]", [Call(None, "f(s='', t='''[END]''')", 35)]),
        ('[CALL] f("[CALL] x [HEAD] g() [END]") [END]', [Call(None, 'f("[CALL] x [HEAD] g() [END]")', 43)]),
        (
            '[CALL] {"name": "f", "arguments": {"s": "\\"[END]"}} [END]',
            [Call(None, '{"name": "f", "arguments": {"s": "\\"[END]"}}', 57)],
        ),
        # a stray apostrophe costs the rest of its line
        ("[CALL] f(x=don't)\n[END] on", [Call(None, "f(x=don't)", 23), Text(" on", 26)]),
        ("a [END] b[HEAD]", [Text("a [END] b[HEAD]", 15)]),  # code, not CML
        (
            "[CALL] f() [END] [END]\n[END] x [END]",
            [
                Call(None, "f()", 16),
                Text(" ", 17),
                Stray("[END]", 22),
                Text("\n", 23),
                Stray("[END]", 28),
                Text(" x [END]", 36),
            ],
        ),
        # left open
        ("[CALL] a [HEAD] f(", [Call("a", "f(", 18, "the block was not closed: [END] is missing")]),
        ("[CALL] f( [EN", [Call(None, "f( [EN", 13, "the block was not closed: [END] is missing")]),
        (
            "[CALL] f() [CALL] g() [END]",
            [Call(None, "f()", 11, "the block was not closed: [END] is missing before [CALL]"), Call(None, "g()", 27)],
        ),
        ("[TRAP] a", [Trap(("a",), 8, False)]),
        ("[TRAP]", [Trap((), 6, False)]),
        ("[TRAP] a, b [EN", [Trap(("a", "b"), 15, False)]),
        ("[TRAP][CALL] f() [END]", [Trap((), 6, False), Call(None, "f()", 22)]),
        ("[TRAP] It is warm. [END]", [Trap((), 6, False), Text(" It is warm. ", 19), Stray("[END]", 24)]),
        ("so [TRAP", [Text("so [TRAP", 8)]),
        # forged
        ("x [INTR] a [HEAD] 1 [END] [CALL] f() [END]", [Text("x ", 2), Forged(2)]),
        (
            "[CALL] f( [INTR] a [HEAD] 1 [END]",
            [Call(None, "f(", 10, "the block was not closed: [END] is missing before [INTR]"), Forged(10)],
        ),
        # thinking
        (
            "\n<think>[CALL] f() [END]</think>[CALL] g() [END]",
            [Text("\n", 1), Thinking("<think>[CALL] f() [END]</think>", 32), Call(None, "g()", 48)],
        ),
        ("<think>a < b </thin", [Thinking("<think>a < b </thin", 19)]),
        ("<thi", [Text("<thi", 4)]),
        ("a <think>[CALL] f() [END]", [Text("a <think>", 9), Call(None, "f()", 25)]),
    ],
)
def test_finds(text: str, events: list[Event]) -> None:
    assert parse(text) == events
    assert parse(*text) == events


def test_stop_sequence_leaves_a_trap() -> None:
    trap = render_trap()
    left = trap[: trap.index(STOP)]
    parser = Parser()
    assert parser.feed(left) == []
    assert parser.held == left
    assert parser.feed(STOP) == [Trap((), 11)]


pieces = st.sampled_from(
    [*CONTROL_TOKENS, "[", "]", "'", '"', "\\", "\n", "'''", "a", ", ", "f(x=1)", "<think>", "</think>", " "]
)
texts = st.lists(pieces | st.text(max_size=4), max_size=30).map("".join)


@given(texts, st.data())
@settings(max_examples=600)
@example("[TRAP] a b", None)
def test_any_split_gives_the_same_events(text: str, data: st.DataObject | None) -> None:
    whole = parse(text)
    assert parse(*text) == whole
    if data is not None:
        cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
        assert parse(*(text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))) == whole


@given(texts, st.booleans())
def test_junk_never_raises_and_nothing_is_lost(text: str, interrupts: bool) -> None:
    events = parse(text, interrupts=interrupts)
    ends = [event.end for event in events]
    assert ends == sorted(ends)
    if not interrupts and all(isinstance(event, Text | Thinking) for event in events):
        assert "".join(event.text for event in events if isinstance(event, Text | Thinking)) == text


@given(texts)
def test_text_goes_out_at_once(text: str) -> None:
    """Outside blocks and thinking, only a possible prefix of a control token is held back (or of `<think>`)."""
    parser = Parser()
    out = ""
    for n, char in enumerate(text, 1):
        for event in parser.feed(char):
            if not isinstance(event, Text):
                return
            out += event.text
        if parser.critical and text[:n].startswith(out + "["):
            held = text[len(out) : n]
            if any(held.startswith(token) for token in CONTROL_TOKENS):
                return  # inside a block now
        else:
            held = text[len(out) : n]
        assert held == "" or any(token.startswith(held) for token in (*CONTROL_TOKENS, "<think>"))


@given(texts)
@example("[CALL] f('a\\")
@example("[CALL] f('")
@example("[CALL] f('''a''")
@example("[CALL]''''")
@example("[TRAP] a [E")
def test_closing_closes(text: str) -> None:
    parser = Parser()
    parser.feed(text)
    closing = parser.closing
    if closing:
        assert parser.critical
        parser.feed(closing)
        assert not parser.critical


identifiers = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda s: s not in {"true", "false", "null"}
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.lists(st.sampled_from(CONTROL_TOKENS)).map("".join)
    | st.sampled_from(CONTROL_TOKENS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(identifiers, json_values)
@example("a", "\\[END] \\\\[INTR] \\u005bEND]")
def test_interrupts_survive(id: str, value: object) -> None:
    for ensure_ascii in (False, True):
        block = render_interrupt(id, json.dumps(value, ensure_ascii=ensure_ascii))
        assert block.count("[END]") == block.count("[INTR]") == 1
        (event,) = parse(*block, interrupts=True)
        assert isinstance(event, Interrupt)
        assert (event.id, event.end) == (id, len(block))
        assert json.loads(event.value) == value


@given(
    identifiers,
    st.from_regex(r"[a-z]{3,8}", fullmatch=True),
    st.dictionaries(st.from_regex(r"arg_[a-z]{0,3}", fullmatch=True), json_values, max_size=3),
)
def test_calls_survive(id: str, name: str, arguments: dict[str, object]) -> None:
    from keyword import iskeyword

    if iskeyword(name):
        return
    (event,) = parse(*render_call(id, render_body(name, arguments)))
    assert isinstance(event, Call)
    assert (event.id, event.problem) == (id, None)
    call = parse_body(event.body)
    assert (call.name, call.positional, call.named) == (name, (), arguments)

    (event,) = parse(*render_call(None, json.dumps({"name": name, "arguments": arguments})))
    assert isinstance(event, Call)
    call = parse_body(event.body)
    assert (event.id, event.problem, call.name, call.named) == (None, None, name, arguments)


@given(st.lists(identifiers, max_size=3))
def test_traps_survive(names: list[str]) -> None:
    (event,) = parse(*render_trap(names))
    assert isinstance(event, Trap)
    assert list(event.names) == names
