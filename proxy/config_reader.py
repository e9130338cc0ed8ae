"""Sections out of a parsed config file, checked against their structs, with errors that say where each key was set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from asynclm.proxy.config_error import ConfigError, Key, did_you_mean, dotted, reason
from asynclm.proxy.environment import Layout

S = TypeVar("S", bound=msgspec.Struct)


class Reader:
    """Reads `tree`, as parsed from `source`; `variables` says which environment variables set which keys."""

    def __init__(self, tree: dict[str, Any], source: str, variables: Mapping[Key, str], layout: Layout) -> None:
        self._tree = tree
        self._source = source
        self._variables = variables
        for name in tree:
            if name not in layout.sections:
                raise self.error((name,), f"unknown section{did_you_mean(name, layout.sections)}")

    def error(self, key: Key, why: str) -> ConfigError:
        """`why`, after the place: the environment variable that set the key (or all of its section), else the file."""
        for end in range(len(key), 0, -1):
            if key[:end] in self._variables:
                return ConfigError(f"environment variable {self._variables[key[:end]]}: {dotted(key)}: {why}")
        return ConfigError(f"{self._source}: {dotted(key)}: {why}")

    def table(self, name: str, type: type[S]) -> S:
        """The section `[name]`, all defaults where there is none."""
        return self._convert(self._tree.get(name, {}), type, (name,))

    def keyed(self, name: str, type: type[S]) -> dict[str, S]:
        """The tables `[name.KEY]`, by key."""
        tables = self._tree.get(name, {})
        if not isinstance(tables, dict):
            raise self.error((name,), f"must be tables, each with a name: [{name}.NAME]")
        return {key: self._convert(table, type, (name, key)) for key, table in tables.items()}

    def entries(self, name: str, type: type[S]) -> list[S]:
        """The tables `[[name]]`, in order."""
        tables = self._tree.get(name, [])
        if not isinstance(tables, list):
            raise self.error((name,), f"must be a list of tables: [[{name}]]")
        return [self._convert(table, type, (name, index)) for index, table in enumerate(tables)]

    def _convert(self, table: Any, type: type[S], key: Key) -> S:
        if not isinstance(table, dict):
            raise self.error(key, "must be a table")
        for name in table:
            if name not in type.__struct_fields__:
                raise self.error((*key, name), f"unknown key{did_you_mean(name, type.__struct_fields__)}")
        # One by one, because msgspec's own path leaves out the names of tables.
        for field in msgspec.structs.fields(type):
            if field.name in table:
                try:
                    msgspec.convert(table[field.name], field.type)
                except msgspec.ValidationError as error:
                    raise self.error((*key, field.name), reason(error, field.type)) from None
        return msgspec.convert(table, type)
