"""JSON schemas, put into the form from which a grammar is written: references followed, combinations merged.

What comes out may allow more than the schema, never less: what a grammar can't express (`not`, `if`, `oneOf` as
against `anyOf`, `uniqueItems`, formats) is left to the check of the finished call.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Final

TYPES: Final = ("string", "integer", "number", "boolean", "null", "array", "object")
_UNIONS: Final = ("anyOf", "oneOf")
_ANNOTATIONS: Final = frozenset(
    (
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"),
        *("nullable", "format", "discriminator", "$comment", "$schema", "$id", "$defs", "definitions"),
    )
)
_MAX_STEPS: Final = 32  # of references and combinations, one behind the other


def simplify(schema: Any, root: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The alternatives that `schema` allows, each without references or combinations at its top.

    None: anything is allowed, as far as can be told. An empty list: nothing is.
    """
    return _simplify(schema, root, 0)


def types(schema: Mapping[str, Any]) -> list[str]:
    """The types that a simplified schema allows."""
    named = schema.get("type")
    listed = [named] if isinstance(named, str) else list(named) if isinstance(named, list) else list(TYPES)
    if "number" in listed and "integer" in listed:
        listed.remove("integer")
    return [each for each in TYPES if each in listed]


def of_type(value: Any, allowed: Sequence[str]) -> bool:
    """Whether `value` is of one of these types."""
    if value is None:
        return "null" in allowed
    if isinstance(value, bool):
        return "boolean" in allowed
    if isinstance(value, int | float):
        return "number" in allowed or ("integer" in allowed and value == int(value))
    kind = "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
    return kind in allowed


def _simplify(schema: Any, root: Mapping[str, Any], steps: int) -> list[dict[str, Any]] | None:
    if schema is False:
        return []
    if not isinstance(schema, Mapping) or steps > _MAX_STEPS:
        return None
    schema = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    reference = schema.pop("$ref", None)
    if reference is not None:
        target = _look_up(reference, root)
        return _simplify(_both(target, schema), root, steps + 1)
    together = schema.pop("allOf", None)
    if isinstance(together, list):
        for part in together:
            merged = _both(schema, _without_reference(part, root))
            if merged is False:
                return []
            schema = dict(merged) if isinstance(merged, Mapping) else schema
        return _simplify(schema, root, steps + 1)
    for union in _UNIONS:
        parts = schema.pop(union, None)
        if not isinstance(parts, list):
            continue
        found: list[dict[str, Any]] = []
        for part in parts:
            alternatives = _simplify(_both(schema, _without_reference(part, root)), root, steps + 1)
            if alternatives is None:
                return None
            found.extend(each for each in alternatives if each not in found)
        return found
    return [schema] if schema else None


def _without_reference(schema: Any, root: Mapping[str, Any]) -> Any:
    for _ in range(_MAX_STEPS):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return schema
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = _both(_look_up(schema["$ref"], root), rest)
    return True


def _look_up(reference: Any, root: Mapping[str, Any]) -> Any:
    """The schema behind a JSON pointer into `root`; anything (True) for other references."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return True
    found: Any = root
    for step in urllib.parse.unquote(reference[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and re.fullmatch(r"[0-9]+", step) and int(step) < len(found):
            found = found[int(step)]
        else:
            return True
    return found if found is not root or reference in ("#", "#/") else True


def _both(one: Any, other: Any) -> Any:
    """A schema that allows what both allow, and as little more as can be said simply."""
    if one is False or other is False:
        return False
    if not isinstance(one, Mapping):
        return other
    if not isinstance(other, Mapping):
        return one
    merged = dict(one)
    for key, value in other.items():
        if key not in merged or merged[key] == value:
            merged[key] = value
        elif key == "type":
            merged[key] = [kind for kind in TYPES if kind in _kinds(one) & _kinds(other)]
        elif key == "properties" and isinstance(value, Mapping) and isinstance(merged[key], Mapping):
            merged[key] = dict(merged[key]) | {
                name: {"allOf": [merged[key][name], part]} if name in merged[key] else part
                for name, part in value.items()
            }
        elif key == "required" and isinstance(value, list) and isinstance(merged[key], list):
            merged[key] = [*merged[key], *(name for name in value if name not in merged[key])]
        elif key in ("items", "additionalProperties"):
            merged[key] = {"allOf": [merged[key], value]}
        elif key == "allOf" and isinstance(value, list) and isinstance(merged[key], list):
            merged[key] = [*merged[key], *value]
        elif key in ("minimum", "minLength", "minItems", "exclusiveMinimum") and _numbers(value, merged[key]):
            merged[key] = max(value, merged[key])
        elif key in ("maximum", "maxLength", "maxItems", "exclusiveMaximum") and _numbers(value, merged[key]):
            merged[key] = min(value, merged[key])
    return merged


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    kinds = set(types(schema))
    return kinds | {"integer"} if "number" in kinds else kinds
