"""Toolbox: calls bound and checked before anything runs, and errors that a model can act on."""

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.adapters.tools.options import Options
from asynclm.adapters.tools.python import PythonTool
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.tools import CallError, Invocation, ToolSpec


class Described:
    """A tool of a kind that only has a schema."""

    def __init__(self, **spec: Any) -> None:
        self.spec = ToolSpec(**spec)

    async def run(self, arguments: dict[str, Any]) -> object:
        raise AssertionError("nothing may run here")


def forecast(
    city: str, days: int = 3, unit: Literal["celsius", "kelvin"] = "celsius", tags: list[str] | None = None
) -> None:
    raise AssertionError("nothing may run here")


def area(width: float, height: float) -> None: ...


def nothing() -> None: ...


def anything(value: Any, **more: Any) -> None: ...


BOX = Toolbox([PythonTool(f) for f in (forecast, area, nothing, anything)])


def check(name, *positional, **named):
    spec, arguments = BOX.check(Invocation(name, positional, named))
    assert spec.name == name
    return arguments


def refused(name, *positional, **named) -> str:
    with pytest.raises(CallError) as caught:
        check(name, *positional, **named)
    assert caught.value.type == "invalid_arguments"
    message = caught.value.message
    assert message.startswith(f"{name}() ")
    return message.removeprefix(f"{name}() ")


class TestLookup:
    def test_by_name(self):
        assert [spec.name for spec in BOX.specs()] == ["forecast", "area", "nothing", "anything"]
        assert BOX["area"].spec.name == "area"
        assert "area" in BOX
        assert "volume" not in BOX
        assert len(BOX) == 4
        assert [t.spec.name for t in BOX] == [spec.name for spec in BOX.specs()]
        with pytest.raises(KeyError):
            BOX["volume"]

    @pytest.mark.parametrize(
        ("box", "name", "message"),
        [
            (BOX, "forcast", "there is no tool 'forcast'; did you mean 'forecast'?"),
            (BOX, "zzz", "there is no tool 'zzz'; the tools are forecast, area, nothing, anything"),
            (Toolbox(), "f", "there is no tool 'f'; there are none at all"),
        ],
    )
    def test_unknown(self, box, name, message):
        with pytest.raises(CallError) as caught:
            box.check(Invocation(name))
        assert (caught.value.type, caught.value.message) == ("unknown_tool", message)

    def test_unknown_among_many_and_with_a_huge_name_stays_short(self):
        box = Toolbox([Described(name=f"tool_{n}", parameters={"type": "object"}) for n in range(50)])
        with pytest.raises(CallError, match=r"tool_19 and 30 more$") as caught:
            box.check(Invocation("q" * 100_000))
        assert len(caught.value.message) < 400


class TestBinding:
    def test_positional_in_the_order_of_the_parameters(self):
        assert check("forecast", "Bern", 2, unit="kelvin") == {"city": "Bern", "days": 2, "unit": "kelvin"}
        assert check("nothing") == {}
        assert check("anything", 1, extra=[2]) == {"value": 1, "extra": [2]}

    @pytest.mark.parametrize(
        ("positional", "named", "message"),
        [
            ((), {}, "missing 1 required argument: 'city'"),
            ((1, 2, 3, 4, 5), {}, "takes from 1 to 4 positional arguments but 5 were given"),
            (("Bern",), {"city": "Bonn"}, "got multiple values for argument 'city'"),
            (("Bern",), {"dyas": 2}, "got an unexpected keyword argument 'dyas'; did you mean 'days'?"),
            (
                ("Bern",),
                {"zzz": 2},
                "got an unexpected keyword argument 'zzz'; it takes 'city', 'days', 'unit' and 'tags'",
            ),
        ],
    )
    def test_errors_in_pythons_words(self, positional, named, message):
        assert refused("forecast", *positional, **named) == message

    def test_more_of_them(self):
        assert refused("area") == "missing 2 required arguments: 'width' and 'height'"
        assert refused("area", 1, 2, 3) == "takes 2 positional arguments but 3 were given"
        assert refused("nothing", 1) == "takes 0 positional arguments but 1 was given"
        assert refused("nothing", x=1) == "got an unexpected keyword argument 'x'; it takes none"


class TestJSONForm:
    def test_tuples_are_lists_and_whole_numbers_are_keys(self):
        assert check("anything", (1, (2, {"a": (3,)}), {4: None})) == {"value": [1, [2, {"a": [3]}], {"4": None}]}

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({1, 2}, "argument 'value': a value of type set has no JSON form; write a list"),
            (b"x", "argument 'value': a value of type bytes has no JSON form"),
            ([0, {"a": 1j}], "argument 'value[1]['a']': a value of type complex has no JSON form"),
            (..., "argument 'value': a value of type ellipsis has no JSON form"),
            (float("inf"), "argument 'value': inf is no JSON number"),
            ({(1, 2): 3}, "argument 'value': the keys of a JSON object are strings, not tuple"),
            ({True: 3}, "argument 'value': the keys of a JSON object are strings, not bool"),
            ("\ud800", "argument 'value': the string holds half of a surrogate pair"),
        ],
    )
    def test_what_has_none(self, value, message):
        assert refused("anything", value) == message

    def test_nesting_is_bounded(self):
        value: list[Any] = []
        for _ in range(5000):
            value = [value]
        assert "nested deeper than 64 levels" in refused("anything", value)

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.tuples(v, v)))
    def test_literals_become_what_json_gives_back(self, value):
        found = check("anything", value)["value"]
        assert json.loads(json.dumps(found)) == found


