"""What the model reads of a server's result."""

from typing import Any

import pytest
from mcp_types import CallToolResult

from asynclm.adapters.tools.mcp.results import result_value
from asynclm.cml.tools import CallError


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def value(*content: dict[str, Any], **more: Any) -> object:
    return result_value(CallToolResult.model_validate({"content": list(content), **more}))


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ([], None),
        ([text("hi")], "hi"),
        ([text("")], ""),
        ([text("a"), text("b")], "a\nb"),
        ([text(' {"a": [1, 2.5, null]}\n')], {"a": [1, 2.5, None]}),
        ([text("[1,"), text("2]")], [1, 2]),
        ([text("{not json")], "{not json"),
        ([text('{"a": NaN}')], '{"a": NaN}'),
        ([text("[" * 100_000)], "[" * 100_000),
        ([text("1.10")], "1.10"),  # it may be a version
        ([text("true")], "true"),
    ],
)
def test_text(content: list[dict[str, Any]], wanted: object) -> None:
    assert value(*content) == wanted


def test_structured_content_wins() -> None:
    assert value(text("4 degrees"), structuredContent={"celsius": 4}) == {"celsius": 4}
    assert value(text("nothing"), structuredContent={}) == {}


def test_what_is_no_text_is_described() -> None:
    image = {"type": "image", "data": "aGVsbG8=", "mimeType": "image/png"}
    sound = {"type": "audio", "data": "aGVsbG8h", "mimeType": "audio/wav"}
    link = {"type": "resource_link", "uri": "file:///a.txt", "name": "a", "mimeType": "text/plain"}
    inside = {"type": "resource", "resource": {"uri": "file:///b.txt", "text": "b"}}
    blob = {"type": "resource", "resource": {"uri": "file:///c", "blob": "aGVsbG8=", "mimeType": "x/y"}}
    assert value(image) == {"type": "image", "mime_type": "image/png", "bytes": 5}
    assert value(text("look"), image, sound, link, inside, blob) == [
        "look",
        {"type": "image", "mime_type": "image/png", "bytes": 5},
        {"type": "audio", "mime_type": "audio/wav", "bytes": 6},
        {"type": "resource_link", "uri": "file:///a.txt", "name": "a", "mime_type": "text/plain"},
        {"type": "resource", "uri": "file:///b.txt", "text": "b"},
        {"type": "resource", "uri": "file:///c", "mime_type": "x/y", "bytes": 5},
    ]


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ([text("no such city"), text("try Oslo")], {}, "no such city\ntry Oslo"),
        ([], {"structuredContent": {"code": 5}}, '{"code": 5}'),
        ([], {}, "the tool failed and did not say why"),
        ([text("x" * 50_000)], {}, "x" * 2000),
    ],
)
def test_errors(content: list[dict[str, Any]], more: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as caught:
        value(*content, isError=True, **more)
    assert (caught.value.type, caught.value.message) == ("tool_error", message)
