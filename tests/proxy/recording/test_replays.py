"""Recorded with the official client, and served again to it: by the same proxy or the next one, on both stores."""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import looptime
import openai
import pytest
from harness import Proxy, answer_of
from upstream import Answer, ScriptedUpstream

from asynclm.cml.timeline import Entry, Timeline
from asynclm.proxy.recording.recorded import Piece, Question, Recording
from asynclm.proxy.recording.replay import _deltas

Serve = Callable[..., AbstractAsyncContextManager[Proxy]]

CALL = "[CALL] a [HEAD] add(x=1, y=2) [END]"
QUESTION = [{"role": "user", "content": "What is 1 + 2?"}]
ANSWER = "Let me see.\n\nIt is 3."
RUNS: list[int] = []


def add(x: int, y: int = 1) -> int:
    """Add two numbers."""
    RUNS.append(x)
    return x + y


def script() -> list[Answer]:
    return [
        Answer("Let me ", "see. ", CALL[:9], CALL[9:], "\n\n[TRAP", usage=(100, 20)),
        Answer("It is", " 3.", usage=(130, 4), cached=64),
    ]


async def ask(proxy: Proxy, mode: str | None, *, stream: bool = False, **body: Any) -> Any:
    """The raw response."""
    headers = {} if mode is None else {"x-asynclm-replay": mode}
    body = {"model": "m", "messages": QUESTION, **body}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return await proxy.client().chat.completions.with_raw_response.create(**body, extra_headers=headers)


async def deltas(raw: Any) -> tuple[list[str], Any]:
    """The pieces of text of a streamed answer, and its usage."""
    chunks = [chunk async for chunk in raw.parse()]
    return [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content], chunks[-1].usage


async def test_a_live_turn_behind_a_replayed_one_knows_what_its_tools_said(serve: Serve) -> None:
    """Also in a proxy that remembers nothing of the recorded run; secrets are no part of that."""

    def add(x: int, y: int) -> list[Any]:
        """Add, and say too much."""
        return [x + y, f"sk-{'a1' * 20}"]

    forgetful = "[conversations]\nstore = false\n"
    first = Answer("Let me see. ", CALL, "[TRAP][END]")
    script = [first, Answer("It is 3."), Answer("Yes, 3.")]
    async with ScriptedUpstream(script) as upstream:
        async with serve(upstream.url, add, toml=forgetful) as proxy:
            raw = await ask(proxy, "record")
            answer = raw.parse().choices[0].message.content
        async with serve(upstream.url, add, toml=forgetful) as proxy:
            again = await ask(proxy, "replay")
            assert again.parse().choices[0].message.content == answer
            more = [{"role": "assistant", "content": answer}, {"role": "user", "content": "Sure?"}]
            await ask(proxy, "off", messages=QUESTION + more)
    *_, written, told, last, sure = upstream.requests[2]["messages"]
    assert CALL in written["content"]
    assert told["content"].startswith("[INTR] a [HEAD] [3,")
    assert "a1a1" not in told["content"]
    assert "a1a1" in upstream.requests[1]["messages"][-1]["content"]
    assert (last["content"], sure) == ("It is 3.", more[1])


@pytest.mark.parametrize("recorded_as_stream", [True, False])
async def test_a_recording_serves_streams_and_whole_answers_without_upstream_or_tools(
    serve: Serve, recorded_as_stream: bool
) -> None:
    RUNS.clear()
    async with ScriptedUpstream(script()) as upstream, serve(upstream.url, add) as proxy:
        raw = await ask(proxy, "record", stream=recorded_as_stream)
        run = raw.headers["x-asynclm-run-id"]
        assert "x-asynclm-replayed" not in raw.headers
        if recorded_as_stream:
            pieces, usage = await deltas(raw)
        else:
            pieces, usage = ["Let me", " see.", "\n\nIt is", " 3."], raw.parse().usage
        assert "".join(pieces) == ANSWER
        for _ in range(2):
            again = await ask(proxy, "replay", stream=True)
            assert again.headers["x-asynclm-replayed"] == "1"
            assert again.headers["x-asynclm-run-id"] == run
            same, same_usage = await deltas(again)
            assert same == pieces
            assert same_usage.prompt_tokens == usage.prompt_tokens == 230
            assert same_usage.prompt_tokens_details.cached_tokens == 64
            assert (same_usage.asynclm["streams"], same_usage.asynclm["calls"]) == (2, 1)
            assert same_usage.asynclm["replayed"] is True
        whole = (await ask(proxy, "replay")).parse()
        assert whole.choices[0].message.content == ANSWER
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage.completion_tokens == 24
        assert (len(upstream.requests), RUNS) == (2, [1])


