"""What an operation takes, as the arguments of one function.

- Every parameter and, if the body is an object with named properties, each of those is an argument of its own; any
  other body is the argument `body`. A body that may be left out but has required properties stays one argument, too.
- An argument's name is the original one made a Python identifier: `X-Trace` is `X_Trace`, `filter[name]` is
  `filter_name`, `class` is `class_`.
- Where two would have the same name, the one of the path keeps it, then query, header, cookie, body; the later one is
  called by its place: `query_id`, `header_id`, `cookie_id`, `body_id`.
- Required ones come first, else the order is the document's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Final, Literal

import msgspec

from asynclm.adapters.tools.identifiers import identifier
from asynclm.adapters.tools.openapi.document import Document, Place
from asynclm.adapters.tools.openapi.operations import Operation
from asynclm.adapters.tools.openapi.schema import Schemas
from asynclm.adapters.tools.options import ToolDefinitionError

Location = Literal["path", "query", "header", "cookie", "body"]
Encoding = Literal["json", "form", "multipart", "text"]

_LOCATIONS: Final[tuple[Location, ...]] = ("path", "query", "header", "cookie", "body")
_STYLES: Final[dict[str, tuple[str, ...]]] = {  # by location, the default first
    "path": ("simple", "label", "matrix"),
    "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
    "header": ("simple",),
    "cookie": ("form",),
}
# Never arguments: the specification gives the first three a meaning of their own, the others belong to the connection.
_RESERVED_HEADERS: Final = frozenset(
    {"accept", "content-type", "authorization", "host", "content-length", "transfer-encoding", "connection", "upgrade"}
    | {"te", "trailer", "keep-alive", "expect", "cookie", "proxy-authorization", "accept-encoding"}
)


class Argument(msgspec.Struct, frozen=True, kw_only=True):
    """An argument, and where it goes in a request: to `location`, under `key`.

    `style`, `explode` and `reserved` are OpenAPI's (of a form's field, too); `json` says that the value goes as JSON
    text; `file` that it goes as a file, and `media_type` of what kind (both in a multipart body). `key` None is the
    whole body.
    """

    name: str
    location: Location
    key: str | None
    required: bool
    style: str = "simple"
    explode: bool = False
    reserved: bool = False
    json: bool = False
    file: bool = False
    media_type: str = ""


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of an operation, their JSON schema, and how its body is written (None: it has none)."""

    arguments: tuple[Argument, ...]
    schema: dict[str, Any]
    encoding: Encoding | None = None
    media_type: str = ""


class UnsupportedError(ToolDefinitionError):
    """The operation takes something that can't be an argument."""


def signature(document: Document, operation: Operation, supplied: Collection[str] = ()) -> Signature:
    """Read an operation's parameters and body. `supplied` are header and query names that the config provides.

    Raises `ToolDefinitionError` naming the place, `UnsupportedError` for a body in no format that is written here.
    """
    drafts = [
        draft
        for draft in _parameters(document, operation)
        if not (draft.location in ("header", "query") and (draft.key or "").lower() in supplied)
    ]
    body = document.follow(operation.place.at("requestBody"))
    encoding, media_type = None, ""
    if body.value is not None:
        encoding, media_type, more = _body(document, body)
        drafts += more
    drafts.sort(key=lambda draft: _LOCATIONS.index(draft.location))
    names: dict[str, _Draft] = {}
    for draft in drafts:
        names[_free_name(draft, names)] = draft
    names = dict(sorted(names.items(), key=lambda item: not item[1].required))
    schemas = Schemas(document)
    properties = schemas.convert({name: draft.schema for name, draft in names.items()})
    for name, draft in names.items():
        if draft.description and not properties[name].get("description"):
            properties[name]["description"] = draft.description
    required = [name for name, draft in names.items() if draft.required]
    return Signature(
        arguments=tuple(
            Argument(
                name=name,
                location=draft.location,
                key=draft.key,
                required=draft.required,
                style=draft.style,
                explode=draft.explode,
                reserved=draft.reserved,
                json=draft.json,
                file=draft.file,
                media_type=draft.media_type,
            )
            for name, draft in names.items()
        ),
        schema={
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            **({"required": required} if required else {}),
            **({"$defs": schemas.defs} if schemas.defs else {}),
        },
        encoding=encoding,
        media_type=media_type,
    )


