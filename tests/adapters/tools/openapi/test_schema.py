"""OpenAPI's schemas as JSON Schema: what is kept, what is resolved, and what never ends."""

import json
from typing import Any

import jsonschema
import pytest

from asynclm.adapters.tools.openapi.document import Document
from asynclm.adapters.tools.openapi.schema import Schemas, shortened
from asynclm.adapters.tools.options import ToolDefinitionError


def convert(schema: Any, version: str = "3.1.0", **components: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema, and what it needs beside it."""
    document = Document(
        "file:///api.json", {"file:///api.json": {"openapi": version, "x": schema, "components": components}}
    )
    schemas = Schemas(document)
    converted = schemas.convert({"x": document.root.at("x")})["x"]
    jsonschema.Draft202012Validator.check_schema({**converted, "$defs": schemas.defs})
    return converted, schemas.defs


def plain(schema: Any, version: str = "3.1.0", **components: Any) -> dict[str, Any]:
    converted, defs = convert(schema, version, **components)
    assert defs == {}
    return converted


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{name}"}


def accepts(schema: dict[str, Any], defs: dict[str, Any], value: Any) -> bool:
    return jsonschema.Draft202012Validator({**schema, "$defs": defs}).is_valid(value)


@pytest.mark.parametrize(
    ("schema", "converted"),
    [
        (
            {"type": "string", "example": "a", "xml": {}, "x-more": 1, "title": "T", "discriminator": {}},
            {"type": "string"},
        ),
        ({"type": ["string", "null"], "enum": ["a", None]}, {"type": ["string", "null"], "enum": ["a", None]}),
        ({"type": "string", "pattern": "(a+)+$"}, {"type": "string", "description": "(matches (a+)+$)"}),
        ({"type": "integer", "exclusiveMinimum": 3}, {"type": "integer", "exclusiveMinimum": 3}),
        ({"properties": {"a": True}}, {"type": "object", "properties": {"a": {}}}),
        ({"type": "array", "items": False}, {"type": "array", "items": {"not": {}}}),
        ({"required": True, "type": "string"}, {"type": "string"}),
        (
            {"type": "object", "properties": {"id": {"type": "string", "readOnly": True}}, "required": ["id"]},
            {"type": "object", "properties": {}},
        ),
        (
            {"allOf": [{"properties": {"a": {"type": "string"}}, "required": ["a"]}, {"properties": {"b": {}}}]},
            {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]},
        ),
        ({"allOf": [{"type": "string"}], "description": "D"}, {"type": "string", "description": "D"}),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, {"oneOf": [{"type": "string"}, {"type": "null"}]}),
    ],
)
def test_what_is_kept(schema: Any, converted: Any) -> None:
    assert plain(schema) == converted


@pytest.mark.parametrize(
    ("schema", "converted"),
    [
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        (
            {"type": "string", "enum": ["a"], "nullable": True},
            {"type": ["string", "null"], "enum": ["a", None]},
        ),
        ({"nullable": True}, {}),
        ({"allOf": [ref("A")], "nullable": True}, {"type": ["integer", "null"]}),
        (
            {"oneOf": [ref("A"), {"type": "string"}], "nullable": True, "description": "D"},
            {"anyOf": [{"oneOf": [{"type": "integer"}, {"type": "string"}]}, {"type": "null"}], "description": "D"},
        ),
        (
            {"type": "number", "minimum": 1, "exclusiveMinimum": True, "maximum": 5, "exclusiveMaximum": False},
            {"type": "number", "maximum": 5, "exclusiveMinimum": 1},
        ),
        ({**ref("A"), "type": "string", "description": "D"}, {"type": "integer", "description": "D"}),
    ],
)
def test_how_version_3_0_says_it(schema: Any, converted: Any) -> None:
    assert plain(schema, "3.0.3", A={"type": "integer"}) == converted


class TestReferences:
    def test_are_inlined(self) -> None:
        converted = plain(
            {"type": "array", "items": ref("Pet")}, Pet={"properties": {"age": ref("Age")}}, Age={"type": "integer"}
        )
        assert converted == {
            "type": "array",
            "items": {"type": "object", "properties": {"age": {"type": "integer"}}},
        }

    def test_with_something_beside_them(self) -> None:
        assert plain({**ref("A"), "default": 1, "description": "D"}, A={"type": "integer", "description": "A"}) == {
            "type": "integer",
            "default": 1,
            "description": "D",
        }
        both = plain({**ref("A"), "minimum": 3}, A={"type": "integer", "minimum": 1})
        assert both == {"allOf": [{"type": "integer", "minimum": 1}, {"minimum": 3}]}

    def test_of_a_schema_to_itself(self) -> None:
        tree = {"properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": ref("Tree")}}}
        converted, defs = convert(ref("Tree"), Tree=tree)
        assert converted == {"$ref": "#/$defs/Tree"}
        assert defs["Tree"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
        assert accepts(converted, defs, {"value": 1, "children": [{"value": 2, "children": []}]})
        assert not accepts(converted, defs, {"children": [{"children": [{"value": "x"}]}]})

    def test_of_two_schemas_to_each_other(self) -> None:
        converted, defs = convert(
            {"properties": {"a": ref("A"), "b": ref("B")}},
            A={"properties": {"b": ref("B")}},
            B={"properties": {"a": ref("A"), "n": {"type": "integer"}}},
        )
        assert accepts(converted, defs, {"a": {"b": {"a": {}}}})
        assert not accepts(converted, defs, {"b": {"a": {"b": {"n": "x"}}}})

    @pytest.mark.parametrize(
        "components",
        [
            {"A": ref("A")},
            {"A": ref("B"), "B": ref("A")},
            {"A": {"allOf": [ref("A")]}},
            {"A": {"allOf": [ref("B"), {"type": "object"}]}, "B": {"oneOf": [ref("A"), {"not": ref("B")}]}},
            # As documents with a discriminator often have it. The way by the property is looked at first.
            {
                "A": {"type": "object", "properties": {"b": ref("B")}, "oneOf": [ref("B")]},
                "B": {"allOf": [ref("A"), {"properties": {"n": {"type": "integer"}}}]},
            },
        ],
    )
    def test_without_end_are_cut(self, components: Any) -> None:
        converted, defs = convert({"properties": {"x": ref("A"), "y": ref("A")}}, **components)
        for value in ({}, {"x": {}}, {"x": {"b": {"n": 1}}}, {"x": 3}):
            accepts(converted, defs, value)  # ends

    def test_to_two_schemas_of_one_name(self) -> None:
        tree = {"properties": {"next": {"$ref": "#/components/a/Node"}, "other": {"$ref": "#/components/b/Node"}}}
        other = {"properties": {"next": {"$ref": "#/components/b/Node"}, "n": {"type": "integer"}}}
        converted, defs = convert({"$ref": "#/components/a/Node"}, a={"Node": tree}, b={"Node": other})
        assert len(defs) == 2
        assert not accepts(converted, defs, {"next": {"other": {"next": {"n": "x"}}}})

    def test_that_would_grow_without_bound_are_shared(self) -> None:
        doubling = {f"L{n}": {"properties": {"a": ref(f"L{n + 1}"), "b": ref(f"L{n + 1}")}} for n in range(40)} | {
            "L40": {"type": "integer"}
        }
        converted, defs = convert(ref("L0"), **doubling)
        assert len(defs) == 41
        assert len(json.dumps([converted, defs])) < 10_000

    def test_that_lead_nowhere(self) -> None:
        with pytest.raises(ToolDefinitionError, match=r"^x\.properties\.a: there is no '#/components/A'$"):
            convert({"properties": {"a": ref("A")}})


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("string", "x: a schema must be an object"),
        ({"type": "str"}, "x: there is no type 'str'"),
        ({"items": {"type": ["string", "any"]}}, "x.items: there is no type 'any'"),
        ({"anyOf": {}}, "x.anyOf: must be a list of schemas"),
        ({"properties": {"a": {"required": "b"}}}, "x.properties.a: required must be a list of names"),
    ],
)
def test_what_is_no_schema(schema: Any, said: str) -> None:
    with pytest.raises(ToolDefinitionError) as raised:
        convert(schema)
    assert str(raised.value) == said


def test_aliases_that_never_end() -> None:
    """YAML can make a structure contain itself, or share one so often that it has no end."""
    looped: dict[str, Any] = {"type": "array"}
    looped["items"] = looped
    shared: dict[str, Any] = {"type": "integer"}
    for _ in range(40):
        shared = {"properties": {"a": shared, "b": shared}}
    for schema in (looped, shared):
        converted = plain(schema)
        assert len(json.dumps(converted)) < 1_000
        accepts(converted, {}, [[[[[[]]]]]])  # ends


def test_more_than_a_tool_can_be_described_with_is_cut_below() -> None:
    names = [f"S{number}" for number in range(400)]
    web = {
        name: {"properties": {"n": {"type": "integer"}, **{other: ref(other) for other in names[index % 7 :: 7]}}}
        for index, name in enumerate(names)
    }
    converted, defs = convert(ref("S0"), **web)
    assert len(json.dumps([converted, defs])) < 200_000
    assert accepts(converted, defs, {"n": 1, "S7": {"n": 2}})
    assert not accepts(converted, defs, {"n": "x"})


def test_texts_are_short() -> None:
    assert shortened("One  two.\n Three four five.", 20) == "One two."
    assert shortened("One two three four", 10) == "One two ..."
    assert shortened("Short. ", 10) == "Short."
    assert len(plain({"description": "word " * 500})["description"]) <= 310
