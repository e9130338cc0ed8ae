import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.adapters.models.chat_completions import ChatDecoder, ChatDocumentDecoder
from asynclm.adapters.models.protocol import Ended, ReasoningDelta, TextDelta
from asynclm.cml.usage import Usage


def sse(*events) -> bytes:
    return b"".join(
        b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n" for event in events
    )


def delta(finish=None, **fields):
    return {"id": "c", "choices": [{"index": 0, "delta": fields, "logprobs": None, "finish_reason": finish}]}


def decode(*reads: bytes, limit=1 << 20):
    decoder = ChatDecoder(limit)
    events = []
    for data in reads:
        events += decoder.feed(data)
        if decoder.done or decoder.failure:
            return events, decoder.failure
    return events + decoder.finish(), decoder.failure


USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 3,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": None},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
DONE = b"[DONE]"
STOP = delta("stop")


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        ([delta(role="assistant", content=""), delta(content="a"), delta(content="é🙂"), STOP, DONE], "a é🙂 END"),
        ([delta(content="a", finish="length"), DONE], [TextDelta("a"), Ended("length")]),
        ([delta(content="a"), STOP], "a END"),  # no [DONE]
        ([delta(content="a"), DONE], "a END"),  # no finish reason
        ([delta(content=None), {"choices": []}, {"id": "x"}, {}, {"choices": None}, STOP, DONE], "END"),
        ([{"choices": [{"delta": None, "finish_reason": ""}, {"index": 1}]}, STOP, DONE], "END"),
        ([{"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "stop"}]}, STOP], "END"),
        ([{"choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "no"}}]}, STOP],
         "a END"),
        ([{"choices": [{"delta": {"content": "a"}}]}, STOP, DONE], "a END"),  # no index
        ([delta(refusal="I can't"), STOP, DONE], [TextDelta("I can't"), Ended("stop")]),
        ([delta(reasoning_content="hm"), delta(content="a"), STOP],
         [ReasoningDelta("hm"), TextDelta("a"), Ended("stop")]),
        ([delta(reasoning="hm"), STOP], [ReasoningDelta("hm", "reasoning"), Ended("stop")]),
        (
            [delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
             delta(content=[{"type": "text", "text": "a"}, {"type": "reference", "reference_ids": [1]}]), STOP],
            [ReasoningDelta("hm"), TextDelta("a"), Ended("stop")],
        ),
        ([delta("tool_calls", tool_calls=[{"index": 0, "id": "x"}]), DONE], [Ended("tool_calls")]),
        ([STOP, STOP, delta(content="too late"), DONE], "END"),
        ([delta(content="a"), STOP, DONE, delta(content="too late")], "a END"),
        ([STOP, {"choices": [], "usage": USAGE}, DONE], [Ended("stop"), Usage(9, 3, 4, 2)]),
        ([STOP, {"choices": [], "usage": USAGE}], [Ended("stop"), Usage(9, 3, 4, 2)]),
        (
            [{**delta(content="a"), "usage": {"prompt_tokens": 1, "completion_tokens": 1}}, {**STOP, "usage": USAGE},
             DONE],
            [TextDelta("a"), Ended("stop"), Usage(9, 3, 4, 2)],
        ),
        ([{**STOP, "usage": {"prompt_tokens": 5, "prompt_cache_hit_tokens": 3}}, DONE],
         [Ended("stop"), Usage(5, 0, 3)]),
    ],
)  # fmt: skip
def test_what_servers_send(sent, events):
    if isinstance(events, str):
        events = [Ended("stop") if word == "END" else TextDelta(word) for word in events.split()]
    assert decode(sse(*sent)) == (events, None)
    stream = sse(*sent)
    for cut in range(len(stream)):
        assert decode(stream[:cut], stream[cut:]) == (events, None)


@pytest.mark.parametrize(
    ("sent", "status", "type", "code", "message"),
    [
        ({"error": {"message": "Oops", "type": "server_error", "code": None}}, 502, "server_error", None, "Oops"),
        ({"error": {"message": "Slow down", "type": "rate_limit", "code": 429}}, 429, "rate_limit", "429", "Slow down"),
        ({"error": {"message": "Bad", "type": "BadRequestError", "code": "400"}}, 400, "BadRequestError", "400", "Bad"),
        ({"error": {"message": "Odd", "code": 200}}, 502, "upstream_error", "200", "Odd"),
        ({"error": "plain"}, 502, "upstream_error", None, "plain"),
        ({"message": "Top", "type": "t", "code": 429}, 429, "t", "429", "Top"),
        ({"object": "error", "message": "vLLM's", "code": 400}, 400, "invalid_request_error", "400", "vLLM's"),
        ({"detail": "FastAPI's"}, 502, "upstream_error", None, "FastAPI's"),
        ({**delta(content=""), "error": {"message": "OpenRouter's"}}, 502, "upstream_error", None, "OpenRouter's"),
    ],
)
def test_an_error_event_fails_the_stream_behind_the_text_before_it(sent, status, type, code, message):
    events, error = decode(sse(delta(content="a"), sent, DONE))
    assert events == [TextDelta("a")]
    assert (error.status, error.type, error.code, error.message) == (status, type, code, message)


@pytest.mark.parametrize(
    "junk",
    [b"{", b"not json", b"[1]", b"null", b'{"choices": 3}', b'{"choices": [{"delta": {"content": 5}}]}', b'"\xff"'],
)
def test_an_event_that_cannot_be_read_fails_the_stream(junk):
    events, error = decode(sse(delta(content="a"), junk, delta(content="b")))
    assert events == [TextDelta("a")]
    assert (error.status, error.code) == (502, "upstream_malformed")


def test_an_event_over_the_limit_fails_the_stream():
    events, error = decode(sse(delta(content="a")), b'data: {"x": "', b"y" * 600, b"y" * 600, limit=1000)
    assert events == [TextDelta("a")]
    assert (error.status, error.code) == (502, "upstream_malformed")


@pytest.mark.parametrize("stream", [b"", b": hi\n\n", b"\xff\x00junk", sse(delta(content="a")), sse(STOP)[:-9]])
def test_a_stream_that_breaks_off_before_the_model_stopped_fails(stream):
    _, error = decode(stream)
    assert (error.status, error.code) == (502, "upstream_disconnected")


def test_an_error_event_counts_even_if_it_is_the_last_thing_that_came():
    _, error = decode(b'data: {"error": {"message": "Oops", "code": 503}}')
    assert (error.status, error.message) == (503, "Oops")


@given(st.lists(st.text(min_size=1)), st.integers(1, 50))
def test_any_text_in_any_split(texts, size):
    stream = sse(*(delta(content=text) for text in texts), STOP, DONE)
    reads = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert decode(*reads) == ([*(TextDelta(text) for text in texts), Ended("stop")], None)


@given(st.lists(st.binary(max_size=60).filter(lambda read: DONE not in read)))
def test_junk_never_raises(reads):
    events, error = decode(*(b"data: " + read for read in reads), limit=100)
    assert error is not None
    assert not any(isinstance(event, Ended) for event in events)


def whole(document: bytes, limit=1000):
    decoder = ChatDocumentDecoder(limit)
    events = decoder.feed(document[:7]) + decoder.feed(document[7:])
    return events if decoder.failure else events + decoder.finish(), decoder.failure


def test_a_whole_answer():
    message = {"role": "assistant", "content": "a", "reasoning_content": "hm", "refusal": None}
    document = {"choices": [{"index": 0, "message": message, "finish_reason": "length"}], "usage": USAGE}
    assert whole(json.dumps(document).encode()) == (
        [ReasoningDelta("hm"), TextDelta("a"), Ended("length"), Usage(9, 3, 4, 2)],
        None,
    )


@pytest.mark.parametrize(
    ("document", "status", "code"),
    [
        (b"", 502, "upstream_malformed"),
        (b"{}", 502, "upstream_malformed"),
        (b'{"choices": [{"index": 0}]}', 502, "upstream_malformed"),
        (b'{"error": {"message": "x", "code": 429}}', 429, "429"),
        (b'"' + b"x" * 2000, 502, "upstream_malformed"),
    ],
)
def test_a_whole_answer_that_is_none(document, status, code):
    events, error = whole(document)
    assert (events, error.status, error.code) == ([], status, code)


def test_an_emoji_cut_between_its_surrogates():
    decoder = ChatDecoder(1 << 20)
    found = []
    for content in (r"so \ud83d", r"\ude00 and \ud83d\ude01", r" \ud83d", r"x"):
        found += decoder.feed(b'data: {"choices": [{"index": 0, "delta": {"content": "%b"}}]}\n\n' % content.encode())
    assert (
        "".join(event.text for event in found) == "so \N{GRINNING FACE} and \N{GRINNING FACE WITH SMILING EYES} \ufffdx"
    )
    assert decoder.failure is None
    decoder.feed(rb'data: {"choices": [{"index": 0, "delta": {"content": "\ud83d}}]}' + b"\n\n")
    assert decoder.failure is not None


@pytest.mark.parametrize("count", [7.0, "7", "7.0"])
def test_token_counts_that_are_no_whole_numbers(count):
    usage = {"prompt_tokens": count, "completion_tokens": 1}
    sent = sse({**delta(content="a"), "usage": usage}, {**STOP, "usage": usage}, DONE)
    assert decode(sent) == ([TextDelta("a"), Ended("stop"), Usage(7, 1)], None)


@pytest.mark.parametrize("usage", [5, [], "x", {"prompt_tokens": 7.5}, {"prompt_tokens": {}}, {"prompt_tokens": 1e999}])
def test_usage_that_cannot_be_read_is_left_out(usage):
    sent = sse({**delta(content="a"), "usage": usage}, STOP, DONE)
    assert decode(sent) == ([TextDelta("a"), Ended("stop")], None)
    document = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": usage}
    assert whole(json.dumps(document).encode()) == ([TextDelta("a"), Ended("stop")], None)


@pytest.mark.parametrize("empty", [b"data:\n\n", b"data: \n\n", b"data:  \n\n", b"data\n\n", b"event: ping\ndata:\n\n"])
def test_events_without_data_say_nothing(empty):
    assert decode(empty + sse(delta(content="a")) + empty + sse(STOP, DONE)) == ([TextDelta("a"), Ended("stop")], None)


def test_half_a_surrogate_pair_anywhere():
    for half in ("\ud83d", "\ude00"):
        sent = sse({**delta(content="a"), "id": half, half: [half]}, delta(content=f"x{half}y"), STOP, DONE)
        assert decode(sent) == ([TextDelta("a"), TextDelta("x\ufffdy"), Ended("stop")], None)
    assert decode(sse(delta("stop", content="x\ud83d"), DONE)) == ([TextDelta("x\ufffd"), Ended("stop")], None)
    sent = sse(delta(content="x\ud83d"), STOP, DONE)
    assert decode(sent) == ([TextDelta("x"), TextDelta("\ufffd"), Ended("stop")], None)
    document = {"choices": [{"message": {"content": "\ud83dx"}, "finish_reason": "stop"}]}
    assert whole(json.dumps(document).encode()) == ([TextDelta("\ufffdx"), Ended("stop")], None)


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning", "refusal"])
def test_a_pair_that_is_cut_in_any_text(field):
    events, error = decode(sse(delta(**{field: "a\ud83d"}), delta(role="assistant"), delta(**{field: "\ude00b"}), STOP))
    assert error is None
    assert "".join(event.text for event in events[:-1]) == "a\N{GRINNING FACE}b"


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b'{"message": "Oops", "type": "t"}', 502, "Oops"),
        (b'{"error": {"message": "Oops", "code": 503}}', 503, "Oops"),
        (b'{"detail": "Oops"}', 502, "Oops"),
        (b'{"status": 429, "message": "Oops"}', 429, "Oops"),
        (b'"Oops"', 502, "Oops"),
        (b"Oops, not JSON", 502, "Oops, not JSON"),
        (b"", 502, "The upstream reported an error without a word about it."),
    ],
)
def test_an_event_that_is_named_error(data, status, message):
    events, error = decode(sse(delta(content="a")) + b"event: error\ndata: " + data + b"\n\n" + sse(STOP, DONE))
    assert events == [TextDelta("a")]
    assert (error.status, error.message) == (status, message)


def test_an_error_with_half_a_surrogate_pair():
    for sent in ({"message": "x\ud83d"}, {"error": {"message": "x\ud83d"}}, {"detail": "x\ud83d"}):
        assert decode(sse(sent))[1].message == "x\ufffd"
        assert whole(json.dumps(sent).encode())[1].message == "x\ufffd"


@pytest.mark.parametrize("document", [{"message": "Oops"}, {"detail": "Oops"}, {"object": "error", "message": "Oops"}])
def test_a_whole_answer_that_is_an_error(document):
    events, error = whole(json.dumps(document).encode())
    assert (events, error.status, error.message) == ([], 502, "Oops")
