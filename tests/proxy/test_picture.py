import io
from typing import Any

import pytest
from rich.console import Console

from asynclm.cml.timeline import Timeline
from asynclm.proxy.lanes import Lane, Mark, Span, lanes
from asynclm.proxy.picture import Picture


def timeline(*entries: tuple[float, str, dict[str, Any]], policy: str = "coalesce") -> Timeline:
    made = Timeline("run_1", "m", policy, 0)
    for t, kind, fields in entries:
        made.add(t, kind, **fields)
    return made


RESUMED = timeline(
    (0.00, "opened", {"stream": 0, "resume": 0, "interrupts": 0}),
    (0.15, "first_token", {"stream": 0}),
    (0.20, "text", {"stream": 0, "text": "hi"}),
    (0.25, "call", {"stream": 0, "call": 0, "id": "a", "tool": "get_weather", "arguments": {}}),
    (0.25, "dispatched", {"call": 0}),
    (0.32, "call", {"stream": 0, "call": 1, "id": "b", "tool": "book_flight_with_a_long_name", "arguments": {}}),
    (0.35, "dispatched", {"call": 1}),
    (0.34, "rejected", {"stream": 0, "call": 2, "id": "c", "error": "unknown_tool", "message": "no"}),
    (0.37, "trap", {"stream": 0, "names": [], "implicit": False}),
    (0.37, "closed", {"stream": 0, "reason": "stop"}),
    (0.40, "result", {"call": 0, "ok": True, "value": "1", "ms": 150}),
    (0.60, "result", {"call": 1, "ok": False, "value": "1", "ms": 250}),
    (0.60, "interrupt", {"stream": 1, "ids": ["a", "b", "c"], "text": "..."}),
    (0.60, "opened", {"stream": 1, "resume": 1, "interrupts": 3}),
    (0.75, "first_token", {"stream": 1}),
    (0.95, "text", {"stream": 1, "text": "done"}),
    (1.00, "closed", {"stream": 1, "reason": "stop"}),
    (1.00, "finished", {"reason": "stop", "usage": {}}),
)


def test_lanes_of_a_run_that_stops_and_resumes() -> None:
    assert lanes(RESUMED) == [
        Lane(
            "stream",
            [
                Span(0.0, 0.15, "wait"),
                Span(0.15, 0.20, "text"),
                Span(0.20, 0.25, "block"),
                Span(0.25, 0.32, "block"),
                Span(0.32, 0.34, "block"),
                Span(0.34, 0.37, "block"),
                Span(0.60, 0.75, "wait"),
                Span(0.75, 0.95, "text"),
                Span(0.95, 1.00, "text"),
            ],
            [Mark(0.37, "trap"), Mark(0.60, "interrupt")],
        ),
        Lane(
            "a get_weather",
            [Span(0.25, 0.25, "queued"), Span(0.25, 0.40, "running"), Span(0.40, 0.60, "held")],
            [Mark(0.60, "delivered")],
        ),
        Lane(
            "b book_flight_with_a_long_name",
            [Span(0.32, 0.35, "queued"), Span(0.35, 0.60, "failed"), Span(0.60, 0.60, "held")],
            [Mark(0.60, "delivered")],
        ),
        Lane("c", [], [Mark(0.34, "rejected")]),
    ]


def test_lanes_of_a_run_with_injection() -> None:
    found = lanes(
        timeline(
            (0.0, "opened", {"stream": 0}),
            (0.1, "first_token", {"stream": 0}),
            (0.2, "call", {"stream": 0, "call": 0, "id": "a", "tool": "f", "arguments": {}}),
            (0.3, "trap", {"stream": 0, "names": []}),
            (0.5, "interrupt", {"stream": 0, "ids": ["a"], "text": "..."}),
            (0.6, "closed", {"stream": 0, "reason": "stop"}),
        )
    )
    assert found[0].spans[2:] == [Span(0.2, 0.3, "block"), Span(0.3, 0.5, "paused"), Span(0.5, 0.6, "text")]
    assert found[0].marks == [Mark(0.3, "trap"), Mark(0.5, "interrupt")]


