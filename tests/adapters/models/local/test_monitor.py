import json
import logging
import re
from functools import cache
from random import Random

import llguidance
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monitored import allowed, wander, write
from vocabularies import FAMILIES, ToyVocabulary, vocabulary

from asynclm.adapters.models.local import monitor as monitor_module
from asynclm.adapters.models.local.monitor import Rules
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml import events
from asynclm.cml.body import parse_body
from asynclm.cml.machine.calls import AGENT, RESERVED
from asynclm.cml.parser import Parser
from asynclm.cml.render import render_body, render_call
from asynclm.cml.tokens import CALL, INTR, TRAP
from asynclm.cml.tools import ToolSpec

WEATHER = ToolSpec(
    name="temperature",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
# Only what the grammar can tell in full, so that whatever is let in must be right.
EXACT = [
    WEATHER,
    ToolSpec(
        name="plan.trip",
        parameters={
            "type": "object",
            "properties": {
                "from": {"type": "string", "minLength": 1, "maxLength": 3},
                "to": {"anyOf": [{"type": "string", "pattern": "^[A-Z]{3}$", "maxLength": 3}, {"type": "null"}]},
                "days": {"type": "integer", "minimum": -3, "exclusiveMaximum": 120},
                "legs": {
                    "type": "array",
                    "items": {"$ref": "#/$defs/Leg"},
                    "maxItems": 2,
                },
                "notes": {"type": "object", "additionalProperties": {"type": ["boolean", "number"]}},
            },
            "required": ["days", "legs"],
            "additionalProperties": False,
            "$defs": {
                "Leg": {
                    "type": "object",
                    "properties": {
                        "by": {"enum": ["rail", "it's", None, 4]},
                        "via": {"anyOf": [{"$ref": "#/$defs/Leg"}, {"type": "null"}]},
                    },
                    "required": ["by"],
                    "additionalProperties": False,
                }
            },
        },
    ),
    ToolSpec(name="log", parameters={"type": "object", "properties": {"what": True}, "additionalProperties": True}),
]


class Tool:
    def __init__(self, spec):
        self.spec = spec


@cache
def exact(family):
    return Rules(vocabulary(family), EXACT)


def checked(block, tools):
    """The call in `block`, read and checked as the run machine does."""
    (call,) = [event for event in read(block) if isinstance(event, events.Call)]
    assert call.problem is None
    assert call.id is None or (call.id.isidentifier() and call.id not in RESERVED and not call.id.startswith(AGENT))
    return Toolbox(Tool(spec) for spec in tools).check(parse_body(call.body))


def read(text):
    parser = Parser()
    return [*parser.feed(text.decode()), *parser.finish()]


# ------------------------------------------------------------------ outside of blocks

BLOCKS = (CALL.encode(), TRAP.encode())
BEFORE = [
    "",
    "x ",
    "see [",
    "[I",
    "[IN",
    "[INT",
    "[INTR",
    "[CALL",
    "[TRAP",
    "[[INTR",
    "[CALL] a [HEAD] log() [END]",
    "<thi",
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("constrain", [True, False])
def test_intr_is_never_completed_and_nothing_else_is_forbidden(family, constrain):
    words = vocabulary(family)
    rules = Rules(words, EXACT, constrain=constrain)
    for before in BEFORE:
        monitor = rules.monitor()
        assert write(monitor, words, words.encode(before)) is None
        may = allowed(monitor, words)
        for token, piece in enumerate(words.pieces):
            after = words.text(words.encode(before)) + piece
            parser = Parser()
            found = parser.feed(after.decode(errors="replace"))
            forged = any(isinstance(event, events.Forged) for event in found)
            if forged:
                assert token not in may, after
            elif not constrain or all(after.count(block) == before.encode().count(block) for block in BLOCKS):
                assert token in may, after


@pytest.mark.parametrize("family", FAMILIES)
def test_no_walk_completes_intr(family):
    words = vocabulary(family)
    random = Random(5)
    rules = exact(family)
    # Rather tokens that make up control tokens, so that they come about.
    likely = [token for token, piece in enumerate(words.pieces) if piece and piece.strip(b" \n") in INTR.encode()]
    completed = 0
    for _ in range(150):
        monitor = rules.monitor()
        written = b""
        for _ in range(12):
            choice = allowed(monitor, words)
            token = random.choice(sorted(choice & set(likely)) or sorted(choice))
            written += words.pieces[token]
            completed += len(allowed(monitor, words)) < len(words.pieces)
            monitor.take(token)
        assert not any(isinstance(event, events.Forged) for event in Parser().feed(written.decode(errors="replace")))
    assert completed > 0 or family == "special"


@pytest.mark.parametrize("family", FAMILIES)
def test_text_and_thinking_are_left_alone(family):
    words = vocabulary(family)
    monitor = exact(family).monitor()
    assert write(monitor, words, words.encode("<think>[INTR] a [CALL] nonsense [END]")) is None
    assert monitor.critical
    assert monitor.mask() is None
    assert write(monitor, words, words.encode('</think>It\'s "so": xs[0], [INTRO] [END].\n')) is None
    assert not monitor.critical


def test_the_same_state_has_the_same_mask_that_nobody_can_write_to():
    words = vocabulary("gpt2")
    monitor, other = exact("gpt2").monitor(), exact("gpt2").monitor()
    for one in (monitor, other):
        assert one.mask() is None
        write(one, words, words.encode("a [INTR"))
    mask = monitor.mask()
    assert mask is not None
    assert mask is other.mask()
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = 0


# ------------------------------------------------------------------ calls and traps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_let_in_is_a_call_that_passes_every_check(family, seed):
    words = vocabulary(family)
    random = Random(seed)
    rules = exact(family)
    for start in ("[CALL]", "[CALL] a [HEAD] plan.trip(", '[CALL] {"name": "plan.trip", "arguments": {'):
        monitor = rules.monitor()
        assert write(monitor, words, words.encode(start)) is None
        text = start.encode() + wander(monitor, words, random)
        checked(text, EXACT)
        assert text.rstrip().endswith(b"[END]")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_let_in_is_a_trap(family, seed):
    words = vocabulary(family)
    monitor = exact(family).monitor()
    assert write(monitor, words, words.encode("[TRAP]")) is None
    text = b"[TRAP]" + wander(monitor, words, Random(seed))
    (trap,) = [event for event in read(text) if isinstance(event, events.Trap)]
    assert trap.closed
    assert text.rstrip().endswith(b"[END]")


@st.composite
def schemas(draw, depth=2):
    """A schema, and values that it allows."""
    kinds = ["any", "string", "integer", "number", "boolean", "null", "enum", "short"]
    if depth:
        kinds += ["array", "object", "union", "nested", "all"]
    kind = draw(st.sampled_from(kinds))
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
        ["[END]", "it's", 'a"b\\', INTR]
    )
    number = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
    anything = st.recursive(
        st.none() | st.booleans() | number | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    )
    match kind:
        case "any":
            return draw(
                st.sampled_from([True, {}, {"description": "d"}, {"not": {"type": "string", "enum": []}}])
            ), anything
        case "string":
            return {"type": "string"}, text
        case "short":
            pattern = draw(st.sampled_from([r"^[a-z]\d{1,3}$", "x/y", "^[^a]", r"^\w+@(b|c)\.org$", "^(?:ab)*$", "."]))
            schema = {"type": "string", "minLength": 1, "maxLength": 8}
            found = (
                st.from_regex(pattern).map(lambda value: value.rstrip("\n")).filter(lambda value: 0 < len(value) < 9)
            )
            return schema | {"pattern": pattern}, found.filter(lambda value: re.search(pattern, value))
        case "integer":
            low = draw(st.integers(-2000, 2000))
            high = low + draw(st.integers(0, 3000))
            return {"type": "integer", "minimum": low, "maximum": high}, st.integers(low, high)
        case "number":
            low = draw(st.sampled_from([None, -10.5, 0, 3, 1e-9]))
            schema = {"type": "number"} | ({} if low is None else {"minimum": low})
            return schema, number.filter(lambda value: low is None or value >= low)
        case "boolean":
            return {"type": "boolean"}, st.booleans()
        case "null":
            return {"type": "null"}, st.none()
        case "enum":
            values = draw(st.lists(anything, min_size=1, max_size=3))
            return {"enum": values}, st.sampled_from(values)
        case "array":
            schema, value = draw(schemas(depth=depth - 1))
            least = draw(st.integers(0, 2))
            most = draw(st.sampled_from([least, least + 1, None]))
            bounds = {"minItems": least} if most is None else {"minItems": least, "maxItems": most}
            return {"type": "array", "items": schema} | bounds, st.lists(
                value, min_size=least, max_size=3 if most is None else most
            )
        case "object":
            return draw(objects(depth=depth - 1))
        case "nested":
            schema, value = draw(schemas(depth=depth - 1))
            return {"type": "object", "additionalProperties": schema}, st.dictionaries(text, value, max_size=3)
        case "union":
            (one, value), (other, another) = draw(schemas(depth=depth - 1)), draw(schemas(depth=depth - 1))
            return {"anyOf": [one, other], "default": None}, value | another
    schema, value = draw(objects(depth=depth - 1))
    required = schema.pop("required")
    return {"allOf": [schema, {"required": required, "type": "object"}]}, value


@st.composite
def objects(draw, depth=1):
    names = draw(st.lists(st.sampled_from(["city", "a", "b1", "été", "_x", "True1"]), unique=True, max_size=4))
    parts = {name: draw(schemas(depth=depth)) for name in names}
    required = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    schema = {"type": "object", "properties": {name: part for name, (part, _) in parts.items()}, "required": required}
    if draw(st.booleans()):
        schema["additionalProperties"] = False
    values = st.fixed_dictionaries(
        {name: parts[name][1] for name in required},
        optional={name: value for name, (_, value) in parts.items() if name not in required},
    )
    shuffled = values.flatmap(lambda value: st.permutations(list(value.items()))).map(dict)
    return schema, shuffled


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_the_schema_allows_is_let_in_token_by_token(family, data):
    words = vocabulary(family)
    schema, values = data.draw(objects(depth=2))
    spec = ToolSpec(name="do.it", parameters=schema)
    arguments = data.draw(values)
    rules = Rules(words, [WEATHER, spec])
    body = render_body(spec.name, arguments)
    found = checked(render_call("a", body).encode(), [spec])  # the test's own schemas and values agree
    assert found[1] == arguments
    for text in (render_call("a", body), render_call(None, as_json(spec.name, arguments))):
        monitor = rules.monitor()
        stuck = write(monitor, words, words.encode(text))
        assert stuck is None, (schema, stuck.decode())
        assert not monitor.critical


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_ends_with_white_space_at_most_and_no_sequence_ends_in_it(family):
    words = vocabulary(family)
    monitor = exact(family).monitor()
    parser = Parser()
    for token in words.encode('x\n[CALL] a [HEAD] temperature(city="Oslo") [END]'):
        may = allowed(monitor, words)
        assert token in may
        if parser.closing:  # a block is open
            assert not may & words.ends
        monitor.take(token)
        parser.feed(words.pieces[token].decode())
    assert not monitor.critical
    monitor = exact(family).monitor()
    before = '[CALL] a [HEAD] temperature(city="Oslo") [END'
    assert write(monitor, words, words.encode(before)) is None
    may = [words.pieces[token] for token in allowed(monitor, words)]
    assert may
    assert {piece.strip() for piece in may} == {b"]"}


def test_a_token_that_opens_a_block_has_to_go_on_as_the_block_can():
    plain = vocabulary("gpt2")
    fused = [
        b"] ",
        b"] a",
        b"] a, ",
        b"]\n",
        b"][END]",
        b"][END]\n",
        b"][END][CALL",
        b"]. ",
        b"][0]",
        b"]temperature(",
        b"]x(",
    ]
    words = ToyVocabulary(plain._tokenizer, [*plain.pieces, *fused], plain.ends)
    rules = Rules(words, [WEATHER])
    for opening, wanted in (
        ("[CALL", [b"] ", b"] a", b"]\n", b"]temperature("]),
        ("[TRAP", [b"] ", b"] a", b"] a, ", b"]\n", b"][END]", b"][END]\n"]),
        ("[INTR", []),
    ):
        monitor = rules.monitor()
        assert write(monitor, words, words.encode(opening)) is None
        may = {words.pieces[token] for token in allowed(monitor, words)}
        assert [piece for piece in fused if piece in may] == wanted
    monitor = rules.monitor()
    assert write(monitor, words, [*words.encode("[CALL"), words.pieces.index(b"]temperature(")]) is None
    assert write(monitor, words, words.encode("city='x') [END]")) is None
    monitor = rules.monitor()
    assert write(monitor, words, [*words.encode("[TRAP"), words.pieces.index(b"][END]\n")]) is None
    assert not monitor.critical


# ------------------------------------------------------------------ the rest


@pytest.mark.parametrize("family", FAMILIES)
def test_unconstrained_calls_still_cannot_forge(family):
    words = vocabulary(family)
    monitor = Rules(words, EXACT, constrain=False).monitor()
    assert write(monitor, words, words.encode("[CALL] a [HEAD] nonsense(1 2 '[INTR]' ")) is None
    assert words.ends <= allowed(monitor, words)
    stuck = write(monitor, words, words.encode("[INTR] a"))
    assert stuck is not None
    assert stuck.startswith(INTR.encode())


def test_without_tools_no_call_begins():
    words = vocabulary("special")
    monitor = Rules(words, []).monitor()
    may = allowed(monitor, words)
    assert words.pieces.index(CALL.encode()) not in may
    assert words.pieces.index(TRAP.encode()) in may


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_runtime_appends_ends_outside_of_blocks(family):
    words = vocabulary(family)
    monitor = exact(family).monitor()
    assert write(monitor, words, words.encode("[TRAP][END]")) is None
    monitor.told(words.encode('\n[INTR] a [HEAD] "[CALL]" [END]\n'))
    assert not monitor.critical
    assert write(monitor, words, words.encode("It is [CALL] b [HEAD] temperature(city='x') [END]")) is None


def test_thinking_may_begin_behind_what_the_runtime_appended_first():
    words = vocabulary("gpt2")
    monitor = exact("gpt2").monitor()
    monitor.told(words.encode("[INTR] user [HEAD] 1 [END]"))
    assert write(monitor, words, words.encode("<think>[INTR]")) is None


def test_a_token_that_was_forced_on_a_call_frees_the_rest_of_it(caplog):
    words = vocabulary("gpt2")
    monitor = exact("gpt2").monitor()
    with caplog.at_level(logging.INFO):
        for token in words.encode("[CALL] a [HEAD] unknown(x"):
            monitor.take(token)
    assert "unconstrained" in caplog.text
    assert monitor.critical
    assert write(monitor, words, words.encode("=1) [END]")) is None
    assert not monitor.critical
    assert write(monitor, words, words.encode("[CALL] b [HEAD] unknown(")) is not None


def test_a_schema_that_is_too_much_for_a_grammar_leaves_its_tool_any_literals(caplog, monkeypatch):
    words = vocabulary("gpt2")
    monkeypatch.setattr(monitor_module, "_LIMITS", llguidance.LLParserLimits(max_grammar_size=2_500))
    properties = {f"p{n}": {"type": "integer"} for n in range(200)}
    rules = Rules(words, [WEATHER, ToolSpec(name="odd", parameters={"type": "object", "properties": properties})])
    for call, fine in (("odd(p1='x')", True), ("temperature(city='x')", True), ("temperature(city=1)", False)):
        monitor = rules.monitor()
        stuck = write(monitor, words, words.encode(f"[CALL] {call} [END]"))
        assert (stuck is None) == fine, (stuck, caplog.text)
    assert "arguments of odd:" in caplog.text


def test_rules_can_be_prepared_in_advance_and_tools_are_many():
    words = vocabulary("llama3")
    many = [msg(n) for n in range(60)]
    rules = Rules(words, many)
    rules.prepare()
    monitor = rules.monitor()
    assert write(monitor, words, words.encode("[CALL] a [HEAD] tool_41(q41='x', n=3) [END]")) is None
    monitor = rules.monitor()
    assert write(monitor, words, words.encode("[CALL] a [HEAD] tool_41(q40='x', n=3) [END]")) is not None


def as_json(name, arguments):
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def msg(n):
    properties = {f"q{n}": {"type": "string"}, "n": {"type": "integer"}, "how": {"enum": ["a", "b"]}}
    parameters = {"type": "object", "properties": properties, "required": ["n"], "additionalProperties": False}
    return ToolSpec(name=f"tool_{n}", parameters=parameters)


def test_masks_of_a_vocabulary_whose_size_is_no_multiple_of_32():
    words = vocabulary("gpt2")
    for extra in (0, 1, 31, 32):
        pieces = [*words.pieces, *[b"" for _ in range(extra)]]
        bigger = ToyVocabulary(words._tokenizer, pieces, words.ends)
        monitor = Rules(bigger, EXACT).monitor()
        for token in words.encode("[CALL"):
            monitor.take(token)
        outside = monitor.mask()
        monitor.take(words.pieces.index(b"]"))
        for mask in (outside, monitor.mask()):
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
            assert not bits[len(pieces) :].any()
            assert len(mask) == (len(pieces) + 31) // 32