async def test_the_next_proxy_serves_it_with_its_upstream_down(serve: Serve) -> None:
    async with ScriptedUpstream(script()) as upstream, serve(upstream.url, add) as proxy:
        run = (await ask(proxy, "record")).headers["x-asynclm-run-id"]
    async with serve("http://127.0.0.1:9/v1", add) as proxy, aiohttp.ClientSession() as http:
        assert (await ask(proxy, "replay")).parse().choices[0].message.content == ANSWER
        assert (await ask(proxy, "auto")).parse().choices[0].message.content == ANSWER
        listed = (await (await http.get(f"{proxy.url}/asynclm/runs")).json())["data"]
        assert [(each["id"], each["status"], each["model"]) for each in listed] == [(run, "finished", "m")]
        timeline = await (await http.get(f"{proxy.url}/asynclm/runs/{run}")).json()
        kinds = [entry["kind"] for entry in timeline["entries"]]
        assert kinds[-1] == "finished"
        assert {"text", "call", "dispatched", "result", "interrupt", "trap", "usage"} <= set(kinds)
        assert "".join(e["data"]["text"] for e in timeline["entries"] if e["kind"] == "text") == ANSWER
        times = [entry["t"] for entry in timeline["entries"]]
        assert times == sorted(times)


async def test_what_is_not_recorded_is_a_404_and_auto_goes_live(serve: Serve) -> None:
    async with ScriptedUpstream([Answer("Yes."), Answer("No.")]) as upstream, serve(upstream.url, add) as proxy:
        with pytest.raises(openai.NotFoundError) as missing:
            await ask(proxy, "replay")
        assert missing.value.code == "recording_not_found"
        assert "there is no recording of this request" in missing.value.message
        assert upstream.requests == []
        for mode in (None, "off"):
            assert (await ask(proxy, mode)).parse().choices[0].message.content == "Yes."
            upstream.requests.clear()
        with pytest.raises(openai.NotFoundError):
            await ask(proxy, "replay")
        assert (await ask(proxy, "auto")).parse().choices[0].message.content == "Yes."
        upstream.requests.clear()
        assert (await ask(proxy, "auto")).parse().choices[0].message.content == "Yes."
        assert upstream.requests == []


async def test_record_overwrites(serve: Serve) -> None:
    async with ScriptedUpstream([Answer("Yes."), Answer("No.")]) as upstream, serve(upstream.url, add) as proxy:
        for said in ("Yes.", "No."):
            assert (await ask(proxy, "record")).parse().choices[0].message.content == said
            assert (await ask(proxy, "replay")).parse().choices[0].message.content == said
        await proxy.server.recordings.recorder.idle()
        assert len(await proxy.server.recordings.all()) == 1


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"stream": True}, True),
        ({"user": "me", "metadata": {"a": "b"}, "store": True}, True),
        ({"temperature": None}, True),
        ({"max_tokens": 100}, False),
        ({"temperature": 0.5}, False),
        ({"model": "n"}, False),
        ({"stop": "x"}, False),
        ({"messages": [{"role": "user", "content": "What is 1 + 3?"}]}, False),
        ({"messages": [{"role": "user", "content": "What is 1 + 2?", "name": None}]}, True),
    ],
)
async def test_which_requests_are_the_same(serve: Serve, change: dict[str, Any], same: bool) -> None:
    async with ScriptedUpstream([Answer("Yes.")]) as upstream, serve(upstream.url, add) as proxy:
        await ask(proxy, "record")
        async with aiohttp.ClientSession() as http:
            response = await http.post(
                f"{proxy.url}/chat/completions",
                json={"model": "m", "messages": QUESTION, **change},
                headers={"x-asynclm-replay": "replay", "authorization": "Bearer sk-of-somebody-else"},
            )
            assert response.status == (200 if same else 404)


async def test_bounds_are_the_same_by_either_name_and_numbers_by_value(serve: Serve) -> None:
    async with ScriptedUpstream([Answer("Yes.")]) as upstream, serve(upstream.url, add) as proxy:
        await ask(proxy, "record", max_tokens=9, temperature=1, stop="x")
        await ask(proxy, "replay", max_completion_tokens=9, temperature=1.0, stop=["x"])


