"""Schemas of arguments: checked once, and made safe to validate with.

They come from servers, documents and clients, so neither checking one nor validating with it may fail in an unforeseen
way, take long, or go on for ever:

- the usual schema is checked here, in a fraction of the time that its meta-schema takes; that one says what is wrong
  with any other;
- patterns are not validated. Their regular expressions are JavaScript's, of which Python's can't read some; and one
  like `^(a+)+$` takes hours for a short text. Who runs the tool checks them;
- a schema that applies itself to the very value that it is being applied to is refused.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import jsonschema
import referencing
import referencing.exceptions
import referencing.jsonschema

_MAX_DEPTH: Final = 100
_TYPES: Final = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")

# Keywords by the form of their value.
_ONE: Final = frozenset(
    {"items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else"}
    | {"unevaluatedItems", "unevaluatedProperties"}
)
_LIST: Final = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_NAMED: Final = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
_VALUES: Final = frozenset({"const", "default"})
_IN_PLACE: Final = frozenset({"anyOf", "oneOf", "allOf", "not", "if", "then", "else", "dependentSchemas"})
_RARE: Final = frozenset(  # those that only the meta-schema knows the form of
    {"$id", "id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$vocabulary"}
    | {"dependencies", "dependentRequired", "additionalItems", "contentSchema"}
)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value)) and len(set(value)) == len(value)


def _types(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and _names(value) and _TYPES.issuperset(value)
    return isinstance(value, str) and value in _TYPES


_FORMS: Final[dict[str, Callable[[Any], bool]]] = {
    "type": _types,
    "required": _names,
    "enum": lambda value: isinstance(value, list),
    "examples": lambda value: isinstance(value, list),
    "multipleOf": lambda value: _number(value) and value > 0,
    **dict.fromkeys(("title", "description", "format", "$comment", "$ref", "$schema"), _text),
    **dict.fromkeys(("contentMediaType", "contentEncoding"), _text),
    **dict.fromkeys(("uniqueItems", "deprecated", "readOnly", "writeOnly"), _flag),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _number),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _count),
    **dict.fromkeys(("minContains", "maxContains"), _count),
}
_PLAIN_DIALECTS: Final = (  # in which those have these forms
    jsonschema.Draft202012Validator,
    jsonschema.Draft201909Validator,
    jsonschema.Draft7Validator,
    jsonschema.Draft6Validator,
)


def validator(schema: dict[str, Any]) -> Any:
    """A jsonschema validator for arguments, without patterns. Fetches nothing, ever.

    Raises ValueError for a schema that is invalid, too deep or endless, or that refers to what it doesn't hold.
    """
    if not isinstance(schema.get("$schema", ""), str):
        raise ValueError("its schema is invalid at $schema: it must be a text")
    dialect = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    copy = _Copy(schema)
    if not copy.plain or dialect not in _PLAIN_DIALECTS:
        _check(dialect, copy.schema)
    if schema.get("type") != "object":
        raise ValueError('its schema must have "type": "object"')
    if copy.refers:
        _check_references(copy.schema, dialect)
    return dialect(copy.schema, registry=referencing.Registry())


class _Copy:
    """A schema without its patterns. `plain`: everything in it has the usual form."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.plain = True
        self.refers = False
        self.schema: Any = self._schema(schema, 0)

    def _schema(self, schema: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"its schema is nested deeper than {_MAX_DEPTH} levels")
        if not isinstance(schema, dict):
            self.plain &= isinstance(schema, bool)
            return schema
        copy: dict[str, Any] = {}
        for key, value in schema.items():
            form = _FORMS.get(key)
            if form is not None:
                self.plain &= form(value)
                self.refers |= key == "$ref"
                copy[key] = value
            elif key in _ONE:
                copy[key] = self._schema(value, depth + 1)
            elif key in _NAMED and isinstance(value, dict):
                copy[key] = {name: self._schema(each, depth + 1) for name, each in value.items()}
            elif key in _LIST and isinstance(value, list):
                self.plain &= bool(value)
                copy[key] = [self._schema(each, depth + 1) for each in value]
            elif key in _VALUES:
                copy[key] = value
            elif key not in ("pattern", "patternProperties"):
                self.plain &= not (key in _RARE or key in _NAMED or key in _LIST)
                self.refers |= key in _REFERENCES
                copy[key] = self._other(value, depth + 1)
        if "patternProperties" in schema:  # what it doesn't match can't be told any more
            copy.pop("additionalProperties", None)
            copy.pop("unevaluatedProperties", None)
        return copy

    def _other(self, value: Any, depth: int) -> Any:
        """The value of another keyword, in which there may be schemas that are referred to."""
        plain, self.plain = self.plain, True
        copy = self._schema(value, depth) if isinstance(value, dict) else value
        self.plain = plain
        return copy


