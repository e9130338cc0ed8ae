"""The names of the client's own tools and of their arguments, as the model writes them and as the client does. Pure."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Mapping
from typing import Any

import msgspec

from asynclm.adapters.tools.identifiers import identifier_characters


class ClientNames(msgspec.Struct, frozen=True):
    """`tools` leads from a name as the model writes it to the client's, `arguments` does so for each tool (by its name
    as the model writes it) that has arguments of other names.
    """

    tools: Mapping[str, str] = {}
    arguments: Mapping[str, Mapping[str, str]] = {}

    def theirs(self, tool: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """A call of the model's, as the client knows it."""
        names = self.arguments.get(tool, {})
        return self.tools.get(tool, tool), {names.get(name, name): value for name, value in arguments.items()}

    def ours(self, tool: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """A call of the client's, as the model writes it."""
        name = next((ours for ours, theirs in self.tools.items() if theirs == tool), None) or python_name(tool)
        names = {theirs: ours for ours, theirs in self.arguments.get(name, {}).items()}
        return name, {names.get(each, each): value for each, value in arguments.items()}


def python_name(name: str) -> str:
    """A name that a model can write a Python call with: what can't stand in one becomes `_`."""
    parts = unicodedata.normalize("NFKC", name).split(".")
    return ".".join(map(_identifier, parts))


def _identifier(part: str) -> str:
    part = identifier_characters(part)
    return part if part.isidentifier() and not keyword.iskeyword(part) else f"_{part}"