class _Draft(msgspec.Struct, kw_only=True):
    location: Location
    key: str | None
    required: bool
    schema: Place
    description: str = ""
    style: str = "simple"
    explode: bool = False
    reserved: bool = False
    json: bool = False
    file: bool = False
    media_type: str = ""


def _free_name(draft: _Draft, taken: Collection[str]) -> str:
    base = identifier("body" if draft.key is None else draft.key)
    name = base
    if name in taken:
        base = name = f"{draft.location}_{base}"
    number = 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def _parameters(document: Document, operation: Operation) -> Iterator[_Draft]:
    found: dict[tuple[str, str], _Draft] = {}
    for holder in (operation.item, operation.place):  # the operation's own win
        parameters = holder.at("parameters")
        if parameters.value is None:
            continue
        if not isinstance(parameters.value, list):
            raise ToolDefinitionError(f"{parameters.shown}: must be a list")
        for index in range(len(parameters.value)):
            draft = _parameter(document, document.follow(parameters.at(index)))
            if draft is not None:
                found[draft.location, draft.key or ""] = draft
    templates = re.findall(r"\{([^{}]*)\}", operation.path)
    for name in templates:
        if ("path", name) not in found:
            raise ToolDefinitionError(f"{operation.place.shown}: the path parameter {name!r} is not described")
    return (draft for draft in found.values() if draft.location != "path" or draft.key in templates)


def _parameter(document: Document, place: Place) -> _Draft | None:
    value = place.value
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not isinstance(value.get("in"), str):
        raise ToolDefinitionError(f'{place.shown}: a parameter must be an object with "name" and "in"')
    location: Any = value["in"]
    if location not in _STYLES:
        raise ToolDefinitionError(f'{place.shown}: "in" must be one of {", ".join(_STYLES)}')
    if location == "header" and value["name"].lower() in _RESERVED_HEADERS:
        return None
    style = value.get("style", _STYLES[location][0])
    if style not in _STYLES[location]:
        raise ToolDefinitionError(f"{place.shown}: there is no style {str(style)[:40]!r} for a {location} parameter")
    content = place.at("content")
    json = False
    schema = place.at("schema")
    if isinstance(content.value, dict) and content.value:
        kind = next(iter(content.value))
        schema, json = content.at(kind, "schema"), _is_json(kind)
    return _Draft(
        location=location,
        key=value["name"],
        required=location == "path" or value.get("required") is True,
        schema=schema if schema.value is not None else Place({}, schema.uri, schema.pointer),
        description=" ".join(str(value.get("description") or "").split()),
        style=style,
        explode=bool(value.get("explode", style in ("form", "deepObject"))),
        reserved=value.get("allowReserved") is True,
        json=json,
    )


