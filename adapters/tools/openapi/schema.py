"""OpenAPI's schemas as JSON Schema (draft 2020-12): self-contained, small, and safe to validate with.

References are inlined, except where a schema contains itself: that goes to `$defs`. What the model has no use for is
left out; a pattern becomes part of the description, since its regular expressions aren't Python's.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from asynclm.adapters.tools.openapi.document import Document, Place
from asynclm.adapters.tools.options import ToolDefinitionError

_MAX_INLINED: Final = 1_000  # schemas of one operation, before references are shared instead
_MAX_SCHEMAS: Final = 5_000
_SHALLOW: Final = 3  # levels, where even that is too much
_MAX_SHALLOW: Final = 500
_MAX_DEPTH: Final = 60
_MAX_DESCRIPTION: Final = 300

_COPIED: Final = (
    "type",
    "enum",
    "const",
    "default",
    "required",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
    "format",
)
_ONE: Final = ("items", "additionalProperties", "not", "contains", "propertyNames")
_MANY: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_IN_PLACE: Final = ("anyOf", "oneOf", "allOf", "not")  # apply to the same value
_TYPES: Final = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})


class _Mode(enum.Enum):
    SHARED = enum.auto()
    SHALLOW = enum.auto()


class Schemas:
    """Converts the schemas of one operation; `defs` is what their references need beside them."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._old = document.version.startswith("3.0")
        self._start()

    def convert(self, places: Mapping[str, Place]) -> dict[str, dict[str, Any]]:
        """These schemas by name; in less detail where they would be too many.

        Raises `ToolDefinitionError` naming the place of what is wrong.
        """
        cycles = _Cycles(self._document)
        try:
            for place in places.values():
                cycles.look(place)
            self._recursive, self._endless = cycles.recursive, cycles.endless
            return self._shortest(places)
        except _TooManyError:
            return self._shallow(places)

    def _shortest(self, places: Mapping[str, Place]) -> dict[str, dict[str, Any]]:
        try:
            return self._converted(places, _MAX_INLINED, _MAX_DEPTH)
        except _TooManyError:  # each schema once, however often it is referred to
            return self._converted(places, _MAX_SCHEMAS, _MAX_DEPTH, _Mode.SHARED)

    def _shallow(self, places: Mapping[str, Place]) -> dict[str, dict[str, Any]]:
        """Only the upper levels; below them anything goes, and it is for the service to say what is wrong."""
        for levels in range(_SHALLOW, 0, -1):
            with suppress(_TooManyError):
                return self._converted(places, _MAX_SHALLOW, levels, _Mode.SHALLOW)
        return self._converted(places, len(places) * 2, 0, _Mode.SHALLOW)

    def _converted(
        self, places: Mapping[str, Place], most: int, levels: int, mode: _Mode | None = None
    ) -> dict[str, dict[str, Any]]:
        self._start()
        self._left, self._levels, self._mode = most, levels, mode
        converted = {name: self._schema(place, 0) for name, place in places.items()}
        while self._pending:
            name, place = self._pending.popitem()
            self.defs[name] = self._schema(place, 0)
        return converted

    def _start(self) -> None:
        self.defs: dict[str, dict[str, Any]] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._pending: dict[str, Place] = {}

    def _schema(self, place: Place, depth: int) -> dict[str, Any]:
        schema = place.value
        self._left -= 1
        if depth > self._levels and self._mode is _Mode.SHALLOW:
            kind = schema.get("type") if isinstance(schema, dict) else None
            return {"type": kind} if isinstance(kind, str) and kind in _TYPES else {}
        if self._left < 0 or depth > self._levels:
            raise _TooManyError
        if isinstance(schema, bool):
            return {} if schema else {"not": {}}
        if not isinstance(schema, dict):
            raise ToolDefinitionError(f"{place.shown}: a schema must be an object")
        if isinstance(schema.get("$ref"), str):
            return self._reference(place, depth)
        return self._own(place, depth)

    def _reference(self, place: Place, depth: int) -> dict[str, Any]:
        target = self._document.target(place, place.value["$ref"])
        key = (target.uri, target.pointer)
        if self._mode is _Mode.SHALLOW:
            found = self._schema(target, depth + 1)
        elif (place.uri, place.pointer) in self._endless:
            return {}
        elif key in self._recursive or self._mode is _Mode.SHARED:
            found = {"$ref": f"#/$defs/{self._name(target)}"}
        else:
            found = self._schema(target, depth + 1)
        beside = {key: value for key, value in place.value.items() if key != "$ref"}
        described = beside.pop("description", None)
        own = self._own(Place(beside, place.uri, place.pointer), depth) if beside and not self._old else {}
        if own.keys() & found.keys():
            own = {"allOf": [found, own]}
            found = {}
        if isinstance(described, str):
            own["description"] = _described(described)
        return {**found, **own}

    def _name(self, target: Place) -> str:
        key = (target.uri, target.pointer)
        if key not in self._names:
            base = re.sub(r"\W", "_", target.pointer.rpartition("/")[2]) or "schema"
            name, number = base, 2
            while name in self._names.values():
                name, number = f"{base}_{number}", number + 1
            self._names[key] = name
            self._pending[name] = target
        return self._names[key]

    def _own(self, place: Place, depth: int) -> dict[str, Any]:
        schema = place.value
        made: dict[str, Any] = {key: schema[key] for key in _COPIED if key in schema}
        self._check_types(made, place)
        self._bounds(made, schema)
        notes = [str(schema["description"])] if schema.get("description") else []
        if isinstance(schema.get("pattern"), str):
            notes.append(f"(matches {schema['pattern'][:100]})")
        if notes:
            made["description"] = _described(" ".join(notes))
        properties = schema.get("properties")
        if isinstance(properties, dict):
            inner = place.at("properties")
            hidden = {name for name in properties if self._read_only(inner.at(name))}
            made["properties"] = {
                str(name): self._schema(inner.at(name), depth + 1) for name in properties if name not in hidden
            }
            if "required" in made:
                made["required"] = [name for name in made["required"] if name not in hidden]
            if not made.keys() & {"type", "anyOf", "oneOf"}:
                made["type"] = "object"
        for key in _ONE:
            if key in schema:
                made[key] = self._schema(place.at(key), depth + 1)
        for key in _MANY:
            if key in schema:
                if not isinstance(schema[key], list) or not schema[key]:
                    raise ToolDefinitionError(f"{place.at(key).shown}: must be a list of schemas")
                made[key] = [self._schema(place.at(key, index), depth + 1) for index in range(len(schema[key]))]
        if not made.get("required", True):
            del made["required"]
        made = _merged(made)
        return _nullable(made) if self._old and schema.get("nullable") is True else made

    def _check_types(self, made: dict[str, Any], place: Place) -> None:
        kinds = made.get("type", [])
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if not isinstance(kind, str) or kind not in _TYPES:
                raise ToolDefinitionError(f"{place.shown}: there is no type {str(kind)[:40]!r}")
        required = made.get("required", [])
        if isinstance(required, bool):  # as in OpenAPI 2 and drafts of old: it says something about the parent
            del made["required"]
        elif not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise ToolDefinitionError(f"{place.shown}: required must be a list of names")

    def _bounds(self, made: dict[str, Any], schema: dict[str, Any]) -> None:
        """`exclusiveMinimum: true` beside `minimum` is how OpenAPI 3.0 says it."""
        for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if isinstance(made.get(exclusive), bool):
                del made[exclusive]
                if schema[exclusive] and bound in made:
                    made[exclusive] = made.pop(bound)

    def _read_only(self, place: Place) -> bool:
        try:
            value = self._document.follow(place).value
        except ToolDefinitionError:
            return False
        return isinstance(value, dict) and value.get("readOnly") is True


