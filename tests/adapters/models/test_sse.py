import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.adapters.models.sse import Event, Splitter


def split(*reads: bytes, limit: int = 1 << 20) -> list[Event]:
    splitter = Splitter(limit)
    events = [event for read in reads for event in splitter.feed(read)]
    rest = splitter.finish()
    return events if rest is None else [*events, rest]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [Event(b"a"), Event(b"b")]),
        (b"data:a\n\ndata:  b\n\n", [Event(b"a"), Event(b" b")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [Event(b"a"), Event(b"b")]),
        (b"data: a\r\rdata: b\r\r", [Event(b"a"), Event(b"b")]),
        (b"data: a\n\r\ndata: b\r\n\n", [Event(b"a"), Event(b"b")]),
        (b"event: ping\ndata: {}\n\n", [Event(b"{}", b"ping")]),
        (b"data: {}\nevent: ping\n\n", [Event(b"{}", b"ping")]),
        (b"data: a\ndata: b\n\n", [Event(b"a\nb")]),
        (b": comment\n\ndata: a\n: comment\n\n", [Event(b"a")]),
        (b"id: 7\nretry: 10\ndata: a\nnonsense\nother: x\n\n", [Event(b"a")]),
        (b"event: nothing\n\n", []),  # without data there is no event
        (b"data\n\ndata:\n\n", [Event(b""), Event(b"")]),
        (b"\n\n\n\ndata: a\n\n\n\n\ndata: b\n\n", [Event(b"a"), Event(b"b")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event(b"a")]),
        ("data: é🙂\n\n".encode(), [Event("é🙂".encode())]),
        (b"data: [DONE]", [Event(b"[DONE]")]),  # no blank line at the end: many servers forget it
        (b"data: [DONE]\n", [Event(b"[DONE]")]),
        (b"\x00\xff\xfe junk", []),
        (b"", []),
    ],
)
def test_events_however_the_reads_cut_them(stream, events):
    assert split(stream) == events
    assert split(*(stream[i : i + 1] for i in range(len(stream)))) == events
    for cut in range(len(stream)):
        assert split(stream[:cut], stream[cut:]) == events


lines = st.sampled_from([b"data: x", b"data:", b"event: e", b": c", b"", b"", b"data: \xc3\xa9", b"junk", b"data: [1]"])
newlines = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(lines, newlines)), st.lists(st.integers(0, 200)))
def test_any_split_gives_the_same_events(written, cuts):
    stream = b"".join(line + end for line, end in written)
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    reads = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert split(*reads) == split(stream)


@given(st.lists(st.binary(max_size=40)))
def test_junk_never_raises(reads):
    assert split(*reads) == split(b"".join(reads))


def test_an_event_is_bounded_but_not_the_stream():
    splitter = Splitter(limit=20)
    for _ in range(100):
        assert splitter.feed(b"data: 0123") == []
        assert splitter.feed(b"456789") == []
        assert splitter.feed(b"\n\n") == [Event(b"0123456789")]
    splitter.feed(b"data: 0123456789")
    assert not splitter.overflow
    assert splitter.feed(b"01234") == []
    assert splitter.overflow
    assert splitter.finish() is None


def test_the_events_before_one_that_is_too_large_are_not_lost():
    splitter = Splitter(limit=20)
    assert splitter.feed(b"data: a\n\ndata: " + b"x" * 30) == [Event(b"a")]
    assert splitter.overflow
