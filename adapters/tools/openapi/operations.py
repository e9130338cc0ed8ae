"""The operations of a document, and which of them are wanted."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import urljoin, urlsplit

import msgspec
from yarl import URL

from asynclm.adapters.tools.openapi.document import Document, Place
from asynclm.adapters.tools.options import ToolDefinitionError

METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch")


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation as the document has it: `path` as a template, `item` the path's own entry around it."""

    method: str  # in capitals
    path: str
    id: str | None
    place: Place
    item: Place

    @property
    def shown(self) -> str:
        """`GET /pets/{id}`, by which it can be named in the config, too."""
        return f"{self.method} {self.path}"

    def matches(self, pattern: str) -> bool:
        """Whether the pattern (`*`, `?`, `[...]`) is its id, or its method and path."""
        return any(fnmatchcase(name, pattern) for name in (self.id, self.shown) if name)


def operations(document: Document) -> list[Operation]:
    """All of them, in their order. Raises `ToolDefinitionError`."""
    return list(_operations(document))


def _operations(document: Document) -> Iterator[Operation]:
    paths = document.root.at("paths")
    for path in paths.value or {}:
        if not str(path).startswith("/"):
            if str(path).startswith("x-"):
                continue
            raise ToolDefinitionError(f"paths: {str(path)[:100]!r} does not begin with a slash")
        item = document.follow(paths.at(path))
        if not isinstance(item.value, dict):
            raise ToolDefinitionError(f"{item.shown}: must be an object")
        for method in METHODS:
            if method in item.value:
                place = item.at(method)
                if not isinstance(place.value, dict):
                    raise ToolDefinitionError(f"{place.shown}: must be an object")
                id = place.value.get("operationId")
                yield Operation(
                    method=method.upper(),
                    path=path,
                    id=id if isinstance(id, str) and id.strip() else None,
                    place=place,
                    item=item,
                )


def wanted(found: Sequence[Operation], include: Sequence[str] | None, exclude: Sequence[str]) -> list[Operation]:
    """Those that a pattern of `include` matches (None: all) and none of `exclude`.

    Raises `ToolDefinitionError` for a pattern of `include` that matches nothing.
    """
    for pattern in include or ():
        if not any(operation.matches(pattern) for operation in found):
            names = [name for operation in found for name in (operation.id, operation.shown) if name]
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ToolDefinitionError(f"include: no operation is called {pattern!r}{hint}")
    return [
        operation
        for operation in found
        if (include is None or any(operation.matches(pattern) for pattern in include))
        and not any(operation.matches(pattern) for pattern in exclude)
    ]


def server(document: Document, operation: Operation) -> URL:
    """Where the operation's path is appended to: the first server of the operation, of its path, or of the document.

    Raises `ToolDefinitionError` where that is no http(s) address.
    """
    for place in (operation.place, operation.item, document.root):
        first = place.at("servers", 0)
        if isinstance(first.value, dict):
            break
    template = first.value.get("url", "/") if isinstance(first.value, dict) else "/"
    variables = first.at("variables").value
    for name, variable in variables.items() if isinstance(variables, dict) else ():
        default = variable.get("default") if isinstance(variable, dict) else None
        template = str(template).replace(f"{{{name}}}", str(default))
    try:
        address = urljoin(document.uri, str(template))
    except ValueError:
        address = ""
    if urlsplit(address).scheme == "file":
        raise ToolDefinitionError("the document names no server: say where it is (base_url)")
    return base_url(address)


def base_url(address: str) -> URL:
    """An http(s) address without query, fragment and slash at its end. Raises `ToolDefinitionError`; quotes no key."""
    try:
        url = URL(address)
        valid = url.scheme in ("http", "https") and url.host and url.port and not {"{", "}"} & set(address)
    except ValueError:
        valid = False
    if not valid:
        raise ToolDefinitionError("its server is no http(s) address: say where it is (base_url)")
    return url.with_user(None).with_query(None).with_fragment(None).with_path(url.raw_path.rstrip("/"), encoded=True)