def _check(dialect: Any, schema: Any) -> None:
    try:
        dialect.check_schema(schema)
    except jsonschema.SchemaError as error:
        where = ".".join(map(str, error.absolute_path))
        raise ValueError(f"its schema is invalid{f' at {where}' if where else ''}: {shortened(error)}") from None


def shortened(error: Any, most: int = 300) -> str:
    """jsonschema's message, which starts with the whole instance more often than not, made short."""
    message = str(error.message)
    instance = repr(error.instance)
    if len(instance) > 60 and message.startswith(instance):
        message = reprlib.repr(error.instance) + message[len(instance) :]
    return message if len(message) <= most else f"{message[:most]}..."


def _check_references(schema: dict[str, Any], dialect: Any) -> None:
    """Raises ValueError for one that leads nowhere, and for a circle that never gets to another value."""
    specification = referencing.jsonschema.specification_with(dialect.META_SCHEMA["$schema"])
    resource = specification.create_resource(schema)
    try:
        resolver = referencing.Registry().with_resource("", resource).crawl().resolver_with_root(resource)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"its schema has an identifier that is none ({type(error).__name__})") from None
    in_place: dict[int, list[int]] = {}
    todo: list[tuple[Any, Any]] = [(schema, resolver)]
    while todo:
        part, resolver = todo.pop()
        if not isinstance(part, dict) or id(part) in in_place:
            continue
        if isinstance(part.get("$id"), str) and part is not schema:
            resolver = resolver.in_subresource(specification.create_resource(part))
        applied = in_place[id(part)] = []
        for key in _REFERENCES:
            reference = part.get(key)
            if isinstance(reference, str):
                try:
                    found = resolver.lookup(reference)
                except (referencing.exceptions.Unresolvable, ValueError, TypeError, AttributeError):
                    raise ValueError(f"its schema has no {reference[:200]!r}") from None
                applied.append(id(found.contents))
                todo.append((found.contents, found.resolver))
        for key, value in part.items():
            for inner in _within(key, value):
                todo.append((inner, resolver))
                if key in _IN_PLACE:
                    applied.append(id(inner))
    if _circle(in_place):
        raise ValueError("its schema applies itself to one value without end")


def _within(key: str, value: Any) -> Iterator[Any]:
    if key in _LIST or (key == "items" and isinstance(value, list)):
        yield from value
    elif key in _NAMED or key == "dependencies":
        yield from value.values()
    elif key in _ONE or key == "additionalItems":
        yield value


def _circle(edges: dict[int, list[int]]) -> bool:
    """Whether a directed graph has one: what has no way in is taken away until nothing is left, or a circle is."""
    ways_in = dict.fromkeys(edges, 0)
    for targets in edges.values():
        for target in targets:
            if target in ways_in:
                ways_in[target] += 1
    free = [node for node, ways in ways_in.items() if not ways]
    left = len(edges)
    while free:
        left -= 1
        for target in edges[free.pop()]:
            if target in ways_in:
                ways_in[target] -= 1
                if not ways_in[target]:
                    free.append(target)
    return left > 0
