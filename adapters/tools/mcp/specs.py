"""From how a server describes its tools, to how the model and the run machine see them."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Final

from mcp_types import Tool as Described
from mcp_types import ToolAnnotations

from asynclm.adapters.tools.identifiers import identifier_characters
from asynclm.adapters.tools.options import Options
from asynclm.cml.tools import Effect, ToolSpec

_MAX_DESCRIPTION: Final = 4096


def effect_of(annotations: ToolAnnotations | None) -> Effect:
    """What a server says that a tool does to the world.

    `readOnlyHint` makes it read-only and `idempotentHint` idempotent, unless `destructiveHint` stands beside it: what
    destroys is not to be repeated, or left out because it was done before. Nothing said means effectful.
    """
    if annotations is None or annotations.destructive_hint:
        return Effect.EFFECTFUL
    if annotations.read_only_hint:
        return Effect.READ_ONLY
    return Effect.IDEMPOTENT if annotations.idempotent_hint else Effect.EFFECTFUL


def spec_of(
    tool: Described, options: Options, *, name: str, timeout_s: float, parameters: dict[str, Any] | None = None
) -> ToolSpec:
    """The tool's spec under this name; `options` win over what the server says, as `parameters` do over its schema."""
    annotations = tool.annotations
    said = tool.description or tool.title or (annotations and annotations.title) or ""
    description = said if options.description is None else options.description
    if len(description) > _MAX_DESCRIPTION:
        description = f"{description[:_MAX_DESCRIPTION]}..."
    return ToolSpec(
        name=name,
        description=description,
        parameters=tool.input_schema if parameters is None else parameters,
        estimate_ms=options.estimate_ms,
        effect=options.effect or effect_of(annotations),
        timeout_s=options.timeout_s or timeout_s,
        concurrency=options.concurrency,
        **options.caching(),
    )


def callable_name(name: str, prefix: str | None = None) -> str:
    """A name that a Python call can be written with: `search-files` is `search_files`, with a prefix `fs_search_files`.

    Dots between identifiers stay.
    """
    whole = f"{prefix}_{name}" if prefix else name
    return ".".join(_identifier(part) for part in unicodedata.normalize("NFKC", whole).split("."))


def _identifier(text: str) -> str:
    text = identifier_characters(text) or "_"
    if keyword.iskeyword(text):
        return f"{text}_"
    return text if text.isidentifier() else f"_{text}"


def wanted(name: str, include: Iterable[str] | None, exclude: Iterable[str]) -> bool:
    """Whether a tool of this name (the server's own) is to be offered: patterns as in a shell, `exclude` wins."""
    return (include is None or any(fnmatchcase(name, pattern) for pattern in include)) and not any(
        fnmatchcase(name, pattern) for pattern in exclude
    )
