"""The tools of a server: found by name, and their calls checked before anything runs.

What a call gets wrong is said in words like Python's own, because models know those best.
"""

from __future__ import annotations

import difflib
import keyword
import math
import reprlib
import unicodedata
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, Final

import msgspec
from jsonschema.exceptions import best_match

from asynclm.adapters.tools.argument_schema import shortened, validator
from asynclm.adapters.tools.protocol import Tool
from asynclm.cml.tools import CallError, Invocation, ToolSpec

_MAX_DEPTH: Final = 64
_NAMES_SHOWN: Final = 20


class _Entry(msgspec.Struct, frozen=True):
    tool: Tool
    spec: ToolSpec
    names: tuple[str, ...]  # of the parameters, in the order of positional arguments
    required: tuple[str, ...]
    closed: bool  # no other names
    validator: Any


class Toolbox:
    """Tools by name; a `Catalog` for the run machine.

    Tools stand in groups, one a source, which can be replaced while runs go on: a call finds what is there when it is
    checked. `version` grows with every change. Raises ValueError for a name used twice, a name that no Python call
    could be written with, or an invalid schema.
    """

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self.version = 0
        self._groups: dict[Hashable, dict[str, _Entry]] = {}
        self._entries: dict[str, _Entry] = {}
        self.replace(None, tools)

    def replace(self, group: Hashable, tools: Iterable[Tool]) -> None:
        """Put these tools in place of the group's; a new group goes to the end.

        Raises ValueError, as the constructor does; then nothing has changed.
        """
        entries: dict[str, _Entry] = {}
        others = self.names(besides=group)
        for tool in tools:
            spec = tool.spec
            if not _callable_name(spec.name):
                raise ValueError(f"tool name {spec.name!r}: it must be a Python identifier; dots may join several")
            if spec.name in entries or spec.name in others:
                raise ValueError(f"two tools are named {spec.name!r}: give one of them another name")
            entries[spec.name] = _entry(tool, spec)
        self._set(group, entries)

    def names(self, *, besides: Hashable) -> set[str]:
        """The names of the tools of all groups but one."""
        return {name for key, members in self._groups.items() if key != besides for name in members}

    def beside(self, tools: Iterable[Tool]) -> Toolbox:
        """A toolbox of the tools that stand here now, which need not be checked again, and of these.

        Raises ValueError, as the constructor does.
        """
        other = Toolbox()
        other._groups = dict(self._groups)
        other.replace(object(), tools)
        return other

    def _set(self, group: Hashable, entries: dict[str, _Entry]) -> None:
        self._groups[group] = entries
        self._entries = {name: entry for members in self._groups.values() for name, entry in members.items()}
        self.version += 1

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Tool]:
        return (entry.tool for entry in self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Tool:
        """The tool of that name. Raises KeyError."""
        return self._entries[name].tool

    def specs(self) -> list[ToolSpec]:
        """Every tool, in the order in which it was given."""
        return [entry.spec for entry in self._entries.values()]

    def with_tools(self, tools: Iterable[Tool]) -> Toolbox:
        """A toolbox of other tools whose specs are among these, so that they need not be checked again.

        Raises ValueError for a spec that isn't the very object that stands here under its name.
        """
        entries: dict[str, _Entry] = {}
        for tool in tools:
            entry = self._entries.get(tool.spec.name)
            if entry is None or entry.spec is not tool.spec:
                raise ValueError(f"tool {tool.spec.name!r}: its spec is none of this toolbox")
            entries[tool.spec.name] = msgspec.structs.replace(entry, tool=tool)
        other = Toolbox()
        other._set(None, entries)
        return other

    def check(self, invocation: Invocation) -> tuple[ToolSpec, dict[str, Any]]:
        """Find the tool, bind the arguments to its parameters and validate them. Raises `CallError`. Runs nothing."""
        entry = self._entries.get(invocation.name)
        if entry is None:
            raise CallError("unknown_tool", self._unknown(invocation.name))
        try:
            arguments = _bind(entry, invocation)
            _validate(entry, arguments)
        except _InvalidError as problem:
            raise CallError("invalid_arguments", f"{entry.spec.name}() {problem}") from None
        return entry.spec, arguments

    def _unknown(self, name: str) -> str:
        said = f"there is no tool {reprlib.repr(name)}"
        near = difflib.get_close_matches(name[:100], self._entries, n=3)
        if near:
            return f"{said}; did you mean {_listed(near, 'or')}?"
        if not self._entries:
            return f"{said}; there are none at all"
        shown = list(self._entries)[:_NAMES_SHOWN]
        more = len(self._entries) - len(shown)
        return f"{said}; the tools are {', '.join(shown)}" + (f" and {more} more" if more else "")


class _InvalidError(Exception):
    """What is wrong with the arguments; follows "name() "."""


def _callable_name(name: str) -> bool:
    # `ast` gives identifiers in NFKC, so a name in another form would never be found.
    return unicodedata.normalize("NFKC", name) == name and all(
        part.isidentifier() and not keyword.iskeyword(part) for part in name.split(".")
    )


def _entry(tool: Tool, spec: ToolSpec) -> _Entry:
    schema = spec.parameters
    try:
        checker = validator(schema)
    except ValueError as error:
        raise ValueError(f"tool {spec.name!r}: {error}") from None
    return _Entry(
        tool=tool,
        spec=spec,
        names=tuple(schema.get("properties", {})),
        required=tuple(schema.get("required", ())),
        closed=schema.get("additionalProperties") is False and not schema.get("patternProperties"),
        validator=checker,
    )


def _bind(entry: _Entry, invocation: Invocation) -> dict[str, Any]:
    if len(invocation.positional) > len(entry.names):
        raise _InvalidError(_too_many(entry, len(invocation.positional)))
    given = dict(zip(entry.names, invocation.positional, strict=False))
    for name in invocation.named:
        if name in given:
            raise _InvalidError(f"got multiple values for argument {reprlib.repr(name)}")
        if entry.closed and name not in entry.names:
            raise _InvalidError(_unexpected(entry, name))
    given |= invocation.named
    missing = [name for name in entry.required if name not in given]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise _InvalidError(f"missing {len(missing)} required argument{plural}: {_listed(missing, 'and')}")
    return {name: _json(value, name, 0) for name, value in given.items()}


def _too_many(entry: _Entry, count: int) -> str:
    most = len(entry.names)
    least = sum(name in entry.required for name in entry.names)
    takes = str(most) if least == most else f"from {least} to {most}"
    plural = "" if most == 1 and least == most else "s"
    return f"takes {takes} positional argument{plural} but {count} {'was' if count == 1 else 'were'} given"


def _unexpected(entry: _Entry, name: str) -> str:
    said = f"got an unexpected keyword argument {reprlib.repr(name)}"
    near = difflib.get_close_matches(name[:100], entry.names, n=1)
    if near:
        return f"{said}; did you mean {near[0]!r}?"
    return f"{said}; it takes {_listed(entry.names[:_NAMES_SHOWN], 'and') or 'none'}"


def _json(value: Any, path: str, depth: int) -> Any:
    """The JSON form of a value written as a Python literal: tuples are lists, whole-number keys are strings."""
    if depth > _MAX_DEPTH:
        raise _InvalidError(f"argument {_shown(path)}: nested deeper than {_MAX_DEPTH} levels")
    match value:
        case None | bool() | int():
            return value
        case str():
            return _text(value, path)
        case float():
            if not math.isfinite(value):
                raise _InvalidError(f"argument {_shown(path)}: {value} is no JSON number")
            return value
        case list() | tuple():
            return [_json(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
        case dict():
            return {
                _key(key, path): _json(item, f"{path}[{reprlib.repr(key)}]", depth + 1) for key, item in value.items()
            }
    hint = "; write a list" if isinstance(value, set | frozenset) else ""
    raise _InvalidError(f"argument {_shown(path)}: a value of type {type(value).__name__} has no JSON form{hint}")


def _key(key: Any, path: str) -> str:
    if isinstance(key, str):
        return _text(key, path)
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    raise _InvalidError(f"argument {_shown(path)}: the keys of a JSON object are strings, not {type(key).__name__}")


def _text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _InvalidError(f"argument {_shown(path)}: the string holds half of a surrogate pair") from None
    return text


def _validate(entry: _Entry, arguments: dict[str, Any]) -> None:
    try:
        error = best_match(entry.validator.iter_errors(arguments))
    except Exception as broken:  # a schema can break its checker in more ways than one
        raise _InvalidError(f"can't be checked against its schema ({type(broken).__name__})") from None
    if error is None:
        return
    where = ""
    for step in error.absolute_path:
        where += f"[{step!r}]" if where else str(step)
    raise _InvalidError(f"argument {_shown(where)}: {shortened(error)}" if where else shortened(error))


def _shown(path: str) -> str:
    return f"'{path}'" if len(path) <= 100 else f"'{path[:100]}...'"


def _listed(names: Iterable[str], word: str) -> str:
    quoted = [reprlib.repr(name) for name in names]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} {word} {quoted[-1]}"