class TestValidation:
    @pytest.mark.parametrize(
        ("named", "message"),
        [
            ({"city": 3}, "argument 'city': 3 is not of type 'string'"),
            ({"city": "B", "days": "two"}, "argument 'days': 'two' is not of type 'integer'"),
            ({"city": "B", "days": True}, "argument 'days': True is not of type 'integer'"),
            ({"city": "B", "days": 1.5}, "argument 'days': 1.5 is not of type 'integer'"),
            ({"city": "B", "unit": "f"}, "argument 'unit': 'f' is not one of ['celsius', 'kelvin']"),
            ({"city": "B", "tags": ["a", 2]}, "argument 'tags[1]': 2 is not of type 'string'"),
        ],
    )
    def test_messages_name_the_argument(self, named, message):
        assert refused("forecast", **named) == message

    def test_a_whole_number_is_a_number(self):
        assert check("area", 2, 2.5) == {"width": 2, "height": 2.5}

    def test_a_huge_instance_is_not_dumped(self):
        message = refused("forecast", ["x" * 1000] * 1000)
        assert message.endswith("is not of type 'string'")
        assert len(message) < 500
        assert len(refused("forecast", "Bern", unit="x" * 100_000)) < 500

    def test_of_nested_objects(self):
        schema = {
            "type": "object",
            "properties": {"at": {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}}},
            "$defs": {"n": {"type": "integer", "minimum": 1}},
        }
        box = Toolbox([Described(name="go", parameters=schema)])
        assert box.check(Invocation("go", ({"x": 1},)))[1] == {"at": {"x": 1}}
        with pytest.raises(CallError, match=r"^go\(\) argument 'at\['x'\]': 0 is less than the minimum of 1$"):
            box.check(Invocation("go", ({"x": 0},)))

    def test_a_schema_that_leaves_other_names_open_takes_them(self):
        box = Toolbox([Described(name="go", parameters={"type": "object", "properties": {}})])
        assert box.check(Invocation("go", (), {"x": 1}))[1] == {"x": 1}

    def test_a_rule_about_the_whole(self):
        schema = {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1}
        box = Toolbox([Described(name="go", parameters=schema)])
        with pytest.raises(CallError, match=r"^go\(\) \{\} "):
            box.check(Invocation("go"))


class TestConstruction:
    @pytest.mark.parametrize("name", ["f", "f_1", "calendar.add", "größe"])
    def test_names(self, name):
        assert name in Toolbox([Described(name=name, parameters={"type": "object"})])

    @pytest.mark.parametrize("name", ["", "1f", "get-weather", "a b", "a.", ".a", "a..b", "None", "x.class", "ﬁnd"])
    def test_names_that_no_call_can_be_written_with(self, name):
        with pytest.raises(ValueError, match="must be a Python identifier"):
            Toolbox([Described(name=name, parameters={"type": "object"})])

    def test_duplicates(self):
        with pytest.raises(ValueError, match="two tools are named 'f'"):
            Toolbox([PythonTool(nothing, Options(name="f")), PythonTool(area, Options(name="f"))])

    @pytest.mark.parametrize(
        ("schema", "why"),
        [
            ({"type": "object", "properties": {"a": {"type": "strin"}}}, "invalid at properties.a.type: 'strin'"),
            ({"type": "object", "properties": 3}, "invalid at properties"),
            ({"type": "string"}, 'must have "type": "object"'),
            ({}, 'must have "type": "object"'),
            ({"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}, "has no '#/\\$defs/b'"),
            ({"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}}, "has no 'http://127"),
        ],
    )
    def test_schemas(self, schema, why):
        with pytest.raises(ValueError, match=f"^tool 'f': its schema .*{why}"):
            Toolbox([Described(name="f", parameters=schema)])


def test_other_tools_behind_the_same_specs() -> None:
    old = Toolbox([PythonTool(forecast), PythonTool(area)])
    spec = old.specs()[1]
    tool = Described(name="stands in")
    tool.spec = spec
    new = old.with_tools([tool])
    assert new.specs() == [spec]
    assert new["area"] is tool
    assert new.check(Invocation("area", (1, 2))) == (spec, {"width": 1, "height": 2})
    with pytest.raises(CallError, match="missing 1 required argument"):
        new.check(Invocation("area", (1,)))
    assert old["area"] is not tool


@pytest.mark.parametrize("name", ["area", "volume"])
def test_other_tools_with_other_specs(name: str) -> None:
    with pytest.raises(ValueError, match=f"tool '{name}': its spec is none of this toolbox"):
        Toolbox([PythonTool(area)]).with_tools([Described(name=name)])


def test_a_group_is_replaced_whole_or_not_at_all() -> None:
    box = Toolbox([PythonTool(area)])
    box.replace("more", [PythonTool(forecast), PythonTool(nothing)])
    box.replace("last", [PythonTool(anything)])
    box.replace("more", [PythonTool(nothing)])
    assert [spec.name for spec in box.specs()] == ["area", "nothing", "anything"]
    version = box.version
    with pytest.raises(ValueError, match="two tools are named 'area'"):
        box.replace("more", [PythonTool(forecast), PythonTool(area)])
    with pytest.raises(ValueError, match="two tools are named 'f'"):
        box.replace("more", [PythonTool(forecast, Options(name="f")), PythonTool(nothing, Options(name="f"))])
    assert [spec.name for spec in box.specs()] == ["area", "nothing", "anything"]
    assert box.version == version
