"""Arguments under names that a Python call can be written with."""

from __future__ import annotations

import json
import keyword
import unicodedata
from typing import Any, Final

from asynclm.adapters.tools.identifiers import identifier

# What a schema still says where arguments have other names: the rest may speak of the old ones.
_KEPT: Final = ("$schema", "type", "title", "description", "additionalProperties", "$defs", "definitions")


def with_callable_names(schema: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The schema of a tool's arguments, `file-path` being `file_path`, `class` being `class_`; and by their new names,
    the old names of those that have one.

    A schema that can't be understood, or refers to its own properties, comes back as it is.
    """
    properties = schema.get("properties")
    if not isinstance(properties, dict) or all(map(_callable, properties)):
        return schema, {}
    written = json.dumps(schema, separators=(",", ":"))
    if '"#/properties/' in written or '"$ref":"#"' in written:
        return schema, {}
    old: dict[str, str] = {name: name for name in properties if _callable(name)}
    for name in properties:
        if not _callable(name):
            base = new = identifier(name)
            number = 2
            while new in old:
                new, number = f"{base}_{number}", number + 1
            old[new] = name
    new_names = {name: new for new, name in old.items()}
    renamed: dict[str, Any] = {key: schema[key] for key in _KEPT if key in schema}
    renamed["properties"] = {new_names[name]: value for name, value in properties.items()}
    required = schema.get("required")
    if required is not None:
        known = isinstance(required, list) and all(isinstance(name, str) for name in required)
        renamed["required"] = [new_names.get(name, name) for name in required] if known else required
    return renamed, {new: name for new, name in old.items() if new != name}


def _callable(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name