async def test_other_tools_are_another_request(serve: Serve) -> None:
    def sub(x: int) -> int:
        return -x

    async with ScriptedUpstream([Answer("Yes.")]) as upstream:
        async with serve(upstream.url, add) as proxy:
            await ask(proxy, "record")
        async with serve(upstream.url, add, sub) as proxy:
            with pytest.raises(openai.NotFoundError):
                await ask(proxy, "replay")
        async with serve(upstream.url, add) as proxy:
            await ask(proxy, "replay")


async def test_with_the_scope_client_a_recording_is_for_one_key(serve: Serve) -> None:
    async with (
        ScriptedUpstream([Answer("Yes.")]) as upstream,
        serve(upstream.url, add, toml='[recording]\nscope = "client"\n') as proxy,
    ):
        await ask(proxy, "record")
        await ask(proxy, "replay")
        other = proxy.client().with_options(api_key="sk-of-somebody-else")
        with pytest.raises(openai.NotFoundError):
            await other.chat.completions.create(
                model="m", messages=QUESTION, extra_headers={"x-asynclm-replay": "replay"}
            )


async def test_everything_is_recorded_where_the_config_says_so_unless_the_request_says_off(serve: Serve) -> None:
    async with (
        ScriptedUpstream([Answer("Yes.")]) as upstream,
        serve(upstream.url, add, toml='[recording]\nrecord = "all"\n') as proxy,
    ):
        await ask(proxy, "off", seed=1)
        await ask(proxy, None, seed=2)
        await ask(proxy, None, seed=2)
        with pytest.raises(openai.NotFoundError):
            await ask(proxy, "replay", seed=1)
        await ask(proxy, "replay", seed=2)
        await proxy.server.recordings.recorder.idle()
        assert len(await proxy.server.recordings.all()) == 2  # what nobody asked to be replaced stays


async def test_recording_can_be_switched_off_for_all_or_for_a_key(serve: Serve) -> None:
    mine = hashlib.sha256(b"sk-client-key").hexdigest()
    for toml in ('record = "off"', f'record = "all"\noff_keys = ["{mine}"]'):
        async with (
            ScriptedUpstream([Answer("Yes.")]) as upstream,
            serve(upstream.url, add, toml=f"[recording]\n{toml}\n") as proxy,
        ):
            with pytest.raises(openai.BadRequestError, match="switched off"):
                await ask(proxy, "record")
            for _ in range(2):
                await ask(proxy, "auto")  # nothing to serve, and nothing recorded
            await ask(proxy, None)
            assert len(upstream.requests) == 3
            assert await proxy.server.recordings.all() == []


async def test_failed_runs_are_kept_but_not_served(serve: Serve) -> None:
    async with ScriptedUpstream([Answer(status=400), Answer("Yes.")]) as upstream, serve(upstream.url, add) as proxy:
        with pytest.raises(openai.BadRequestError):
            await ask(proxy, "auto")
        await proxy.server.recordings.recorder.idle()
        (facts,) = await proxy.server.recordings.all()
        assert facts.status == "failed"
        assert (await ask(proxy, "auto")).parse().choices[0].message.content == "Yes."
        assert (await ask(proxy, "replay")).parse().choices[0].message.content == "Yes."


async def test_a_client_that_leaves_leaves_a_failed_recording(serve: Serve) -> None:
    hold = asyncio.Event()
    script = [Answer("Well", ", yes.", hold=hold, hold_at=1)]
    async with ScriptedUpstream(script) as upstream, serve(upstream.url, add) as proxy:
        stream = (await ask(proxy, "auto", stream=True)).parse()
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        await upstream.until(lambda: upstream.dropped == 1)
        await proxy.server.recordings.recorder.idle()
        (facts,) = await proxy.server.recordings.all()
        assert facts.status == "failed"
        with pytest.raises(openai.NotFoundError):
            await ask(proxy, "replay")


async def test_identical_requests_in_flight_all_run_and_later_ones_are_served(serve: Serve) -> None:
    hold = asyncio.Event()
    async with (
        ScriptedUpstream([Answer("Yes.", hold=hold)]) as upstream,
        serve(upstream.url, add) as proxy,
    ):
        both = [asyncio.create_task(ask(proxy, "auto")) for _ in range(2)]
        await upstream.until(lambda: upstream.open == 2)
        hold.set()
        assert [(await each).parse().choices[0].message.content for each in both] == ["Yes.", "Yes."]
        await ask(proxy, "auto")
        assert len(upstream.requests) == 2