def test_a_trap_that_is_known_only_after_the_streams_end() -> None:
    found = lanes(
        timeline(
            (0.0, "opened", {"stream": 0}),
            (0.1, "first_token", {"stream": 0}),
            (0.2, "call", {"stream": 0, "call": 0, "id": "a", "tool": "f", "arguments": {}}),
            (0.3, "closed", {"stream": 0, "reason": "stop"}),
            (0.3, "trap", {"stream": 0, "names": [], "implicit": False}),
            (0.5, "result", {"call": 0, "ok": True}),
        )
    )
    assert found[0].spans[2:] == [Span(0.2, 0.3, "block")]
    assert found[0].marks == [Mark(0.3, "trap")]


def test_a_live_stream_that_was_paused_behind_a_block() -> None:
    found = lanes(
        timeline(
            (0.0, "opened", {"stream": 0}),
            (0.1, "first_token", {"stream": 0}),
            (0.2, "call", {"stream": 0, "call": 0, "id": "a", "tool": "f", "arguments": {}}),
            (0.4, "interrupt", {"stream": 0, "ids": ["a"], "text": "..."}),
            (0.5, "text", {"stream": 0, "text": "so"}),
        )
    )
    assert found[0].spans[2:] == [Span(0.2, 0.4, "paused"), Span(0.4, 0.5, "text")]


def test_streams_that_overlap_get_lanes_of_their_own() -> None:
    found = lanes(
        timeline(
            (0.0, "opened", {"stream": 0}),
            (0.2, "opened", {"stream": 1}),
            (0.3, "closed", {"stream": 0}),
            (0.4, "opened", {"stream": 2}),
            (0.5, "closed", {"stream": 1}),
            (0.6, "closed", {"stream": 2}),
        )
    )
    assert [(lane.label, [(span.start, span.end) for span in lane.spans]) for lane in found] == [
        ("stream", [(0.0, 0.3), (0.4, 0.6)]),
        ("branch 1", [(0.2, 0.5)]),
    ]


def test_what_a_stream_writes_ahead_is_held_back_until_it_is_adopted() -> None:
    found = lanes(
        timeline(
            (0.0, "ahead", {"stream": 0}),
            (0.0, "opened", {"stream": 0}),
            (0.1, "ahead", {"stream": 1}),
            (0.1, "opened", {"stream": 1}),
            (0.2, "adopted", {"stream": 1}),
            (0.3, "first_token", {"stream": 0}),
            (0.3, "first_token", {"stream": 1}),
            (0.5, "adopted", {"stream": 0}),
            (0.5, "text", {"stream": 0, "text": "It is"}),
            (0.6, "text", {"stream": 0, "text": " 5."}),
            (0.6, "closed", {"stream": 0, "reason": "stop"}),
            (0.7, "ahead", {"stream": 2}),
            (0.7, "opened", {"stream": 2}),
            (0.8, "first_token", {"stream": 2}),
            (0.9, "closed", {"stream": 1, "reason": "cut"}),
            (0.9, "closed", {"stream": 2, "reason": "cut"}),
        )
    )
    assert [lane.spans for lane in found] == [
        [
            Span(0.0, 0.3, "wait"),
            Span(0.3, 0.5, "ahead"),
            Span(0.5, 0.6, "text"),
            Span(0.7, 0.8, "wait"),
            Span(0.8, 0.9, "ahead"),
        ],
        [Span(0.1, 0.3, "wait"), Span(0.3, 0.9, "text")],
    ]


def test_a_run_that_is_not_over_and_calls_that_never_ran() -> None:
    found = lanes(
        timeline(
            (0.0, "opened", {"stream": 0}),
            (0.1, "call", {"stream": 0, "call": 0, "tool": "f", "arguments": {}}),
            (0.1, "call", {"stream": 0, "call": 1, "id": "b", "tool": "g", "arguments": {}}),
            (0.2, "dispatched", {"call": 0}),
            (0.3, "outside", {"source": "user", "text": "stop it"}),
            (0.4, "cancelled", {"call": 1}),
        )
    )
    assert found == [
        Lane("stream", [Span(0.0, 0.1, "block"), Span(0.1, 0.4, "wait")]),
        Lane("f", [Span(0.1, 0.2, "queued"), Span(0.2, 0.4, "running")]),
        Lane("b g", [Span(0.1, 0.4, "queued")], [Mark(0.4, "cancelled")]),
        Lane("outside", [], [Mark(0.3, "outside")]),
    ]