class _TooManyError(Exception):
    """More schemas, or deeper ones, than a tool is described with."""


class _Cycles:
    """Finds the schemas that contain themselves (`recursive`), by where they stand, and the references that apply a
    schema to the very value that it is being applied to (`endless`), which no validator could ever finish.
    """

    def __init__(self, document: Document) -> None:
        self.recursive: set[tuple[str, str]] = set()
        self.endless: set[tuple[str, str]] = set()
        self._document = document

    def look(self, place: Place) -> None:
        """Find what can be reached from there. Raises `ToolDefinitionError`."""
        seen: dict[tuple[str, str], Place] = {}
        self._walk(place, seen, set(), in_place=False)
        done: dict[tuple[str, str], Place] = {}
        for each in seen.values():
            self._walk(each, done, set(), in_place=True)

    def _walk(
        self, place: Place, done: dict[tuple[str, str], Place], around: set[tuple[str, str]], *, in_place: bool
    ) -> None:
        schema, key = place.value, (place.uri, place.pointer)
        if key in done or not isinstance(schema, dict):
            return
        if len(around) > _MAX_DEPTH * 4 or len(done) > _MAX_SCHEMAS:
            raise _TooManyError
        around.add(key)
        if isinstance(schema.get("$ref"), str):
            target = self._document.target(place, schema["$ref"])
            if (target.uri, target.pointer) not in around:
                self._walk(target, done, around, in_place=in_place)
            elif in_place:
                self.endless.add(key)
            else:
                self.recursive.add((target.uri, target.pointer))
        for part in _parts(place, in_place):
            self._walk(part, done, around, in_place=in_place)
        around.discard(key)
        done[key] = place