def _is_json(media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _encoding(media_type: str) -> Encoding | None:
    kind = media_type.partition(";")[0].strip().lower()
    if _is_json(kind) or kind in ("*/*", "application/*"):
        return "json"
    if kind.startswith("text/"):
        return "text"
    encodings: dict[str, Encoding] = {"application/x-www-form-urlencoded": "form", "multipart/form-data": "multipart"}
    return encodings.get(kind)


_PREFERENCE: Final[tuple[Encoding, ...]] = ("json", "form", "multipart", "text")


def _body(document: Document, body: Place) -> tuple[Encoding, str, list[_Draft]]:
    content = body.at("content")
    if not isinstance(body.value, dict) or not isinstance(content.value, dict) or not content.value:
        raise ToolDefinitionError(f'{body.shown}: a request body must be an object with "content"')
    kinds = {encoding: kind for kind in reversed(content.value) if (encoding := _encoding(str(kind)))}
    encoding = next((each for each in _PREFERENCE if each in kinds), None)
    if encoding is None:
        raise UnsupportedError(f"its body is {' or '.join(map(str, content.value))[:100]}, which is not written here")
    media_type = kinds[encoding]
    schema = content.at(media_type, "schema")
    if schema.value is None:
        schema = Place({}, schema.uri, schema.pointer)
    required = body.value.get("required") is True
    fields = None if encoding == "text" else _fields(document, schema, required)
    if fields is None:
        if encoding in ("form", "multipart") and not _maybe_object(document, schema):
            raise UnsupportedError(f"its body is {media_type}, but no object")
        described = " ".join(str(body.value.get("description") or "").split())
        whole = _Draft(location="body", key=None, required=required, schema=schema, description=described)
        fields = [whole]
    if encoding in ("form", "multipart"):
        for draft in fields:
            if draft.key is not None:
                _form_style(draft, content.at(media_type, "encoding", draft.key))
                if encoding == "multipart":
                    _part(document, draft, content.at(media_type, "encoding", draft.key))
    if "*" in media_type:
        media_type = "application/json"
    return encoding, media_type, fields


def _form_style(draft: _Draft, place: Place) -> None:
    value = place.value if isinstance(place.value, dict) else {}
    draft.style = value.get("style", "form")
    if draft.style not in _STYLES["query"]:
        raise ToolDefinitionError(f"{place.shown}: there is no style {str(draft.style)[:40]!r} for a form's field")
    draft.explode = bool(value.get("explode", draft.style in ("form", "deepObject")))
    draft.json = _is_json(str(value.get("contentType", ""))) and "style" not in value


def _part(document: Document, draft: _Draft, place: Place) -> None:
    """What kind of part a property is: services take a file only from a part that looks like one."""
    value = place.value if isinstance(place.value, dict) else {}
    kind = str(value.get("contentType", "")).partition(",")[0].strip()
    if kind.isprintable() and "*" not in kind:
        draft.media_type = kind
    schema = document.follow(draft.schema)
    if isinstance(schema.value, dict) and schema.value.get("type") == "array":
        schema = document.follow(schema.at("items"))
    described = schema.value if isinstance(schema.value, dict) else {}
    content = described.get("contentMediaType")  # as 3.1 says it
    draft.file = described.get("format") == "binary" or (
        isinstance(content, str) and not _is_json(content) and "contentEncoding" not in described
    )


def _maybe_object(document: Document, schema: Place) -> bool:
    value = document.follow(schema).value
    return not isinstance(value, dict) or value.get("type", "object") == "object"


def _fields(document: Document, schema: Place, body_required: bool) -> list[_Draft] | None:
    """The properties of a body as arguments; None where it isn't an object of named properties alone."""
    properties: dict[str, Place] = {}
    required: set[str] = set()
    if not _gather(document, schema, properties, required, 0) or not properties:
        return None
    if required and not body_required:
        return None
    drafts = []
    for name, place in properties.items():
        value = document.follow(place).value
        if isinstance(value, dict) and value.get("readOnly") is True:
            continue
        drafts.append(_Draft(location="body", key=name, required=name in required, schema=place))
    return drafts


def _gather(document: Document, schema: Place, properties: dict[str, Place], required: set[str], depth: int) -> bool:
    place = document.follow(schema)
    value = place.value
    if not isinstance(value, dict) or depth > 16:
        return False
    open_ended = value.get("additionalProperties") not in (None, False)
    if open_ended or value.keys() & {"anyOf", "oneOf", "not", "patternProperties", "if"}:
        return False
    if value.get("type", "object") not in ("object", ["object"]) or value.get("nullable") is True:
        return False
    parts = place.at("allOf")
    for index in range(len(parts.value) if isinstance(parts.value, list) else 0):
        if not _gather(document, parts.at(index), properties, required, depth + 1):
            return False
    own = place.at("properties")
    for name in own.value if isinstance(own.value, dict) else ():
        properties[str(name)] = own.at(name)
    names = value.get("required")
    if isinstance(names, list):
        required |= {name for name in names if isinstance(name, str)}
    return True