CACHED = timeline(
    (0.0, "opened", {"stream": 0}),
    (0.1, "call", {"stream": 0, "call": 0, "id": "a", "tool": "f", "arguments": {}}),
    (0.1, "result", {"call": 0, "ok": True, "value": "1", "ms": 0, "cache": "hit"}),
    (0.1, "interrupt", {"stream": 0, "ids": ["a"], "text": "..."}),
    (0.2, "call", {"stream": 0, "call": 1, "id": "b", "tool": "f", "arguments": {}}),
    (0.2, "dispatched", {"call": 1}),
    (0.3, "call", {"stream": 0, "call": 2, "id": "c", "tool": "f", "arguments": {}}),
    (0.3, "result", {"call": 2, "ok": True, "value": "1", "ms": 0, "cache": "stale"}),
    (0.6, "interrupt", {"stream": 0, "ids": ["c"], "text": "..."}),
    (0.4, "call", {"stream": 0, "call": 3, "id": "d", "tool": "f", "arguments": {}}),
    (0.4, "dispatched", {"call": 3}),
    (0.5, "call", {"stream": 0, "call": 4, "id": "e", "tool": "g", "arguments": {}}),
    (0.5, "dispatched", {"call": 4}),
    (1.0, "result", {"call": 1, "ok": True, "value": "1", "ms": 800, "cache": "miss"}),
    (1.0, "result", {"call": 3, "ok": True, "value": "1", "ms": 0, "cache": "coalesced"}),
    (1.0, "result", {"call": 4, "ok": True, "value": "1", "ms": 500}),
)


SERVED = """\
coalesce  1000 ms
stream  ███▼██████████████░░░▼░░░░░░░░░░░░░
a f        ● cache hit
b f            ████████████████████████████ cache miss
c f               ○──────────● cache hit, stale
d f                   █████████████████████ coalesced
e g                       █████████████████
        |0 ms             |500
"""


def test_each_call_says_how_the_cache_served_it() -> None:
    assert drawn(Picture(CACHED, legend=False), 60) == SERVED.rstrip()
    assert "cache hit" not in drawn(Picture(CACHED), 40)  # no room for both: the drawing comes first


def drawn(picture: Picture, width: int, encoding: str = "utf-8") -> str:
    class Terminal(io.StringIO):
        @property
        def encoding(self) -> str:  # type: ignore[override]
            return encoding

    out = Terminal()
    Console(file=out, width=width).print(picture)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


GOLDEN = """\
coalesce  1000 ms
stream                 ░░░░░░▒▒███████◆         ▼░░░░░░▒▒▒▒▒▒▒▒▒▒
a get_weather                     ██████────────●
b book_flight_with_a…               ··▓▓▓▓▓▓▓▓▓▓●
c                                    ✗
                       |0 ms   |200     |400    |600     |800
░ waits for first token   ▒ writes text   █ writes a call or trap
· queued   █ runs   ▓ runs, and fails
─ result not yet delivered   ▼ interrupt   ◆ trap   ● delivered
✗ rejected"""

ASCII = """\
coalesce  1000 ms
stream              .....==######T       v.....=========
a get_weather                #####-------o
b book_flight_wit~              .%%%%%%%%o
c                               x
                    |0 ms             |500
"""


def test_the_picture() -> None:
    assert drawn(Picture(RESUMED), 65) == GOLDEN


def test_the_picture_in_ascii() -> None:
    assert drawn(Picture(RESUMED, legend=False), 56, "ascii") == ASCII.rstrip()


def test_several_runs_share_a_scale() -> None:
    short = timeline((0.0, "opened", {"stream": 0}), (0.5, "closed", {"stream": 0}), policy="auto")
    lines = drawn(Picture(RESUMED, short, titles=["one", "two"], legend=False), 128).splitlines()
    assert [line for line in lines if line.endswith(" ms")] == ["one  1000 ms", "two  500 ms"]
    assert lines[-2] == "stream" + " " * 22 + "░" * 50  # 100 columns are a second
    assert lines[-1].lstrip().startswith("|0 ms")


@pytest.mark.parametrize("width", [20, 40, 300])
def test_any_width_holds(width: int) -> None:
    for each in (RESUMED, CACHED):
        assert max(map(len, drawn(Picture(each, titles=["x"]), width).splitlines())) <= width


def test_an_empty_timeline_is_drawn_too() -> None:
    assert drawn(Picture(timeline()), 40).startswith("coalesce  0 ms")
