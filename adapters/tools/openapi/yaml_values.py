"""YAML as OpenAPI means it: the values that JSON has, whatever the text looks like.

`no`, `12:30` and `2020-01-01` are strings, and so is every key; tags make nothing. Built from the parser's events,
without recursion: the library's own composing of nodes overflows the stack of the process on a text of many brackets.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
import yaml

_MAX_DEPTH: Final = 200
_MERGE: Final = "<<"
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORDS: Final = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}
_MAX_DIGITS: Final = 400
_MAX_REPEATED: Final = 2**22  # characters and values that aliases may add to what is written
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """The text can't be read. One line that says where and why."""


def read_yaml(text: bytes) -> Any:
    """The value of the one document in `text`; what is repeated by an alias is one object. Raises `YamlError`."""
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_Loader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        raise YamlError(f"{_where(error.problem_mark)}{error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError(str(error).splitlines()[0][:200] if isinstance(error, YamlError) else "no text") from None
    return builder.root


class _Extent(msgspec.Struct, kw_only=True):
    """A value, how much it is (characters and values) and how many levels it has, all that it repeats included."""

    value: Any
    anchor: str | None = None
    size: int = 1
    height: int = 1


class _Builder:
    def __init__(self) -> None:
        self.root: Any = None
        self._documents = 0
        self._anchors: dict[str, _Extent | None] = {}  # None while it has not ended
        self._repeated = 0
        self._open: list[Any] = []  # lists and mappings that have not ended, the innermost last
        self._extents: list[_Extent] = []  # of those
        self._keys: list[str | None] = []  # for each, the key whose value comes next
        self._merges: list[list[Any]] = []

    def take(self, event: yaml.Event) -> None:
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise YamlError(f"{_where(event.start_mark)}a second document begins")
            case yaml.AliasEvent():
                self._alias(event, str(event.anchor))
            case yaml.ScalarEvent():
                self._scalar(event)
            case yaml.CollectionStartEvent():
                if len(self._open) >= _MAX_DEPTH:
                    raise YamlError(f"{_where(event.start_mark)}nested deeper than {_MAX_DEPTH} levels")
                value: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
                if event.anchor is not None:
                    self._anchors[event.anchor] = None
                self._add(event, value)
                self._open.append(value)
                self._extents.append(_Extent(value=value, anchor=event.anchor))
                self._keys.append(None)
                self._merges.append([])
            case yaml.CollectionEndEvent():
                value = self._open.pop()
                extent = self._extents.pop()
                self._around(extent)
                if extent.anchor is not None:
                    self._anchors[extent.anchor] = extent
                self._keys.pop()
                for merged in self._merges.pop():
                    for each in merged if isinstance(merged, list) else [merged]:
                        for key, inner in list(each.items()) if isinstance(each, dict) else ():
                            value.setdefault(key, inner)

    def _alias(self, event: yaml.AliasEvent, anchor: str) -> None:
        """Repeat what stands elsewhere: as often as a person would, and nothing within itself."""
        if anchor not in self._anchors:
            raise YamlError(f"{_where(event.start_mark)}there is no anchor {anchor[:40]!r}")
        extent = self._anchors[anchor]
        if extent is None:
            raise YamlError(f"{_where(event.start_mark)}{anchor[:40]!r} contains itself")
        self._repeated += extent.size
        if self._repeated > _MAX_REPEATED:
            raise YamlError(f"{_where(event.start_mark)}aliases repeat too much")
        if len(self._open) + extent.height > _MAX_DEPTH:
            raise YamlError(f"{_where(event.start_mark)}nested deeper than {_MAX_DEPTH} levels")
        self._around(extent)
        self._add(event, extent.value)

    def _around(self, inner: _Extent) -> None:
        if self._extents:
            outer = self._extents[-1]
            outer.size += inner.size
            outer.height = max(outer.height, inner.height + 1)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        key = bool(self._open) and isinstance(self._open[-1], dict) and self._keys[-1] is None
        plain = event.implicit[0] and event.tag is None  # neither quoted nor tagged
        value = _plain(event.value) if plain and not key else event.value
        extent = _Extent(value=value, size=1 + len(event.value), height=0)
        self._around(extent)
        if event.anchor is not None:
            self._anchors[event.anchor] = extent
        if key:
            self._keys[-1] = value  # an empty string, too, is a key
        else:
            self._add(event, value)

    def _add(self, event: yaml.Event, value: Any) -> None:
        if not self._open:
            self.root = value
        elif isinstance(self._open[-1], list):
            self._open[-1].append(value)
        elif self._keys[-1] is None:
            if not isinstance(value, str):
                raise YamlError(f"{_where(event.start_mark)}a key must be a text")
            self._keys[-1] = value
        else:
            key, self._keys[-1] = self._keys[-1], None
            if key == _MERGE:
                self._merges[-1].append(value)
            else:
                self._open[-1][key] = value


def _plain(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= _MAX_DIGITS:
        if _INTEGER.fullmatch(text):
            return int(text)
        if _NUMBER.fullmatch(text):
            return float(text)
    return text


def _where(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
