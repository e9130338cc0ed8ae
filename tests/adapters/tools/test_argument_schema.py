"""Schemas of arguments: what is wrong with one is said at once, and none can hang or break the checking of calls."""

import random
import re
from typing import Any

import jsonschema
import pytest

from asynclm.adapters.tools.argument_schema import validator
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.tools import CallError, Invocation, ToolSpec

OBJECT = {"type": "object"}
KEYWORDS = """type required enum examples multipleOf title description format $comment $ref uniqueItems deprecated
    minimum exclusiveMaximum minLength maxItems minContains items additionalProperties not contains propertyNames
    if anyOf allOf prefixItems properties $defs definitions dependentSchemas const default $id $anchor $dynamicRef
    dependencies dependentRequired additionalItems contentSchema $vocabulary unknown"""


class Described:
    """A tool that is never run."""

    def __init__(self, schema: Any) -> None:
        self.spec = ToolSpec(name="go", parameters=schema)

    async def run(self, arguments: dict[str, Any]) -> object:
        raise AssertionError("nothing may run here")


def of(schema: Any, **more: Any) -> dict[str, Any]:
    """The schema of an object with the property `a`."""
    return {**OBJECT, "properties": {"a": schema}, **more}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = of(schema)
    return schema


ENDLESS = "applies itself to one value without end"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$schema": 5, **OBJECT}, "invalid at $schema"),
        ({"$schema": {}, **OBJECT}, "invalid at $schema"),
        (of({"type": "nothing"}), "invalid at properties.a.type"),
        (of({"type": [{}]}), "invalid at properties.a.type"),
        (of({"description": 5}), "invalid at properties.a.description"),
        (of({"minLength": -1}), "invalid at properties.a.minLength"),
        (of({"anyOf": []}), "invalid at properties.a.anyOf"),
        (of({"items": [{}]}), "invalid at properties.a.items"),
        ({**OBJECT, "properties": "a"}, "invalid at properties"),
        ({**OBJECT, "required": "a"}, "invalid at required"),
        ({"type": "string"}, 'must have "type": "object"'),
        ({"properties": {}}, 'must have "type": "object"'),
        (nested(500), "nested deeper than 100 levels"),
        (of({"$ref": "#/nowhere"}), "has no '#/nowhere'"),
        (of({"$dynamicRef": "#nowhere"}), "has no '#nowhere'"),
        (of({"$ref": "http://127.0.0.1:1/x.json"}), "has no 'http://127.0.0.1:1/x.json'"),
        ({**OBJECT, "$ref": "#"}, ENDLESS),
        ({**OBJECT, "allOf": [{"$ref": "#"}]}, ENDLESS),
        (of({"$ref": "#/properties/a"}), ENDLESS),
        (
            of({"$ref": "#/$defs/x"}, **{"$defs": {"x": {"not": {"$ref": "#/$defs/y"}}, "y": {"$ref": "#/$defs/x"}}}),
            ENDLESS,
        ),
    ],
)
def test_what_is_no_schema_for_arguments(schema: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Toolbox([Described(schema)])


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (of({"$ref": "#/$defs/x"}, **{"$defs": {"x": {"type": "string"}}}), "s", 1),
        (of({"$ref": "#x"}, **{"$defs": {"y": {"$anchor": "x", "type": "string"}}}), "s", 1),
        (of({"$ref": "urn:x"}, **{"$defs": {"y": {"$id": "urn:x", "type": "string"}}}), "s", 1),
        (of({"$ref": "#/components/x"}, components={"x": {"type": "string", "pattern": "("}}), "s", 1),
        (
            of(
                {"$ref": "#/$defs/x"},
                **{"$defs": {"x": {"$id": "https://e.x/", **of({"$ref": "#/y"}, y={"type": "null"})}}},
            ),
            {"a": None},
            {"a": 1},
        ),
        (of({"type": "array", "items": {"$ref": "#/properties/a"}}), [[], [[]]], [1]),
        (of({"type": "object", "default": {"$ref": "x"}, "examples": [{"$ref": "y"}]}), {}, 1),
        (of({"minimum": 1, "exclusiveMinimum": True}, **{"$schema": "http://json-schema.org/draft-04/schema#"}), 2, 1),
        (of({"items": [{"type": "string"}]}, **{"$schema": "http://json-schema.org/draft-07/schema#"}), ["s"], [1]),
        (of({"properties": {"pattern": {"type": "string"}}}), {"pattern": "s"}, {"pattern": 1}),
    ],
)
def test_what_is_checked(schema: Any, right: Any, wrong: Any) -> None:
    box = Toolbox([Described(schema)])
    box.check(Invocation("go", (), {"a": right}))
    with pytest.raises(CallError, match=r"go\(\) argument 'a"):
        box.check(Invocation("go", (), {"a": wrong}))


@pytest.mark.parametrize("pattern", [r"^(a+)+$", r"^\p{L}+$", r"(?<year>\d+)", "("])
def test_patterns_are_left_to_the_tool(pattern: str) -> None:
    """The first would take longer than any test, the others are no regular expressions to Python."""
    for schema in (
        of({"type": "string", "pattern": pattern}),
        of({"propertyNames": {"pattern": pattern}}),
        of({"patternProperties": {pattern: {}}, "additionalProperties": False}),
        {**OBJECT, "patternProperties": {pattern: {}}, "additionalProperties": False},
    ):
        value = {"a" * 40 + "!": 1} if "type" not in schema.get("properties", {}).get("a", {}) else "a" * 40 + "!"
        Toolbox([Described(schema)]).check(Invocation("go", (), {"a": value}))


def test_what_breaks_the_checking_is_the_call_s_error() -> None:
    chain = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(5000)}
    box = Toolbox([Described(of({"$ref": "#/$defs/d0"}, **{"$defs": {**chain, "d5000": {}}}))])
    with pytest.raises(CallError, match=r"go\(\) can't be checked against its schema \(RecursionError\)"):
        box.check(Invocation("go", (), {"a": 1}))


def test_the_quick_check_takes_nothing_that_the_meta_schema_refuses() -> None:
    values: list[Any] = [None, True, 0, -1, 1.5, "", "string", [], ["a"], ["a", "a"], [1], {}, {"a": {}}, {"a": 1}]
    keywords = KEYWORDS.split()
    dialects = ("https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#")
    rolls = random.Random(1)
    taken = 0
    for keyword in keywords:
        for value in values:
            inner = {keyword: value, **({rolls.choice(keywords): rolls.choice(values)} if rolls.random() < 0.3 else {})}
            for dialect in dialects:
                schema = {"$schema": dialect, **of({"anyOf": [{"items": inner}]})}
                try:
                    validator(schema)
                except ValueError:
                    continue
                jsonschema.validators.validator_for(schema).check_schema(schema)
                taken += 1
    assert taken > 300
