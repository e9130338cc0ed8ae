import json
from functools import cache

import llguidance
import pytest
from vocabularies import vocabulary

from asynclm.adapters.models.local.grammar import TRAP_GRAMMAR, call_grammar
from asynclm.adapters.models.local.lexicon import Lexicon
from asynclm.cml.tools import ToolSpec

TOOLS = [
    ToolSpec(
        name="temperature",
        parameters={
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 1, "maximum": 30},
                "unit": {"enum": ["C", "F", None]},
                "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
                "at": {"type": "string", "pattern": "^\\d{4}-\\d{2}$"},
                "o": {
                    "type": "object",
                    "properties": {
                        "x": {"type": "number", "minimum": 0},
                        "y": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
                    },
                    "required": ["x"],
                    "additionalProperties": False,
                },
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    ),
    ToolSpec(
        name="open.file",
        parameters={
            "type": "object",
            "properties": {"from": {"type": "string"}, "r": {"$ref": "#/$defs/Node"}},
            "additionalProperties": True,
            "required": ["from"],
            "$defs": {
                "Node": {
                    "type": "object",
                    "properties": {
                        "v": {"type": "integer"},
                        "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                    },
                    "required": ["v"],
                }
            },
        },
    ),
    ToolSpec(name="now", parameters={"type": "object", "properties": {}, "additionalProperties": False}),
]


@cache
def matcher(grammar):
    lexicon = Lexicon.of(vocabulary("gpt2"))
    made = llguidance.LLMatcher(lexicon.tokenizer, grammar, log_level=0)
    assert not made.is_error(), made.get_error()[:1000]
    return lexicon, made


def accepts(grammar, text):
    lexicon, made = matcher(grammar)
    letters = lexicon.letters(text.encode())
    one = made.deep_copy()
    return one.try_consume_tokens(letters) == len(letters) and one.is_accepting()


@pytest.mark.parametrize(
    "text",
    [
        ' a [HEAD] temperature(city="Oslo") [END]',
        'temperature(city="Oslo")[END]',
        "a1[HEAD]temperature(days=3, city='Os\"lo', unit=None)[END]\n",
        ' a [HEAD] temperature("Oslo", 3, "C") [END]',
        ' a [HEAD] temperature("Oslo", unit="C") [END]',
        ' a [HEAD] {"name": "temperature", "arguments": {"city": "x"}} [END]',
        'temperature(city="", tags=["a", \'b\'], at="2024-12", o={"x": 1e-7, \'y\': true})[END]',
        'open.file("x", r={"v":1,"next":{"v":2,"next":None, "other":[{"q":1.5}]}})[END]',
        'open.file("x", {"v":1}, foo="bar")[END]',
        '{"name":"open.file","arguments":{"from":"\\ud83d\\ude00"}}[END]',
        'temperature(city="""a"b""c\n""")[END]',
        'temperature(\n  city = "Oslo"\n)\n[END]\n\n',
        'temperature(city="\\u00e9\\x5bEND] [END] \\d")[END]',
        "temperature(city='it\\'s', at='2024-12')[END]",
        "now()[END]",
        '{"name":"now"}[END]',
    ],
)
def test_calls_that_are_legal(text):
    assert accepts(call_grammar(TOOLS), text)


@pytest.mark.parametrize(
    "text",
    [
        'if [HEAD] temperature(city="x")[END]',
        'user [HEAD] temperature(city="x")[END]',
        'agent_x [HEAD] temperature(city="x")[END]',
        '1 [HEAD] temperature(city="x")[END]',
        "temperature()[END]",
        "temperature(city=3)[END]",
        'temperature(city="x", city="y")[END]',
        'temperature("x", city="y")[END]',
        'temperature(city="x", 3)[END]',
        'temperature(city="x", days=31)[END]',
        'temperature(city="x", days=0)[END]',
        'temperature(city="x", days=07)[END]',
        'temperature(city="x", days=1.5)[END]',
        'temperature(city="x\n")[END]',
        'temperature(city="x", foo=1)[END]',
        'temperature(city="x", tags=["123456"])[END]',
        'temperature(city="x", tags=["","","",""])[END]',
        'temperature(city="x", at="2024-1")[END]',
        'temperature(city="x", unit="K")[END]',
        'temperature(city="x", o={})[END]',
        'temperature(city="x", o={"x": 1, "x": 2})[END]',
        'temperature(city="x", o={"x": -1})[END]',
        'temperature(city="\\x1")[END]',
        'temperature(city="\\ud800")[END]',
        'temperature(city="\\N{BULLET}")[END]',
        'temperature(city="x"))[END]',
        'temperature (city="x")[END]x',
        'temperature\n(city="x")[END]',
        'open.file(from="x")[END]',
        'open.file(r={"v":1})[END]',
        '{"name":"open.file"}[END]',
        '{"name":"now","arguments":{"x":1}}[END]',
        '{"name":"temperature","arguments":{"city":\'x\'}}[END]',
        "other()[END]",
        "now(1)[END]",
        f"now({' ' * 100})[END]",
        "[END]",
        "a [HEAD] [END]",
        "now() [HEAD] now() [END]",
    ],
)
def test_calls_that_are_not(text):
    assert not accepts(call_grammar(TOOLS), text)


def test_arguments_that_a_tool_does_not_declare_are_not_written_unless_it_says_that_it_takes_any():
    declared = {"type": "object", "properties": {"x": {"type": "integer"}}}
    for more, taken in (({}, False), ({"additionalProperties": True}, True), ({"additionalProperties": False}, False)):
        grammar = call_grammar([ToolSpec(name="f", parameters={**declared, **more})])
        assert accepts(grammar, "f(x=1)[END]")
        assert accepts(grammar, "f(x=1, y=2)[END]") is taken


@pytest.mark.parametrize("text", ["[END]", " [END]\n", " a [END]", " a, b1 ,c[END]"])
def test_traps_that_are_legal(text):
    assert accepts(TRAP_GRAMMAR, text)


@pytest.mark.parametrize("text", ["x", "[CALL]", "a b [END]", ", a [END]", "1a [END]", "[END] x", "[HEAD][END]"])
def test_traps_that_are_not(text):
    assert not accepts(TRAP_GRAMMAR, text)


def call(schema, value):
    """Whether `value`, Python source, may be the only argument."""
    parameters = {
        "type": "object",
        "properties": {"x": schema},
        "required": ["x"],
        "additionalProperties": False,
        "$defs": {"Big": {"type": "integer", "minimum": 100}},
    }
    return accepts(call_grammar([ToolSpec(name="f", parameters=parameters)]), f"f(x={value})[END]")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (True, ["1", "'a'", "[{'a': [None]}]", "-1.5e-7"], ["(1,)", "a", "f()", "1j", "b''", "{1: 2}"]),
        ({"type": ["string", "null"]}, ["'a'", "None", "null"], ["1", "[]"]),
        ({"type": "integer"}, ["0", "-12", "1" + "0" * 200], ["1.5", "'1'", "True", "01", "1_0"]),
        (
            {"type": "number"},
            ["0", "-1.5", "1e10", "5e-324", "1.7976931348623157e+308", "1.797e+308"],
            ["1e309", "1.798e308", "inf", ".5", "1."],
        ),
        ({"type": "integer", "exclusiveMinimum": -2, "maximum": 10.5}, ["-1", "0", "10"], ["-2", "11", "100"]),
        ({"type": "number", "minimum": -2, "maximum": 3}, ["-1.5", "2.9", "3"], ["-3", "4", "10"]),
        ({"type": "boolean"}, ["True", "False", "true"], ["1", "None", "Truee"]),
        ({"type": "null"}, ["None", "null"], ["0", "False"]),
        ({"const": {"a": [1, "b"]}}, ["{'a': [1, \"b\"]}"], ["{}", "{'a': [1]}", "{'b': [1, 'b']}"]),
        (
            {"enum": ["it's", 'a"b', "[END]", 1, True]},
            ['"it\'s"', "'a\"b'", "'\\x5bEND]'", "1", "True"],
            ["'its'", "2"],
        ),
        ({"type": "string", "enum": ["a", 1]}, ["'a'"], ["1"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["'ab'", "'\\x41é\\n'"], ["'a'", "'abcd'", "'\\\\'"]),
        ({"type": "string", "pattern": "^[a-c]{2}/"}, ["'any'"], ["1"]),  # what follows might need escapes
        ({"type": "string", "pattern": "^[a-c]{2}/$"}, ["'ab/'"], ["'ab'", "'ad/'", "'xab/'", "'ab/y'"]),
        (
            {"type": "string", "pattern": "^[\\w.]+@(x|y)[.]org$", "maxLength": 9},
            ["'a@x.org'"],
            ["'a@z.org'", "'aaaa@x.org'"],
        ),
        ({"type": "string", "pattern": "^(?!a)b$"}, ["'b'", "'anything'"], ["1"]),  # can't be told: any string
        (
            {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
            ["[1]", "[1, 2]"],
            ["[]", "[1,2,3]"],
        ),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        (
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
            ["[]", "[1]", "[1, 'a']"],
            ["['a']", "[1, 'a', 2]", "[1, 2]"],
        ),
        (
            {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}, "minItems": 2},
            ["[1, 'a']", "[1, 'a', 'b']"],
            ["[1]", "[]", "[1, 2]"],
        ),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", "{'a': 1, 'b': 2}"], ["{'a': 'b'}"]),
        (
            {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
            ["{'a': 1, 'b': 'c'}", "{'b': 'c', 'a': 1}"],
            ["{'a': 'c'}", "{'b': 1}", "{'a': 1, 'a': 2}"],
        ),
        ({"type": "object", "required": ["b"]}, ["{'b': 1, 'c': 2}", "{'c': 1, 'b': 1}"], ["{}", "{'c': 1}"]),
        (
            {"type": "object", "properties": {"a": False, "b": True}, "additionalProperties": False},
            ["{'b': 1}"],
            ["{'a': 1}"],
        ),
        ({"properties": {"a": {"type": "integer"}}}, ["1", "'s'", "{'a': 1}"], ["{'a': 's'}"]),
        ({"$ref": "#/$defs/Big"}, ["100", "2000"], ["99", "'a'"]),
        ({"$ref": "#/$defs/Big", "maximum": 150}, ["100", "150"], ["99", "151"]),
        ({"$ref": "https://example.org/other"}, ["1", "[]"], []),
        ({"$ref": "#/properties/x"}, ["1"], []),  # itself
        ({"allOf": [{"type": "number"}, {"type": "integer"}, {"minimum": 3}]}, ["3", "4"], ["2", "3.5"]),
        (
            {
                "allOf": [
                    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                    {"properties": {"a": {"minimum": 5}, "b": {"type": "string"}}, "required": ["b"]},
                ]
            },
            ["{'a': 5, 'b': ''}"],
            ["{'a': 5}", "{'a': 4, 'b': ''}", "{'b': ''}"],
        ),
        ({"oneOf": [{"type": "integer"}, {"const": "all"}], "description": "d"}, ["1", "'all'"], ["'al'", "None"]),
        ({"type": "string", "anyOf": [{"maxLength": 1}, {"enum": ["long"]}]}, ["'a'", "'long'"], ["'lon'", "1"]),
        ({"not": {"type": "string"}}, ["1", "'a'"], []),  # can't be told
    ],
)
def test_values_by_schema(schema, good, bad):
    assert [value for value in good if not call(schema, value)] == []
    assert [value for value in bad if call(schema, value)] == []


def test_json_bodies_follow_the_same_schemas():
    schema = {"type": "object", "properties": {"x": {"type": "boolean"}}, "additionalProperties": True}
    grammar = call_grammar([ToolSpec(name="f", parameters=schema)])
    assert accepts(grammar, '{"name":"f","arguments":{"x":true, "y": [1.5e3, null]}}[END]')
    assert accepts(grammar, '{"name":"f"}[END]')
    assert not accepts(grammar, '{"name":"f","arguments":{"x":True}}[END]')
    assert not accepts(grammar, '{"name":"f","arguments":{"x":1}}[END]')


def test_more_properties_than_can_be_told_apart():
    properties = {f"p{n}": {"type": "integer"} for n in range(80)}
    required = [f"p{n}" for n in range(0, 80, 8)]
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    grammar = call_grammar([ToolSpec(name="f", parameters=parameters)])
    assert accepts(grammar, f"f({', '.join(f'{name}=1' for name in reversed(properties))})[END]")
    assert accepts(grammar, f"f({', '.join(f'{name}=1' for name in required)})[END]")
    assert not accepts(grammar, f"f({', '.join(f'{name}=1' for name in required[1:])})[END]")
    assert accepts(grammar, f"f({', '.join('1' for _ in properties)})[END]")


def test_loose_tools_take_any_literals():
    assert accepts(call_grammar(TOOLS, loose={"temperature"}), "temperature(city=1, more=[None])[END]")
    assert accepts(call_grammar(TOOLS, loose={"temperature"}), json.dumps({"name": "temperature"}) + "[END]")
