import re
from typing import Any

import pytest

from asynclm.cml.machine import RunError
from asynclm.cml.timeline import Timeline, from_jsonl
from asynclm.cml.usage import Usage
from asynclm.proxy.recording.canonical import Asked
from asynclm.proxy.recording.recorded import Recording, RecordingError, read, split
from asynclm.proxy.recording.redaction import Redactor
from asynclm.proxy.recording.tape import Tape

KEY = "sk-proj-0123456789abcdefghij"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def tape(**options: Any) -> Tape:
    timeline = Timeline("run_x", "m", "auto", 7, [])
    asked = Asked("k", {"model": "m", "password": "p"}, {"f": "1"})
    return Tape(timeline, asked, stream=True, redactor=Redactor(), clock=Clock(), **options)


def ended(tape: Tape) -> Tape:
    tape.timeline.add(tape.seconds, "finished", reason="stop", usage={})
    tape.finish("stop", Usage(3, 4), {"streams": 1})
    return tape


def said(key: str, value: Any) -> Tape:
    on = tape()
    on.sent(key, value)
    return on


def note(tape: Tape, kind: str, **data: Any) -> None:
    tape.timeline.add(tape.seconds, kind, **data)


def test_what_was_put_on_it_is_read_from_it_whenever_it_was_taken() -> None:
    found: list[Recording] = []
    for every in (1, 2, 3, 100):
        on = tape()
        lines = b""
        for number in range(40):
            on.wrote(number // 20, f"w{number} ")
            if number % 3 == 0:
                on.sent("content", f"c{number}\n" if number % 9 == 0 else f"c{number} ")
                on.timeline.add(on.seconds, "text", stream=number // 20, text=f"c{number} ")
            if number == 10:
                on.sent("reasoning", "hm")
            if number == 19:
                note(on, "closed", stream=0)
            if number % every == 0:
                lines += on.take()
        found.append(read(lines + ended(on).take()))
    for recording in found:
        assert recording.servable
        assert "".join(piece.text for piece in recording.wrote[0]) == "".join(f"w{n} " for n in range(20))
        assert [piece.value for piece in recording.sent] == [piece.value for piece in found[0].sent]
        assert sum(piece.key == "reasoning" for piece in recording.sent) == 1
        texts = [entry.data["text"] for entry in recording.timeline.entries if entry.kind == "text"]
        assert "".join(texts) == "".join(piece.value for piece in recording.sent if piece.key == "content")
        kinds = [entry.kind for entry in recording.timeline.entries if entry.kind != "text"]
        assert kinds == ["closed", "finished"]
        times = [entry.t for entry in recording.timeline.entries]
        assert times == sorted(times)
    answered = found[0].answered
    assert answered is not None
    assert (answered.reason, answered.usage, answered.extra) == ("stop", Usage(3, 4), {"streams": 1})
    assert found[0].question.request == {"model": "m", "password": "[redacted]"}


@pytest.mark.parametrize("every", [1, 4, 1000])
def test_no_part_of_a_secret_is_ever_written_whenever_it_is_taken(every: int) -> None:
    on = tape()
    lines: list[bytes] = []
    for number, char in enumerate(f"Your key: {KEY}\nSee {KEY} and go on, and on, and on."):
        on.wrote(0, char)
        on.sent("content", char)
        if number % every == 0:
            lines.append(on.take())
    note(on, "result", call=0, value=f'"{KEY}"')
    lines.append(ended(on).take())
    recording = read(b"".join(lines))
    shown = "Your key: [redacted]\nSee [redacted] and go on, and on, and on."
    assert "".join(piece.value for piece in recording.sent) == shown
    assert "".join(piece.text for piece in recording.wrote[0]) == shown
    assert recording.timeline.entries[-2].data == {"value": '"[redacted]"'}
    assert KEY[4:12].encode() not in b"".join(lines)


def test_text_that_may_go_on_is_held_back_with_what_follows_it_and_ends_with_its_stream() -> None:
    on = tape()
    on.wrote(0, "Hello")
    note(on, "call", stream=0, call=0)
    assert b"Hello" not in on.take()
    on.wrote(0, " there.\nAnd")
    on.wrote(0, " so on")
    first = on.take()
    assert b"Hello" in first
    assert b'"call"' in first
    assert b"so on" not in first
    note(on, "closed", stream=0)
    assert b"so on" in on.take()


def test_a_recording_is_a_timeline_that_any_reader_takes() -> None:
    on = tape()
    on.sent("content", "Hello")
    data = ended(on).take()
    timeline = from_jsonl(data.splitlines())
    assert timeline.run == "run_x"
    assert [entry.kind for entry in timeline.entries] == ["request", "sent", "finished", "answered"]


def test_an_error_is_recorded_without_secrets_and_is_no_answer() -> None:
    on = tape()
    on.fail(RunError(f"no such key: {KEY}", 401))
    on.fail(RunError("and again"))
    recording = read(on.take())
    assert not recording.servable
    assert recording.answered is not None
    assert recording.answered.error is not None
    assert recording.answered.error.message == "no such key: [redacted]"
    assert on.take() == b""


def test_reading_what_is_none() -> None:
    for data, words in (
        (b"", "not a recording"),
        (b"[]", "not a recording"),
        (b'{"asynclm_timeline":1,"run":"r","model":"m","policy":"p","created":1}', "timeline only"),
        (b'{"asynclm_timeline":2,"asynclm_recording":1}', "newer"),
        (b'{"asynclm_timeline":1,"asynclm_recording":9,"shape":"unknown"}', "newer asynclm \\(version 9"),
        (tape().take().splitlines()[0], "what was asked"),
        (ended(tape()).take() + b"{}", "damaged in line 5"),
        (ended(said("content", {"x": 1})).take(), "damaged in line 3: Expected `str`"),
        (
            ended(said("tool_calls", {"id": "x", "name": "f"})).take(),
            "damaged in line 3: Object missing required field",
        ),
    ):
        with pytest.raises(RecordingError, match=words):
            read(data)


def test_several_recordings_in_one_file() -> None:
    one, other = ended(tape()).take(), ended(tape()).take()
    assert split(one + b"\n" + other) == [one, other]
    assert split(b"") == []


def test_nothing_more_is_collected_once_it_was_stopped() -> None:
    on = tape()
    on.sent("content", "x")
    on.stop()
    on.sent("content", "y" * 1000)
    assert on.size == 0


def test_what_another_machine_must_not_get_into_a_recording() -> None:
    good = ended(said("content", "Hello.")).take()
    assert read(good).servable
    deep = b'{"t":0.0,"kind":"x","data":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}\n"
    head, rest = good.split(b"\n", 1)
    for data, words in (
        (good.replace(b'"run":"run_x"', b'"run":"run_x\\r\\nset-cookie: a=b"'), "not a recording.*matching regex"),
        (good.replace(b'"run":"run_x"', b'"run":"run_x\\n"'), "not a recording.*matching regex"),
        (re.sub(rb'"created":\d+', b'"created":99999999999999', good), "not a recording.*created"),
        (head + b"\n" + deep + rest, "damaged in line 2: maximum recursion depth"),
        (good.replace(b'"t":0.0', b'"t":-1.0', 1), "damaged in line 2: there is no such time"),
        (good.replace(b'"t":0.0', b'"t":1e300', 1), "damaged in line 2: there is no such time"),
        (re.sub(rb'\[\d+\.\d+,"content"', b'[1e300,"content"', good), "damaged in line 3: Expected `float` <= "),
    ):
        assert data != good, words
        with pytest.raises(RecordingError, match=words):
            read(data)
