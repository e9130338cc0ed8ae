"""An OpenAPI document: read from a file or an address, with the documents that it refers to, and its `$ref`s resolved.

Documents come from outside, so size, depth and number are bounded, and a reference never leads from an address to a
file, nor to another host.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

import msgspec
import referencing
import referencing.exceptions

from asynclm.adapters.tools.openapi.yaml_values import YamlError, read_yaml
from asynclm.adapters.tools.options import ToolDefinitionError

MAX_BYTES: Final = 32 * 2**20
_MAX_DOCUMENTS: Final = 64
_MAX_HOPS: Final = 32
_VERSIONS: Final = ("3.0", "3.1", "3.2")

# What has no part in making a request, under names that the specification gives.
_IGNORED: Final = frozenset(
    {"responses", "callbacks", "webhooks", "links", "example", "examples", "default", "enum", "const", "headers"}
)
_NAMES: Final = frozenset(
    {"properties", "patternProperties", "$defs", "schemas", "parameters", "requestBodies", "paths"}
)

Fetch = Callable[[str], Awaitable[bytes]]


class Place(NamedTuple):
    """A part of a document, and where it stands: the document's URI and a JSON pointer into it."""

    value: Any
    uri: str
    pointer: str

    def at(self, *steps: str | int) -> Place:
        """What stands below; its value is None where there is nothing."""
        value, pointer = self.value, self.pointer
        for step in steps:
            if isinstance(value, list) and isinstance(step, int):
                value = value[step] if step < len(value) else None
            else:
                value = value.get(step) if isinstance(value, dict) else None
            pointer += f"/{_escaped(step)}"
        return Place(value, self.uri, pointer)

    @property
    def shown(self) -> str:
        """Where it stands, for people: `paths./pets.get`."""
        steps = [step.replace("~1", "/").replace("~0", "~") for step in self.pointer.split("/")[1:]]
        return ".".join(steps) or "the document"


class Document:
    """A document and those it refers to, all loaded. Nothing is fetched any more."""

    def __init__(self, uri: str, contents: dict[str, Any]) -> None:
        self.uri = uri
        self.root = Place(contents[uri], uri, "")
        self.version = str(self.root.value["openapi"])
        self._targets: dict[tuple[str, str], Place] = {}
        self._registry: referencing.Registry[Any] = referencing.Registry().with_resources(
            (each, referencing.Specification.OPAQUE.create_resource(content)) for each, content in contents.items()
        )

    def follow(self, place: Place) -> Place:
        """The place itself, or what its `$ref` leads to in the end. Raises `ToolDefinitionError`."""
        for _ in range(_MAX_HOPS):
            reference = place.value.get("$ref") if isinstance(place.value, dict) else None
            if not isinstance(reference, str):
                return place
            place = self.target(place, reference)
        raise ToolDefinitionError(f"{place.shown}: its $ref leads in a circle")

    def target(self, place: Place, reference: str) -> Place:
        """What `reference`, which stands at `place`, leads to: one step. Raises `ToolDefinitionError`."""
        known = self._targets.get((place.uri, reference))
        if known is not None:
            return known
        try:
            uri, fragment = urldefrag(urljoin(place.uri, reference))
            value = self._registry.resolver(uri).lookup(f"#{fragment}").contents
        except (referencing.exceptions.Unresolvable, ValueError, TypeError, AttributeError):
            raise ToolDefinitionError(f"{place.shown}: there is no {reference[:200]!r}") from None
        found = self._targets[place.uri, reference] = Place(value, uri, unquote(fragment).rstrip("/"))
        return found


