"""Arguments under names that a Python call can be written with."""

from typing import Any

from asynclm.adapters.tools.argument_names import with_callable_names

TEXT = {"type": "string"}


def of(*names: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {**TEXT, "title": name} for name in names}, **more}


def test_names_that_can_be_written_stay() -> None:
    schema = of("a", "b_c", "\u00fc", anyOf=[{"required": ["a"]}])
    assert with_callable_names(schema) == (schema, {})
    assert with_callable_names({"type": "object"}) == ({"type": "object"}, {})


def test_others_are_changed_in_their_place() -> None:
    schema = of(
        "file-path", "a", "class", "file_path", "$filter", "", "\u210c", required=["class", "a"], minProperties=1
    )
    renamed, old = with_callable_names({**schema, "additionalProperties": False})
    names = ["file_path_2", "a", "class_", "file_path", "filter", "_", "H"]
    assert list(renamed.pop("properties")) == names
    assert renamed == {"type": "object", "required": ["class_", "a"], "additionalProperties": False}
    assert [old.get(name, name) for name in names] == list(schema["properties"])


def test_what_refers_to_its_own_properties_stays() -> None:
    for reference in ("#/properties/a-b", "#"):
        schema = of("a-b", additionalProperties={"$ref": reference})
        assert with_callable_names(schema) == (schema, {})
