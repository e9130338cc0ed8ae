"""From what a server answers to a call, to the value that the model reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
)

from asynclm.cml.tools import CallError

_MAX_ERROR: Final = 2000


def result_value(result: CallToolResult) -> object:
    """The value of a result: its structured content if it has any, else its content.

    Text blocks are joined by newlines, and decoded if they make a JSON object or array. (A text that looks like another
    JSON value stays text: "1.10" may be a version.) Where there is more than text, the value is a list of the blocks;
    images, sound and other bytes are only described. Raises `CallError` for a result that says that it is an error.
    """
    if result.is_error:
        raise CallError("tool_error", _error(result))
    if result.structured_content is not None:
        return result.structured_content
    texts = [block.text for block in result.content if isinstance(block, TextContent)]
    if len(texts) == len(result.content):
        return _decoded("\n".join(texts)) if texts else None
    blocks = [_described(block) for block in result.content]
    return blocks[0] if len(blocks) == 1 else blocks


def without_keys(value: object, keys: Iterable[str]) -> object:
    """The value of a result without keys that the server echoes."""
    text = whole = json.dumps(value, ensure_ascii=False)
    for key in keys:
        text = text.replace(json.dumps(key, ensure_ascii=False)[1:-1], "[key]")
    return value if text == whole else json.loads(text)


def _error(result: CallToolResult) -> str:
    text = "\n".join(block.text for block in result.content if isinstance(block, TextContent)).strip()
    if not text and result.structured_content is not None:
        text = json.dumps(result.structured_content, ensure_ascii=False)
    return text[:_MAX_ERROR] or "the tool failed and did not say why"


def _decoded(text: str) -> object:
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are no JSON


def _described(block: ContentBlock) -> object:
    match block:
        case TextContent():
            return _decoded(block.text)
        case ImageContent() | AudioContent():
            return {"type": block.type, "mime_type": block.mime_type, "bytes": _size(block.data)}
        case ResourceLink():
            named = {"uri": block.uri, "name": block.name, "description": block.description}
            return {"type": block.type, **_said({**named, "mime_type": block.mime_type})}
        case EmbeddedResource():
            contents = block.resource
            said = _said({"uri": contents.uri, "mime_type": contents.mime_type})
            if isinstance(contents, BlobResourceContents):
                return {"type": block.type, **said, "bytes": _size(contents.blob)}
            return {"type": block.type, **said, "text": contents.text}


def _said(fields: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in fields.items() if value is not None}


def _size(base64: str) -> int:
    return len(base64) * 3 // 4 - base64[-2:].count("=")