async def load(location: str, base: Path, fetch: Fetch) -> Document:
    """Load from an http(s) address, with `fetch`, or from a file, relative to `base`.

    Raises `ToolDefinitionError`, and what `fetch` raises.
    """
    local = urlsplit(location).scheme not in ("http", "https")
    uri = _file_uri(base, location) if local else urldefrag(location).url
    contents: dict[str, Any] = {}
    todo = [uri]
    while todo:
        each = todo.pop()
        if len(contents) >= _MAX_DOCUMENTS:
            raise ToolDefinitionError(f"it refers to more than {_MAX_DOCUMENTS} other documents")
        try:
            text = await asyncio.to_thread(_read_file, each) if local else await fetch(each)
            content = await asyncio.to_thread(_parse, text)
        except ToolDefinitionError as error:
            if each == uri:
                raise
            raise ToolDefinitionError(f"{without_secrets(each)}: {error}") from None
        if each == uri:
            _check(content)
        contents[each] = content
        for reference in _references(content):
            try:
                other = urldefrag(urljoin(each, reference)).url
            except ValueError:
                raise ToolDefinitionError(f"{reference[:200]!r} is no reference") from None
            if other not in contents and other not in todo:
                _check_reach(uri, other, reference)
                todo.append(other)
    return Document(uri, contents)


def without_secrets(location: str) -> str:
    """A document's location, for messages: an address without its query and user."""
    try:
        parts = urlsplit(location)
    except ValueError:
        raise ToolDefinitionError("openapi: it is neither a file nor an address") from None
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme in ("http", "https") else location


def _file_uri(base: Path, location: str) -> str:
    try:
        return (base / Path(location).expanduser()).resolve().as_uri()
    except RuntimeError:  # "~name"
        raise ToolDefinitionError("there is no such home folder") from None


def _read_file(uri: str) -> bytes:
    path = _path(uri)
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a pipe or a device may never end
            raise ToolDefinitionError(f"{path} can't be read: it is no file")
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ToolDefinitionError(f"{path} is larger than {MAX_BYTES} bytes")
        return text
    except OSError as error:
        raise ToolDefinitionError(f"{path} can't be read: {error.strerror}") from None


def _path(uri: str) -> Path:
    return Path(url2pathname(urlsplit(uri).path))


def _check_reach(uri: str, other: str, reference: str) -> None:
    own, to = urlsplit(uri), urlsplit(other)
    if own.scheme == "file":
        folder = _path(uri).parent
        if to.scheme == "file" and not to.netloc and _path(other).resolve().is_relative_to(folder):
            return
        raise ToolDefinitionError(f"{reference[:200]!r} is not in the folder of the document, so it is not read")
    if (to.scheme, to.netloc) != (own.scheme, own.netloc):
        raise ToolDefinitionError(f"{reference[:200]!r} is not on the host of the document, so it is not read")


def _references(content: Any) -> Iterator[str]:
    """Every `$ref` into another document, where it matters for requests."""
    seen: set[int] = set()
    todo: list[tuple[Any, bool]] = [(content, False)]  # with whether its keys are names that the author chose
    while todo:
        part, names = todo.pop()
        if not isinstance(part, dict | list) or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, list):
            todo += [(each, False) for each in part]
            continue
        reference = part.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#") and not names:
            yield reference
        for key, value in part.items():
            if names or not (key in _IGNORED or str(key).startswith("x-")):
                todo.append((value, not names and key in _NAMES))


def _parse(text: bytes) -> Any:
    if text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        try:
            return msgspec.json.decode(text.removeprefix(b"\xef\xbb\xbf"))
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # YAML may begin like this, too; if not, its error says as much
        except RecursionError:
            raise ToolDefinitionError("it is nested too deeply") from None
    try:
        return read_yaml(text)
    except YamlError as error:
        raise ToolDefinitionError(f"it is neither JSON nor YAML: {error}") from None


def _check(content: Any) -> None:
    if not isinstance(content, dict) or not {"openapi", "swagger"} & content.keys():
        raise ToolDefinitionError('it is no OpenAPI document: it has no "openapi" key')
    if "swagger" in content:
        raise ToolDefinitionError(
            f"it is of version {str(content['swagger'])[:20]} (Swagger); OpenAPI 3.0 and 3.1 are understood: "
            "convert it (npx swagger2openapi)"
        )
    version = str(content["openapi"])  # YAML reads 3.1 as a number
    if not version.startswith(_VERSIONS):
        raise ToolDefinitionError(f"it is of OpenAPI version {version[:20]!r}; 3.0 and 3.1 are understood")
    if not isinstance(content.get("paths", {}), dict):
        raise ToolDefinitionError("paths: must be an object")


def _escaped(step: str | int) -> str:
    return str(step).replace("~", "~0").replace("/", "~1")
