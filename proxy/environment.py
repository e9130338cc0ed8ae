"""Config keys out of environment variables: `ASYNCLM_`, then the key's path in upper case with underscores between.

- `ASYNCLM_SERVER_PORT` is `server.port`; two underscores between the parts do as well (`ASYNCLM_SERVER__PORT`).
- In the sections whose tables have names, the name is matched without regard to case, any character but letters and
  digits being an underscore (`ASYNCLM_MODELS_GPT_4O_POLICY` is `models."gpt-4o".policy`); `ANY` is the name "*". A name
  that isn't there yet makes a table of that name in lower case.
- Tables and lists are JSON, and so is a whole section: `ASYNCLM_TOOLS='[{"python": "tools.py:f"}]'`.
- A variable that is set but empty counts as not set.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from asynclm.proxy.config_error import ConfigError, Key, did_you_mean, listed, reason

PREFIX: Final = "ASYNCLM_"
_AS_JSON: Final = (msgspec.inspect.DictType, msgspec.inspect.VarTupleType, msgspec.inspect.StructType)
# What Kubernetes tells every container about services whose name begins with "asynclm".
_KUBERNETES: Final = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)"
)


class Layout(msgspec.Struct, frozen=True):
    """The sections: single tables, tables by name, and lists of tables."""

    tables: dict[str, type[msgspec.Struct]]
    keyed: dict[str, type[msgspec.Struct]]
    lists: tuple[str, ...]

    @property
    def sections(self) -> tuple[str, ...]:
        """Their names."""
        return (*self.tables, *self.keyed, *self.lists)


def read_environment(
    tree: dict[str, Any], environ: Mapping[str, str], layout: Layout
) -> tuple[dict[Key, str], list[str]]:
    """Put what the variables say into the parsed config `tree`, in place.

    Returns which variable set which key (for error messages), and warnings about variables that name no
    section. Raises `ConfigError` naming the variable.
    """
    origins: dict[Key, str] = {}
    warnings: list[str] = []
    # Shorter names first: a whole section, then what is set in it.
    for variable in sorted(environ, key=lambda name: (len(name), name)):
        if not variable.startswith(PREFIX) or not environ[variable]:
            continue
        path = variable.removeprefix(PREFIX)
        section = next((name for name in layout.sections if f"{path}_".startswith(f"{name.upper()}_")), None)
        if section is None:
            warnings += _typing_error(variable, environ[variable], path, layout)
            continue
        rest = path[len(section) :]
        if not rest:
            tree[section] = _section(variable, environ[variable], section in layout.lists)
            origins[(section,)] = variable
            continue
        if section in layout.lists:
            raise ConfigError(
                f"environment variable {variable}: {PREFIX}{section.upper()} takes the whole list, as JSON"
            )
        type = layout.tables.get(section) or layout.keyed[section]
        if section in layout.tables:
            key: Key = (section, _field(variable, rest.lstrip("_"), type))
        else:
            key = (section, *_named_field(variable, rest, type, tree.get(section)))
        value = _value(variable, environ[variable], type, str(key[-1]))
        if _put(tree, key, value):
            origins[key] = variable
    return origins, warnings


def _typing_error(variable: str, text: str, path: str, layout: Layout) -> list[str]:
    if _KUBERNETES.fullmatch(path) and (not path.endswith("PORT") or "SERVICE_" in path or "://" in text):
        return []
    near = difflib.get_close_matches(path.partition("_")[0].lower(), layout.sections, n=1, cutoff=0.8)
    if near:
        return [f"{variable} is not a key of the config; did you mean {PREFIX}{near[0].upper()}_...?"]
    return [f"{variable} is not a key of the config and changes nothing; its sections are {listed(layout.sections)}"]


def _section(variable: str, text: str, is_list: bool) -> Any:
    value = _json(variable, text)
    if not isinstance(value, list if is_list else dict):
        raise ConfigError(f"environment variable {variable}: must be a JSON {'array' if is_list else 'object'}")
    return value


def _field(variable: str, name: str, type: type[msgspec.Struct]) -> str:
    fields = type.__struct_fields__
    if name.lower() not in fields:
        near = did_you_mean(name.lower(), fields)
        raise ConfigError(
            f"environment variable {variable}: no key is called {name.lower()!r}{near or f': {listed(fields)}'}"
        )
    return name.lower()


def _named_field(variable: str, rest: str, type: type[msgspec.Struct], tables: Any) -> tuple[str, str]:
    if rest.startswith("__"):
        name, _, field = rest[2:].rpartition("__")
        field = _field(variable, field, type)
    else:
        ends = [field for field in type.__struct_fields__ if rest.endswith(f"_{field.upper()}")]
        field = max(ends, key=len, default="")
        name = rest[1 : -len(field) - 1] if field else ""
    if not name:
        raise ConfigError(
            f"environment variable {variable}: must end with a name and one of the keys "
            f"{listed(field.upper() for field in type.__struct_fields__)}"
        )
    matches = [known for known in (tables if isinstance(tables, dict) else ()) if _in_variable(known) == name.upper()]
    if len(matches) > 1:
        raise ConfigError(f"environment variable {variable}: {name!r} may be any of {listed(map(repr, matches))}")
    if matches:
        return matches[0], field
    return "*" if name.upper() == "ANY" else name.lower(), field


def _in_variable(name: str) -> str:
    return "ANY" if name == "*" else re.sub(r"[^A-Za-z0-9]", "_", name).upper()


def _value(variable: str, text: str, type: type[msgspec.Struct], field: str) -> Any:
    kind = next(each.type for each in msgspec.structs.fields(type) if each.name == field)
    info = msgspec.inspect.type_info(kind)
    kinds = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    value = _json(variable, text) if any(isinstance(each, _AS_JSON) for each in kinds) else text
    try:
        # Not strict: "8787" is a number here.
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"environment variable {variable}: {reason(error, kind)}") from None


def _json(variable: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"environment variable {variable}: must be JSON: {error}") from None


def _put(tree: dict[str, Any], key: Key, value: Any) -> bool:
    """Set it; False where the file has something other than a table in the way (which is an error of its own)."""
    table: Any = tree
    for part in key[:-1]:
        if not isinstance(table, dict):
            return False
        table = table.setdefault(part, {})
    if not isinstance(table, dict):
        return False
    table[key[-1]] = value
    return True
