"""YAML as OpenAPI means it: the values that JSON has, whatever the text looks like.

`no`, `12:30` and `2020-01-01` are strings, and so is every key; tags make nothing. Built from the parser's events,
without recursion: the library's own composing of nodes overflows the stack of the process on a text of many brackets.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

_MAX_DEPTH: Final = 200
_MERGE: Final = "<<"
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORDS: Final = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}
_MAX_DIGITS: Final = 400
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


class _Builder:
    def __init__(self) -> None:
        self.root: Any = None
        self._documents = 0
        self._anchors: dict[str, Any] = {}
        self._open: list[Any] = []  # lists and mappings that have not ended, the innermost last
        self._keys: list[str | None] = []  # for each, the key whose value comes next
        self._merges: list[list[Any]] = []

    def take(self, event: yaml.Event) -> None:
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise YamlError(f"{_where(event.start_mark)}a second document begins")
            case yaml.AliasEvent():
                if event.anchor not in self._anchors:
                    raise YamlError(f"{_where(event.start_mark)}there is no anchor {str(event.anchor)[:40]!r}")
                self._add(event, self._anchors[event.anchor])
            case yaml.ScalarEvent():
                self._scalar(event)
            case yaml.CollectionStartEvent():
                if len(self._open) >= _MAX_DEPTH:
                    raise YamlError(f"{_where(event.start_mark)}nested deeper than {_MAX_DEPTH} levels")
                value: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
                self._name(event, value)
                self._add(event, value)
                self._open.append(value)
                self._keys.append(None)
                self._merges.append([])
            case yaml.CollectionEndEvent():
                value = self._open.pop()
                self._keys.pop()
                for merged in self._merges.pop():
                    for each in merged if isinstance(merged, list) else [merged]:
                        for key, inner in list(each.items()) if isinstance(each, dict) else ():
                            value.setdefault(key, inner)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        plain = event.implicit[0] and event.tag is None  # neither quoted nor tagged
        if self._open and isinstance(self._open[-1], dict) and self._keys[-1] is None:
            # An empty string, too, is a key.
            self._keys[-1] = event.value
            self._name(event, event.value)
            return
        value = _plain(event.value) if plain else event.value
        self._name(event, value)
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

    def _name(self, event: Any, value: Any) -> None:
        if event.anchor is not None:
            self._anchors[event.anchor] = value


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
