import json

import pytest

from asynclm.adapters.models import Ended, ReasoningDelta, TextDelta
from asynclm.adapters.models.anthropic_events import MessageDecoder, MessageDocumentDecoder
from asynclm.cml.usage import Usage


def sse(*events) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events
    )


def decode(*reads: bytes):
    decoder = MessageDecoder(1 << 20)
    events = []
    for data in reads:
        events += decoder.feed(data)
        if decoder.done or decoder.failure:
            return events, decoder.failure
    return events + decoder.finish(), decoder.failure


START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "claude",
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 7,
            "cache_read_input_tokens": 11,
            "output_tokens": 1,
            "service_tier": "standard",
        },
    },
}
PING = {"type": "ping"}
STOPPED = {"type": "message_stop"}


def begun(**block):
    return {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "", **block}}


def delta(**fields):
    return {"type": "content_block_delta", "index": 0, "delta": fields}


def text(piece):
    return delta(type="text_delta", text=piece)


def ended(reason, sequence=None, **usage):
    return {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": sequence},
        "usage": {"output_tokens": 3, **usage},
    }


USAGE = Usage(23, 3, 11)


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        (
            [START, begun(), PING, text("a"), text("é🙂"), {"type": "content_block_stop", "index": 0},
             ended("end_turn"), STOPPED],
            [TextDelta("a"), TextDelta("é🙂"), Ended("stop"), USAGE],
        ),
        (
            [START, begun(type="thinking", thinking="", signature=""), delta(type="thinking_delta", thinking="hm"),
             delta(type="signature_delta", signature="x"), begun(), text("a"), ended("end_turn"), STOPPED],
            [ReasoningDelta("hm"), TextDelta("a"), Ended("stop"), USAGE],
        ),
        (
            [START, text("a"),
             ended("max_tokens", input_tokens=6, cache_read_input_tokens=0,
                   output_tokens_details={"thinking_tokens": 2}), STOPPED],
            [TextDelta("a"), Ended("length"), Usage(13, 3, 0, 2)],
        ),
        ([START, ended("model_context_window_exceeded"), STOPPED], [Ended("length"), USAGE]),
        ([START, ended("refusal"), STOPPED], [Ended("content_filter"), USAGE]),
        ([START, ended("pause_turn"), STOPPED], [Ended("stop"), USAGE]),
        ([START, ended("tool_use"), STOPPED], [Ended("tool_calls"), USAGE]),
        ([START, ended("something_new"), STOPPED], [Ended("stop"), USAGE]),
        ([START, text("[TRAP"), ended("stop_sequence", "][END]"), STOPPED],
         [TextDelta("[TRAP"), TextDelta("][END]"), Ended("stop"), USAGE]),
        ([START, text("a"), ended("stop_sequence", "the client's"), STOPPED], [TextDelta("a"), Ended("stop"), USAGE]),
        ([START, text("a"), ended("end_turn")], [TextDelta("a"), Ended("stop"), USAGE]),  # no message_stop
        ([START, text("a"), STOPPED], [TextDelta("a"), Ended("stop"), Usage(23, 1, 11)]),
        ([START, {"type": "brand_new", "delta": {"type": "x"}}, delta(type="citations_delta", citation={}),
          text("a"), ended("end_turn"), STOPPED, text("too late")], [TextDelta("a"), Ended("stop"), USAGE]),
    ],
)  # fmt: skip
def test_what_the_api_sends(sent, events):
    stream = sse(*sent)
    assert decode(stream) == (events, None)
    for cut in range(0, len(stream), 3):
        assert decode(stream[:cut], stream[cut:]) == (events, None)


@pytest.mark.parametrize(
    ("type", "status"),
    [
        ("overloaded_error", 529),
        ("rate_limit_error", 429),
        ("api_error", 500),
        ("timeout_error", 504),
        ("new_error", 502),
    ],
)
def test_error_events(type, status):
    events, error = decode(sse(START, text("a"), {"type": "error", "error": {"type": type, "message": "Overloaded"}}))
    assert events == [TextDelta("a")]
    assert (error.status, error.type, error.message) == (status, type, "Overloaded")


@pytest.mark.parametrize(
    "stream", [b"", sse(START), sse(START, text("a")), sse(START, text("a"), ended("end_turn"))[:-20]]
)
def test_a_stream_that_breaks_off_fails(stream):
    _, error = decode(stream)
    assert (error.status, error.code) == (502, "upstream_disconnected")


@pytest.mark.parametrize(
    "junk", [b"{", b"[]", b'{"type": 5}', b'{"type": "content_block_delta", "delta": {"text": 5}}']
)
def test_an_event_that_cannot_be_read_fails(junk):
    events, error = decode(sse(START, text("a")) + b"data: " + junk + b"\n\n")
    assert events == [TextDelta("a")]
    assert (error.status, error.code) == (502, "upstream_malformed")


def whole(document):
    decoder = MessageDocumentDecoder(1 << 20)
    return decoder.feed(json.dumps(document).encode()) + decoder.finish(), decoder.failure


def test_a_whole_answer():
    document = {
        "type": "message",
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "[TRAP"}],
        "stop_reason": "stop_sequence",
        "stop_sequence": "][END]",
        "usage": {"input_tokens": 5, "output_tokens": 3},
    }
    assert whole(document) == (
        [ReasoningDelta("hm"), TextDelta("[TRAP"), TextDelta("][END]"), Ended("stop"), Usage(5, 3)],
        None,
    )


@pytest.mark.parametrize(
    ("document", "status"),
    [({}, 502), ([], 502), ({"type": "error", "error": {"type": "overloaded_error", "message": "x"}}, 529)],
)
def test_a_whole_answer_that_is_none(document, status):
    events, error = whole(document)
    assert (events, error.status) == ([], status)


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (b'{"type": "error", "message": "Oops"}', 502, "Oops"),
        (b'{"type": "overloaded_error", "message": "Oops"}', 529, "Oops"),
        (b'{"detail": "Oops"}', 502, "Oops"),
        (b'{"message": "Oops \\ud83d"}', 502, "Oops \ufffd"),
        (b'{"detail": "Oops \\ud83d"}', 502, "Oops \ufffd"),
    ],
)
@pytest.mark.parametrize("name", [b"", b"event: error\n"])
def test_errors_with_their_message_at_the_top(sent, status, message, name):
    _, error = decode(sse(START) + name + b"data: " + sent + b"\n\n")
    assert (error.status, error.message) == (status, message)
    _, error = whole(json.loads(sent))
    assert (error.status, error.message) == (status, message)


def test_odd_events_do_not_kill_an_answer():
    start = {"type": "message_start", "message": {"id": "\ud83d", "usage": {"input_tokens": 5.0, "output_tokens": "1"}}}
    last = {**ended("end_turn"), "usage": {"output_tokens": "many"}}
    stream = sse(start) + b"data:\n\n" + sse(text("a\ud83db"), last, {"type": "message_stop"})
    assert decode(stream) == ([TextDelta("a\ufffdb"), Ended("stop"), Usage(5, 1)], None)