async def changed(proxy: Proxy, change: Callable[[bytes], bytes]) -> None:
    """Write the only recording anew, otherwise."""
    recordings = proxy.server.recordings
    await recordings.recorder.idle()
    (facts,) = await recordings.all()
    data = await recordings.archive.load(facts.id)
    assert data
    await recordings.archive.remove([facts.id])
    await recordings.archive.append(facts.id, 0, change(data))


async def test_at_recorded_speed_a_replay_takes_its_time_and_the_end_of_the_proxy_ends_it(serve: Serve) -> None:
    def later(data: bytes) -> bytes:
        assert data.count(b'"content",", yes."]') == 1
        return re.sub(rb'\[[^[]*,"content",", yes."\]', b'[3600.0,"content",", yes."]', data)

    async with (
        ScriptedUpstream([Answer("Well", ", yes.")]) as upstream,
        serve(upstream.url, add, toml='[replay]\nspeed = "recorded"\n') as proxy,
    ):
        await ask(proxy, "record")
        assert await answer_of((await ask(proxy, "replay", stream=True)).parse()) == ("Well, yes.", "stop")
        await changed(proxy, later)
        seen = ""
        with pytest.raises(openai.APIError, match="shutting down"):
            async for chunk in (await ask(proxy, "replay", stream=True)).parse():
                if chunk.choices and chunk.choices[0].delta.content:
                    seen += chunk.choices[0].delta.content
                    proxy.server.recordings.abandon()
        assert seen == "Well"


@pytest.mark.parametrize("timed", [True, False])
def test_deltas_come_when_they_came(timed: bool) -> None:
    class Sink:
        def __init__(self) -> None:
            self.noted: list[str] = []
            self.sent: list[tuple[float, str]] = []

        def text(self, text: str) -> None:
            self.noted.append(text)

        async def flush(self) -> None:
            self.sent += [(round(asyncio.get_running_loop().time(), 6), text) for text in self.noted]
            self.noted.clear()

    timeline = Timeline("run_x", "m", "auto", 0, [Entry(9.0, "finished")])
    pieces = [Piece(0.5, "content", "a"), Piece(0.5, "content", "b"), Piece(7.25, "content", "c")]
    sink: Any = Sink()

    async def play() -> float:
        recording = Recording(timeline, Question("k", {}), pieces)
        assert await _deltas(recording, sink, timed, asyncio.Event())
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(start=0.0, noop_cycles=0)) as runner:
        ended = runner.run(play())
    assert ended == (9.0 if timed else 0.0)
    assert sink.sent == ([(0.5, "a"), (0.5, "b"), (7.25, "c")] if timed else [(0.0, "a"), (0.0, "b"), (0.0, "c")])


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda data: data.replace(b'"asynclm_recording":1', b'"asynclm_recording":2'), "recording_unusable", "newer"),
        (lambda data: data.replace(b'"kind":"sent"', b'"kind":"sent', 1), "recording_unusable", "damaged in line"),
        (lambda data: b"\x00\xff" + data, "recording_unusable", "not a recording"),
        (lambda data: b"".join(data.splitlines(True)[:3] + data.splitlines(True)[4:]), "recording_unusable", "lines"),
        (lambda data: b"".join(data.splitlines(True)[:-1]), "recording_unusable", "whole answer"),
        (lambda data: re.sub(rb'"key":"\w+"', b'"key":"other"', data), "recording_unusable", "whole answer"),
        (lambda data: b"", "recording_not_found", "no recording"),
    ],
)
async def test_a_recording_that_is_newer_or_damaged_is_said_to_be_so_and_auto_makes_another(
    serve: Serve, change: Callable[[bytes], bytes], code: str, words: str
) -> None:
    async with ScriptedUpstream([Answer("Yes."), Answer("No.")]) as upstream, serve(upstream.url, add) as proxy:
        await ask(proxy, "record")
        await changed(proxy, change)
        with pytest.raises(openai.NotFoundError, match=words) as error:
            await ask(proxy, "replay")
        assert error.value.code == code
        assert (await ask(proxy, "auto")).parse().choices[0].message.content == "No."
        assert (await ask(proxy, "replay")).parse().choices[0].message.content == "No."


async def test_reasoning_is_served_too(serve: Serve) -> None:
    def event(delta: dict[str, str], reason: str | None = None) -> bytes:
        return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': reason}]})}\n\n".encode()

    raw = event({"reasoning_content": "Hm"}) + event({"content": "Yes."}) + event({}, "stop") + b"data: [DONE]\n\n"
    async with ScriptedUpstream([Answer(raw=raw)]) as upstream, serve(upstream.url, add) as proxy:
        for mode in ("record", "replay"):
            message = (await ask(proxy, mode)).parse().choices[0].message
            assert (message.content, message.reasoning_content) == ("Yes.", "Hm")


