"""Lines out of bytes, in bounded memory."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.adapters.tools.mcp.lines import Lines, TooLong


@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"."))), st.data())
def test_any_split_gives_the_same_lines(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    split = Lines(20)
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += split.feed(whole[start:end])
    wanted = [line if len(line) <= 20 else TooLong(line, line, len(line)) for line in lines]
    assert found == wanted


def test_of_a_long_line_only_the_ends_are_kept() -> None:
    lines = Lines(1000)
    for _ in range(100):
        assert list(lines.feed(b"x" * 10_000)) == []
    (line,) = lines.feed(b"the end\n")
    assert isinstance(line, TooLong)
    assert (len(line.head), len(line.tail), line.size) == (256, 256, 1_000_007)
    assert line.tail.endswith(b"xthe end")
    assert list(lines.feed(b"next\n")) == [b"next"]


LONG = {"content": [{"type": "text", "text": "x" * 1000}]}


@pytest.mark.parametrize(
    ("message", "id"),
    [
        ({"jsonrpc": "2.0", "id": 12, "result": LONG}, 12),
        ({"id": 12, "jsonrpc": "2.0", "result": LONG}, 12),
        ({"id": 3, "error": {"code": 1, "message": "x" * 1000}}, 3),
        ({"result": LONG, "jsonrpc": "2.0", "id": 7}, 7),
        ({"result": LONG, "id": 7, "jsonrpc": "2.0"}, 7),
        ({"jsonrpc": "2.0", "id": "listen-4", "result": LONG}, "listen-4"),
        # not answers, or not to be seen
        ({"jsonrpc": "2.0", "id": 12, "method": "sampling/createMessage", "params": LONG}, None),
        ({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x" * 1000}}, None),
        ({"jsonrpc": "2.0", "result": {"a": "x" * 1000, "b": {"id": 5}}}, None),
        ("x" * 1000, None),
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_which_call_a_long_line_answers(message: object, id: object, separators: tuple[str, str]) -> None:
    lines = Lines(500)
    (line,) = lines.feed(json.dumps(message, separators=separators).encode() + b"\n")
    assert isinstance(line, TooLong)
    assert line.answers() == id