def _parts(place: Place, in_place: bool) -> Iterator[Place]:
    for keyword in _IN_PLACE if in_place else (*_ONE, *_MANY):
        if keyword not in place.value:
            continue
        part = place.at(keyword)
        if isinstance(part.value, list):
            yield from (part.at(index) for index in range(len(part.value)))
        else:
            yield part
    if in_place or "properties" not in place.value:
        return
    properties = place.at("properties")
    if isinstance(properties.value, dict):
        yield from (properties.at(name) for name in properties.value)


def _merged(schema: dict[str, Any]) -> dict[str, Any]:
    """`allOf` of plain objects as one object, as models read it more easily."""
    parts = schema.get("allOf")
    if parts is None:
        return schema
    rest = {key: value for key, value in schema.items() if key != "allOf"}
    if len(parts) == 1 and not (parts[0].keys() & rest.keys()) - {"description"}:
        return {**parts[0], **rest}
    plain = {"type", "properties", "required", "description"}
    if not all(part.keys() <= plain and part.get("type", "object") == "object" for part in (*parts, rest)):
        return schema
    properties: dict[str, Any] = {}
    for part in (*parts, rest):
        for name, value in part.get("properties", {}).items():
            if properties.setdefault(name, value) != value:
                return schema
    required = list(dict.fromkeys(name for part in (*parts, rest) for name in part.get("required", ())))
    described = next((part["description"] for part in (rest, *parts) if "description" in part), None)
    return {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
        **({"description": described} if described else {}),
    }


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(schema.get("type"), str):
        made = {**schema, "type": [schema["type"], "null"]}
        if "enum" in made and None not in made["enum"]:
            made["enum"] = [*made["enum"], None]
        return made
    if not schema.keys() - {"description", "default"}:
        return schema  # anything, null included
    notes: dict[str, Any] = {key: schema[key] for key in ("description", "default") if key in schema}
    return {"anyOf": [{key: value for key, value in schema.items() if key not in notes}, {"type": "null"}], **notes}


def _described(text: str) -> str:
    return shortened(text, _MAX_DESCRIPTION)


def shortened(text: str, most: int) -> str:
    """One line of at most about `most` characters, cut at the end of a sentence if there is one, else of a word."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    beginning = text[:most]
    sentence = max(beginning.rfind(end) for end in (". ", "! ", "? "))
    if sentence >= most // 3:
        return beginning[: sentence + 1]
    return beginning.rpartition(" ")[0].rstrip(",;:") + " ..."