TOOL = {"type": "function", "function": {"name": "ask", "parameters": {"type": "object", "properties": {}}}}


async def talk(proxy: Proxy, mode: str, *, stream: bool, reply: str = "yes") -> tuple[list[Any], list[str]]:
    """A conversation with a client that has a tool of its own: the last messages, and the runs."""
    messages: list[Any] = [*QUESTION]
    runs: list[str] = []
    while True:
        options: Any = {
            "model": "m",
            "messages": messages,
            "tools": [TOOL],
            "extra_headers": {"x-asynclm-replay": mode},
        }
        if stream:
            async with proxy.client().chat.completions.stream(
                stream_options={"include_usage": True}, **options
            ) as events:
                completion: Any = await events.get_final_completion()
        else:
            completion = await proxy.client().chat.completions.create(**options)
        runs.append(completion.usage.asynclm["run"])
        message = completion.choices[0].message
        messages = [*messages, message.model_dump(exclude_none=True, exclude={"parsed"})]
        calls = message.tool_calls or []
        if not calls:
            return messages, runs
        messages += [{"role": "tool", "tool_call_id": call.id, "content": reply} for call in calls]


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_to_tools_of_the_clients_own_are_served_with_their_ids_and_so_is_what_follows(
    serve: Serve, stream: bool
) -> None:
    script = [
        Answer("Wait. ", CALL, "[CALL] b [HEAD] ask() [END]", "[TRAP][END]"),
        Answer("It is 3.", "[CALL] c [HEAD] ask() [END]", "[TRAP][END]"),
        Answer("Done."),
    ]
    async with ScriptedUpstream(script) as upstream, serve(upstream.url, add) as proxy:
        first = await talk(proxy, "auto", stream=stream)
        requests = len(upstream.requests)
        await proxy.server.recordings.recorder.idle()
        (run,) = set(first[1])
        ids = sorted(facts.id for facts in await proxy.server.recordings.all())
        assert ids == [run, f"{run}-2", f"{run}-3"]
    async with serve("http://127.0.0.1:9/v1", add) as proxy:
        assert await talk(proxy, "replay", stream=stream) == first
        whole = await talk(proxy, "replay", stream=not stream)
        assert [m.get("content") for m in whole[0]] == [m.get("content") for m in first[0]]
        with pytest.raises(openai.NotFoundError):
            await talk(proxy, "replay", stream=stream, reply="no")
        timeline = await proxy.server.recordings.timeline(ids[1])
        assert timeline is not None
        assert {"continued", "result", "interrupt", "opened", "parked"} <= {entry.kind for entry in timeline.entries}
        times = [entry.t for entry in timeline.entries]
        assert times == sorted(times)
        assert requests == len(upstream.requests)


async def test_what_passes_through_is_refused_and_wrong_words_too(serve: Serve) -> None:
    async with ScriptedUpstream([Answer("Yes.")]) as upstream, serve(upstream.url) as proxy:
        with pytest.raises(openai.BadRequestError, match="passes through"):
            await ask(proxy, "auto")
        await ask(proxy, "off", stream=True)
        with pytest.raises(openai.BadRequestError, match=r"off\|record\|replay\|auto"):
            await ask(proxy, "always")


async def test_without_tools_an_upstream_in_the_process_is_recorded(serve: Serve) -> None:
    async with serve(None, kind="simulated", toml="ttft_ms = 0\n") as proxy:
        first = (await ask(proxy, "auto")).parse()
        again = (await ask(proxy, "auto")).parse()
        assert again.choices[0].message.content == first.choices[0].message.content
        assert again.usage.asynclm["replayed"] is True


async def test_a_request_that_cannot_be_written_down_runs_all_the_same(serve: Serve) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    script = [Answer("Well.")]
    async with (
        ScriptedUpstream(script) as upstream,
        serve(upstream.url, add, toml='[recording]\nrecord = "all"') as proxy,
    ):
        live = await ask(proxy, None, extra_body={"deep": deep})
        assert live.parse().choices[0].message.content == "Well."
        for mode in ("record", "auto", "replay"):
            with pytest.raises(openai.BadRequestError, match="can't be recorded: it is nested in more than"):
                await ask(proxy, mode, extra_body={"deep": deep})
