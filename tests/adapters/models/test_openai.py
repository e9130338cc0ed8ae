"""The adapter against real HTTP: what goes out, what comes back, and how it fails."""

import asyncio
import contextlib
import gzip
import json
import warnings

import pytest
from loopback import collect, collect_failing, request

from asynclm.adapters.models import Abilities, AnthropicModel, Ended, ModelError, OpenAIModel, TextDelta
from asynclm.cml.transcript import Segment
from asynclm.cml.usage import Usage


def sse(*events) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def delta(text=None, finish=None):
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


DONE = b"data: [DONE]\n\n"
HELLO = sse(delta("Hello"), delta(None, "stop")) + DONE
EVENTS = [TextDelta("Hello"), Ended("stop")]


def answer_hello(exchange):
    exchange.head()
    exchange.chunk(HELLO)
    exchange.end()


@contextlib.asynccontextmanager
async def opened(upstream, *answers, **options):
    upstream.answers = list(answers or [answer_hello])
    model = OpenAIModel(upstream.url, **options)
    try:
        yield model
    finally:
        await model.aclose()


# ------------------------------------------------------------------------------------------------ what goes out


async def test_the_request(upstream):
    async with opened(upstream, api_key="k1", organization="org", project="proj") as model:
        asked = request(
            "héllo",
            parameters={"temperature": 0.5, "seed": 1, "stream_options": {"include_obfuscation": False}},
            max_tokens=7,
            max_tokens_key="max_completion_tokens",
            stop=("][END]",),
            api_key="the client's",
        )
        assert await collect(await model.open(asked)) == EVENTS
    assert (upstream.last.method, upstream.last.path) == ("POST", "/v1/chat/completions")
    assert upstream.last.json == {
        "model": "m",
        "messages": [{"role": "user", "content": "héllo"}],
        "temperature": 0.5,
        "seed": 1,
        "stream": True,
        "stream_options": {"include_obfuscation": False, "include_usage": True},
        "stop": ["][END]"],
        "max_completion_tokens": 7,
    }
    headers = upstream.last.headers
    assert headers["authorization"] == "Bearer k1"
    assert headers["content-type"] == "application/json"
    assert headers["accept-encoding"] == "identity"
    assert (headers["openai-organization"], headers["openai-project"]) == ("org", "proj")


async def test_a_request_without_extras(upstream):
    async with opened(upstream, include_usage=False) as model:
        await collect(await model.open(request(parameters={"stream_options": {"include_usage": True}})))
    assert upstream.last.json == {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


SEGMENTS = (Segment("model", "[CALL] a [HEAD] f() [END]"), Segment("runtime", "[INTR] a [HEAD] 1 [END]"))


@pytest.mark.parametrize(
    ("style", "added", "keys"),
    [
        (
            "none",
            [{"role": "assistant", "content": SEGMENTS[0].text}, {"role": "user", "content": SEGMENTS[1].text}],
            {},
        ),
        (
            "prefix",
            [{"role": "assistant", "content": f"{SEGMENTS[0].text}\n{SEGMENTS[1].text}", "prefix": True}],
            {},
        ),
        (
            "continue_final_message",
            [{"role": "assistant", "content": f"{SEGMENTS[0].text}\n{SEGMENTS[1].text}\n"}],
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
    ],
)
async def test_the_transcript_of_a_resume(upstream, style, added, keys):
    async with opened(upstream, prefill_style=style) as model:
        assert model.abilities("m").prefill is (style != "none")
        await collect(await model.open(request(transcript=SEGMENTS)))
        body = upstream.last.json
        assert body["messages"] == [{"role": "user", "content": "hi"}, *added]
        assert {key: body[key] for key in ("continue_final_message", "add_generation_prompt") if key in body} == keys
        await collect(await model.open(request()))
        assert upstream.last.json["messages"] == [{"role": "user", "content": "hi"}]
        assert "continue_final_message" not in upstream.last.json


@pytest.mark.parametrize(
    "name", ["gpt-4o", "gpt-4.1", "gpt-oss-120b", "llama-3", "o", "qwen3", "my-o3", "gpt-35-turbo"]
)
async def test_models_that_take_stop_sequences(name):
    assert OpenAIModel("http://x").abilities(name) == Abilities(stop_sequences=4)


@pytest.mark.parametrize(
    "name",
    ["o1", "o3-mini", "o4-mini-2025-04-16", "gpt-5", "gpt-5.2-pro", "gpt-6-sol", "openai/gpt-5-mini", "ft:o4-mini:x"],
)
async def test_reasoning_models_take_no_stop_sequences(name):
    assert OpenAIModel("http://x").abilities(name) == Abilities(stop_sequences=0)


async def test_configured_abilities_win():
    abilities = Abilities(stop_sequences=1, prefill=True)
    assert OpenAIModel("http://x", default_abilities=abilities).abilities("o3") is abilities


async def test_a_server_that_continues_the_last_assistant_message_by_itself(upstream):
    async with opened(upstream, default_abilities=Abilities(prefill=True)) as model:
        await collect(await model.open(request(transcript=SEGMENTS)))
    body = upstream.last.json
    assert body["messages"][1:] == [{"role": "assistant", "content": f"{SEGMENTS[0].text}\n{SEGMENTS[1].text}"}]
    assert "continue_final_message" not in body


@pytest.mark.parametrize(
    ("options", "client", "sent"),
    [
        ({"api_key": "own"}, "client", {"authorization": "Bearer own"}),
        ({}, "client", {"authorization": "Bearer client"}),
        ({}, None, {}),
        ({"api_key": ""}, None, {}),
        ({"headers": {"api-key": "azure"}}, "client", {"api-key": "azure"}),
        ({"headers": {"Authorization": "Basic x"}}, "client", {"authorization": "Basic x"}),
        ({"headers": {"X-Title": "t"}}, "client", {"authorization": "Bearer client", "x-title": "t"}),
    ],
)
async def test_whose_key_goes_out(upstream, monkeypatch, options, client, sent):
    # The environment's belong to somebody else.
    monkeypatch.setenv("OPENAI_API_KEY", "environment")
    monkeypatch.setenv("OPENAI_ORG_ID", "environment")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "environment")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://environment")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Environment: environment\nAuthorization: environment")
    async with opened(upstream, **options) as model:
        await collect(await model.open(request(api_key=client)))
    headers = upstream.last.headers
    names = ("authorization", "api-key", "x-title")
    assert {name: headers[name] for name in names if name in headers} == sent
    assert "environment" not in headers.values()


async def test_a_key_that_cannot_be_a_header_is_refused(upstream):
    async with opened(upstream) as model:
        with pytest.raises(ModelError) as caught:
            await model.open(request(api_key="sk-1\r\nX-Evil: 1"))
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert upstream.exchanges == []


async def test_azure_style_query(upstream):
    upstream.answers = [answer_hello]
    base_url = f"{upstream.url}/openai/deployments/d/?api-version=2026-01-01"
    model = OpenAIModel(base_url, headers={"api-key": "k"}, query={"tenant": "a b"})
    await collect(await model.open(request()))
    await model.aclose()
    assert upstream.last.path == "/v1/openai/deployments/d/chat/completions?api-version=2026-01-01&tenant=a+b"


@pytest.mark.parametrize(
    "url", ["", "api.openai.com", "ftp://x/v1", "http://", "http://me:secret@x/v1", "http://[", None]
)
def test_a_base_url_that_is_none(url):
    with pytest.raises(ValueError, match="base_url") as caught:
        OpenAIModel(url or "")
    assert "secret" not in str(caught.value)


async def test_a_large_request(upstream):
    async with opened(upstream) as model:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await collect(await model.open(request("x" * 3_000_000)))
    assert len(upstream.last.json["messages"][0]["content"]) == 3_000_000


# ------------------------------------------------------------------------------------------------ what comes back


async def test_one_batch_a_read(upstream):
    more = asyncio.Event()

    async def answer(exchange):
        exchange.head()
        exchange.chunk(sse(delta("a"), delta("b")))
        await more.wait()
        exchange.chunk(sse(delta("c"))[:20])
        exchange.chunk(
            sse(delta("c"))[20:], sse(delta(None, "stop"), {"choices": [], "usage": {"prompt_tokens": 3}}), DONE
        )
        exchange.end()

    async with opened(upstream, answer) as model:
        stream = await model.open(request())
        batches = aiter(stream)
        assert await anext(batches) == [TextDelta("a"), TextDelta("b")]
        more.set()
        rest = [event async for batch in batches for event in batch]
        assert rest == [TextDelta("c"), Ended("stop"), Usage(3)]


async def test_an_answer_that_came_whole(upstream):
    def answer(exchange):
        message = {"role": "assistant", "content": "Hello"}
        exchange.whole(json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode())

    async with opened(upstream, answer) as model:
        assert await collect(await model.open(request())) == EVENTS


async def test_an_answer_that_is_compressed_all_the_same(upstream):
    def answer(exchange):
        exchange.head(content_encoding="gzip")
        exchange.chunk(gzip.compress(HELLO))
        exchange.end()

    def refuse(exchange):
        body = gzip.compress(json.dumps({"error": {"message": "No"}}).encode())
        exchange.whole(body, status="400 Bad Request", content_encoding="gzip")

    async with opened(upstream, answer, refuse) as model:
        assert await collect(await model.open(request())) == EVENTS
        with pytest.raises(ModelError, match="No"):
            await model.open(request())


async def test_a_body_that_ends_with_the_connection(upstream):
    def answer(exchange):
        exchange.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + HELLO)
        exchange.close()

    async with opened(upstream, answer) as model:
        assert await collect(await model.open(request())) == EVENTS


async def test_a_server_that_forgets_to_end_after_the_finish_reason(upstream):
    async def stall(exchange):
        exchange.head()
        exchange.chunk(sse(delta("Hello", "stop")))
        await exchange.gone.wait()

    def cut(exchange):
        exchange.head()
        exchange.chunk(sse(delta("Hello", "stop")))
        exchange.close()

    async with opened(upstream, stall, cut, idle_timeout_s=0.2) as model:
        assert await collect(await model.open(request())) == EVENTS
        await upstream.last.gone.wait()
        assert await collect(await model.open(request())) == EVENTS


# -------------------------------------------------------------------------------------------------- how it fails


def refuse(status, body=b"", kind="application/json", **headers):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return lambda exchange: exchange.whole(body, kind, status, **headers)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            refuse("401 X", {"error": {"message": "Bad key sk-secret.", "type": "t", "code": "invalid_api_key"}}),
            {"status": 401, "message": "Bad key [key].", "type": "t", "code": "invalid_api_key"},
        ),
        (
            refuse("400 X", {"error": {"message": "m", "type": "t", "param": "stop", "code": None}}),
            {"status": 400, "message": "m", "type": "t", "param": "stop", "code": None},
        ),
        (
            refuse("400 X", {"object": "error", "message": "vLLM's", "type": "BadRequestError", "code": 400}),
            {"status": 400, "message": "vLLM's", "type": "BadRequestError", "code": "400"},
        ),
        (refuse("404 X", {"detail": "Not Found"}), {"status": 404, "message": "Not Found", "type": "not_found_error"}),
        (
            refuse("422 X", {"detail": [{"loc": ["body"]}]}),
            {"status": 422, "message": '[{"loc":["body"]}]', "type": "invalid_request_error"},
        ),
        (refuse("413 X", {"error": "too large"}), {"status": 413, "message": "too large", "type": "request_too_large"}),
        (refuse("403 X", b"go away sk-secret", "text/plain"), {"status": 403, "message": "go away [key]"}),
        (
            refuse("403 X", b"<html>no</html>", "text/html"),
            {"status": 403, "message": "The upstream answered with status 403 (Forbidden)."},
        ),
        (
            refuse("404 X"),
            {"status": 404, "message": "The upstream answered with status 404 (Not Found).", "type": "not_found_error"},
        ),
        (
            refuse("308 X", location="https://elsewhere/v1?key=sk-secret"),
            {
                "status": 502,
                "code": "upstream_redirect",
                "message": "The upstream answered with a redirect (308) to https://elsewhere/v1: "
                "set the upstream's base_url to where it really is.",
            },
        ),
        (
            refuse("200 OK", b"<html>welcome</html>", "text/html"),
            {
                "status": 502,
                "code": "upstream_malformed",
                "message": "The upstream sent a web page instead of an answer: check the upstream's base_url.",
            },
        ),
        (lambda exchange: exchange.whole(b"x" * 3_000_000, "text/plain", "400 X"), {"message": "x" * 2000 + "..."}),
    ],
)  # fmt: skip
async def test_refusals_that_are_not_retried(upstream, answer, expected):
    async with opened(upstream, answer, api_key="sk-secret") as model:
        with pytest.raises(ModelError) as caught:
            await model.open(request())
    assert {name: getattr(caught.value, name) for name in expected} == expected
    assert str(caught.value) == caught.value.message
    assert len(upstream.exchanges) == 1


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
async def test_refusals_that_are_retried(upstream, sleeps, status):
    busy = refuse(f"{status} X", {"error": {"message": "busy"}})
    async with opened(upstream, busy, busy, answer_hello, max_backoff_s=0.8) as model:
        assert await collect(await model.open(request())) == EVENTS
    assert len(upstream.exchanges) == 3
    assert upstream.connections == 1
    first, second = sleeps
    assert 0.375 <= first <= 0.5
    assert 0.6 <= second <= 0.8  # 1 s, capped


async def test_attempts_are_bounded_and_the_last_error_is_the_answer(upstream, sleeps):
    answers = [refuse("500 X", {"error": {"message": str(number)}}) for number in range(5)]
    async with opened(upstream, *answers, retries=4) as model:
        with pytest.raises(ModelError) as caught:
            await model.open(request())
    assert (caught.value.status, caught.value.message, len(upstream.exchanges)) == (500, "3", 4)


@pytest.mark.parametrize(
    ("headers", "waits"),
    [
        ({"retry-after": "3"}, [3.0]),
        ({"retry-after": "3", "retry-after-ms": "250"}, [0.25]),
        ({"retry-after": "8"}, [8.0]),
    ],
)
async def test_the_upstream_says_how_long_to_wait(upstream, sleeps, headers, waits):
    async with opened(upstream, refuse("429 X", **headers), answer_hello) as model:
        assert await collect(await model.open(request())) == EVENTS
    assert sleeps == waits


async def test_a_longer_wait_than_allowed_is_left_to_the_client(upstream, sleeps):
    async with opened(upstream, refuse("429 X", {"error": {"message": "busy"}}, retry_after="9")) as model:
        with pytest.raises(ModelError) as caught:
            await model.open(request())
    assert (caught.value.status, caught.value.retry_after, len(upstream.exchanges)) == (429, 9.0, 1)
    assert sleeps == []


@pytest.mark.parametrize(("status", "should", "attempts"), [("500 X", "false", 1), ("400 X", "true", 2)])
async def test_the_upstream_has_the_last_word_on_retries(upstream, sleeps, status, should, attempts):
    async with opened(upstream, refuse(status, x_should_retry=should), retries=2) as model:
        with pytest.raises(ModelError):
            await model.open(request())
    assert len(upstream.exchanges) == attempts


async def test_a_connection_that_breaks_before_the_answer_is_made_again(upstream, sleeps):
    def half(exchange):
        exchange.write(b"HTTP/1.1 200 O")
        exchange.close()

    async with opened(upstream, lambda exchange: exchange.drop(), half, answer_hello) as model:
        assert await collect(await model.open(request())) == EVENTS
    assert len(upstream.exchanges) == 3
    assert sleeps[0] == 0  # it may only have been kept for too long
    assert sleeps[1] > 0


async def test_what_is_not_http(upstream, sleeps):
    async with opened(upstream, lambda exchange: exchange.write(b"SSH-2.0-OpenSSH\r\n\r\n")) as model:
        with pytest.raises(ModelError) as caught:
            await model.open(request())
    assert (caught.value.status, caught.value.code) == (502, "upstream_unreachable")


async def test_an_upstream_that_is_down(unused_tcp_port, sleeps):
    model = OpenAIModel(f"http://127.0.0.1:{unused_tcp_port}/v1", api_key="sk-secret")
    with pytest.raises(ModelError) as caught:
        await model.open(request())
    await model.aclose()
    assert (caught.value.status, caught.value.code) == (502, "upstream_unreachable")
    assert caught.value.message == "The upstream could not be reached: Connection refused."
    assert len(sleeps) == 2


async def test_silence_before_the_answer_is_not_retried(upstream, sleeps):
    async with opened(upstream, lambda exchange: None, first_byte_timeout_s=0.05) as model:
        with pytest.raises(ModelError) as caught:
            await model.open(request())
        await upstream.last.gone.wait()
    assert (caught.value.status, caught.value.code) == (504, "upstream_timeout")
    assert caught.value.message == "The upstream sent nothing for 0.05 s (before the answer began)."
    assert len(upstream.exchanges) == 1


async def test_silence_in_the_answer(upstream):
    def answer(exchange):
        exchange.head()
        exchange.chunk(sse(delta("Hello")))

    async with opened(upstream, answer, idle_timeout_s=0.2, first_byte_timeout_s=30.0) as model:
        events, error = await collect_failing(await model.open(request()))
        await upstream.last.gone.wait()
    assert events == [TextDelta("Hello")]
    assert (error.status, error.code) == (504, "upstream_timeout")
    assert error.message == "The upstream sent nothing for 0.2 s (in the middle of the answer)."


async def test_time_that_nobody_reads_is_not_silence(upstream):
    async with opened(upstream, idle_timeout_s=0.2, first_byte_timeout_s=30) as model:
        stream = await model.open(request())
        await asyncio.sleep(0.5)
        assert await collect(stream) == EVENTS


async def test_heartbeats_are_no_silence(upstream):
    async def answer(exchange):
        exchange.head()
        for _ in range(4):
            await asyncio.sleep(0.25)
            exchange.chunk(b": still here\n\n")
        exchange.chunk(HELLO)
        exchange.end()

    async with opened(upstream, answer, idle_timeout_s=0.75) as model:
        assert await collect(await model.open(request())) == EVENTS


@pytest.mark.parametrize(
    ("sent", "events", "status", "code"),
    [
        (sse(delta("a")), [TextDelta("a")], 502, "upstream_disconnected"),
        (b"", [], 502, "upstream_disconnected"),
        (b"\x00\xffjunk\n\n\r\nmore", [], 502, "upstream_disconnected"),
        (sse(delta("a")) + b"data: {not json}\n\n" + HELLO, [TextDelta("a")], 502, "upstream_malformed"),
        (sse(delta("a"), {"error": {"message": "x", "code": 503}}), [TextDelta("a")], 503, "503"),
        (sse({"error": {"message": "x", "code": "overloaded"}}), [], 502, "overloaded"),
        (sse(delta("a")) + b"data: " + b"x" * 5000, [TextDelta("a")], 502, "upstream_malformed"),
    ],
)
@pytest.mark.parametrize("how", ["end", "close"])
async def test_answers_that_fail_are_not_retried(upstream, sent, events, status, code, how):
    def answer(exchange):
        exchange.head()
        exchange.chunk(sent or b": nothing\n\n")
        getattr(exchange, how)()

    async with opened(upstream, answer, max_event_bytes=3000) as model:
        stream = await model.open(request())
        got = []
        with pytest.raises(ModelError) as caught:
            async for batch in stream:
                got += batch
    assert got == events
    assert (caught.value.status, caught.value.code) == (status, code)
    assert len(upstream.exchanges) == 1
    assert [batch async for batch in stream] == []  # it fails once


async def test_a_connection_that_is_reset_in_the_answer(upstream):
    read = asyncio.Event()

    async def answer(exchange):
        exchange.head()
        exchange.chunk(sse(delta("a")))
        await read.wait()
        exchange.drop()

    async with opened(upstream, answer) as model:
        stream = await model.open(request())
        assert await anext(aiter(stream)) == [TextDelta("a")]
        read.set()
        events, error = await collect_failing(stream)
    assert (events, error.status, error.code) == ([], 502, "upstream_disconnected")


async def test_an_empty_answer(upstream):
    async with opened(upstream, lambda exchange: exchange.whole(b"", "text/event-stream")) as model:
        events, error = await collect_failing(await model.open(request()))
    assert (events, error.code) == ([], "upstream_disconnected")


# ------------------------------------------------------------------------------------------------- connections


async def test_connections_are_reused(upstream):
    refusal = refuse("400 X", {"error": {"message": "No"}})
    async with opened(upstream, answer_hello, refusal, answer_hello, answer_hello) as model:
        assert await collect(await model.open(request())) == EVENTS
        with pytest.raises(ModelError):
            await model.open(request())
        assert await collect(await model.open(request())) == EVENTS
        stream = await model.open(request())
        assert await collect(stream) == EVENTS
        await stream.aclose()
        assert upstream.connections == 1


async def test_a_body_that_ends_behind_the_answer_is_waited_for_a_moment(upstream):
    late = asyncio.Event()

    async def late_end(exchange):
        exchange.head()
        exchange.chunk(HELLO)
        await late.wait()
        exchange.end()

    async with opened(upstream, late_end, late_end, answer_hello) as model:
        # It comes while the next request is about to go out: that one takes its connection.
        assert await collect(await model.open(request())) == EVENTS
        opening = asyncio.create_task(model.open(request()))
        for _ in range(20):
            await asyncio.sleep(0)
        late.set()
        late.clear()
        assert await collect(await opening) == EVENTS
        assert upstream.connections == 1
        # It doesn't come.
        assert await collect(await model.open(request())) == EVENTS
        assert (upstream.connections, in_use(model)) == (2, 1)
        late.set()
        while in_use(model):
            await asyncio.sleep(0)
        assert await collect(await model.open(request())) == EVENTS
        assert upstream.connections == 2


async def test_more_streams_at_once_than_aiohttp_allows_by_default(upstream):
    more = asyncio.Event()

    async def answer(exchange):
        exchange.head()
        exchange.chunk(sse(delta("Hello")))
        await more.wait()
        exchange.chunk(sse(delta(None, "stop")), DONE)
        exchange.end()

    async with opened(upstream, answer) as model:
        streams = await asyncio.gather(*(model.open(request()) for _ in range(130)))
        assert upstream.open == 130
        more.set()
        assert await asyncio.gather(*(collect(stream) for stream in streams)) == [EVENTS] * 130


async def begin(exchange):
    exchange.head()
    exchange.chunk(sse(delta("Hello")))
    await exchange.gone.wait()


async def test_closing_drops_the_connection(upstream):
    async with opened(upstream, begin) as model:
        stream = await model.open(request())
        assert await anext(aiter(stream)) == [TextDelta("Hello")]
        await stream.aclose()
        await upstream.last.gone.wait()
        await stream.aclose()
        assert [batch async for batch in stream] == []


async def test_closing_behind_the_models_end_keeps_the_connection(upstream):
    closed = asyncio.Event()

    async def answer(exchange):
        exchange.head()
        exchange.chunk(sse(delta("Hello", "stop")))
        await closed.wait()
        exchange.chunk(DONE)
        exchange.end()

    async with opened(upstream, answer, answer_hello) as model:
        stream = await model.open(request())
        assert await anext(aiter(stream)) == EVENTS
        await stream.aclose()
        assert in_use(model) == 1
        closed.set()
        while in_use(model):
            await asyncio.sleep(0)
        assert await collect(await model.open(request())) == EVENTS
        assert upstream.connections == 1


async def test_closing_while_another_task_reads(upstream):
    async with opened(upstream, begin) as model:
        stream = await model.open(request())
        first = asyncio.Event()

        async def read():
            got = []
            async for batch in stream:
                got += batch
                first.set()
            return got

        reader = asyncio.create_task(read())
        await first.wait()
        await asyncio.sleep(0)
        await stream.aclose()
        await upstream.last.gone.wait()
        assert await reader == [TextDelta("Hello")]


async def test_closing_behind_the_models_end_while_another_task_reads(upstream):
    async def answer(exchange):
        exchange.head()
        exchange.chunk(sse(delta("Hello", "stop")))
        await exchange.gone.wait()

    async with opened(upstream, answer) as model:
        stream = await model.open(request())
        assert await anext(aiter(stream)) == EVENTS
        reader = asyncio.ensure_future(collect(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        assert await reader == []
        await upstream.last.gone.wait()


async def test_closing_while_the_upstream_writes_and_nobody_reads(upstream):
    async def flood(exchange):
        exchange.head()
        while not exchange.gone.is_set():
            exchange.chunk(sse(delta("x" * 1000)) * 10)
            await asyncio.sleep(0)

    async with opened(upstream, flood) as model:
        stream = await model.open(request())
        await anext(aiter(stream))
        await stream.aclose()
        await upstream.last.gone.wait()


async def test_a_reader_that_is_cancelled_can_go_on(upstream):
    more = asyncio.Event()

    async def answer(exchange):
        exchange.head()
        await more.wait()
        exchange.chunk(HELLO)
        exchange.end()

    async with opened(upstream, answer) as model:
        stream = await model.open(request())
        reader = asyncio.ensure_future(anext(aiter(stream)))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        more.set()
        assert await collect(stream) == EVENTS


async def test_an_open_that_is_cancelled_drops_the_connection(upstream):
    async with opened(upstream, lambda exchange: None) as model:
        opening = asyncio.ensure_future(model.open(request()))
        exchange = await upstream.arrival()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await exchange.gone.wait()


async def test_an_answer_that_is_complete_but_never_ends_is_dropped_in_the_end(upstream, monkeypatch):
    monkeypatch.setattr("asynclm.adapters.models.stream._LINGER_S", 0.01)

    async def answer(exchange):
        exchange.head()
        exchange.chunk(HELLO)
        await exchange.gone.wait()

    async with opened(upstream, answer) as model:
        assert await collect(await model.open(request())) == EVENTS
        await upstream.last.gone.wait()


async def test_closing_the_model_ends_its_streams(upstream):
    async with opened(upstream, begin) as model:
        stream = await model.open(request())
        assert await anext(aiter(stream)) == [TextDelta("Hello")]
    events, error = await collect_failing(stream)
    assert (events, error.code) == ([], "upstream_disconnected")
    await upstream.idle.wait()


def in_use(model):
    """Connections that are neither closed nor in the pool. Only aiohttp itself can tell."""
    session = model._upstream.http_client._transport._session
    return 0 if session is None else len(session.connector._acquired)


class CancelAt:
    """Runs a coroutine and cancels its task at the nth time that it waits for something."""

    def __init__(self, coroutine, n):
        self.coroutine, self.left = coroutine, n

    def __await__(self):
        task = asyncio.current_task()
        steps = self.coroutine.__await__()
        send, value = steps.send, None
        while True:
            try:
                future = send(value)
            except StopIteration as done:
                return done.value
            self.left -= 1
            if self.left == 0:
                asyncio.get_running_loop().call_soon(task.cancel)
            try:
                send, value = steps.send, (yield future)
            except BaseException as error:
                send, value = steps.throw, error


@pytest.mark.parametrize("new_connection", [True, False])
async def test_cancelled_at_any_await_nothing_is_left_open(upstream, sleeps, new_connection):
    async def slow(exchange):
        if len(upstream.exchanges) % 2:
            exchange.whole(b'{"error": {"message": "again"}}', status="500 X")
            return
        await asyncio.sleep(0)
        exchange.head()
        for text in "abc":
            await asyncio.sleep(0)
            exchange.chunk(sse(delta(text)))
        await asyncio.sleep(0)
        exchange.chunk(sse(delta(None, "stop")), DONE)
        exchange.end()

    async def run(model):
        stream = await model.open(request())
        try:
            return [event async for batch in stream for event in batch]
        finally:
            await stream.aclose()

    for n in range(1, 200):
        upstream.answers = [answer_hello]
        model = OpenAIModel(upstream.url)
        if not new_connection:
            await run(model)
        upstream.exchanges.clear()
        upstream.answers = [slow]

        async def cancelled(model=model, n=n):
            return await CancelAt(run(model), n)

        try:
            events = await asyncio.create_task(cancelled())
        except asyncio.CancelledError:
            assert in_use(model) == 0
        else:
            assert events == [*map(TextDelta, "abc"), Ended("stop")]
            assert in_use(model) == 0
            assert n > 5  # it did get cancelled in many places
            return
        finally:
            await model.aclose()
            await upstream.idle.wait()
    pytest.fail("it never ran to its end")


SECRETS = {
    "api_key": "sk-own",
    "headers": {"x-api-key": "k-1", "X-Tenant": "tenant-secret", "X-Short": "eu"},
    "query": {"sig": "query secret/1", "v": "2"},
}
LEAK = "No sk-own, k-1, tenant-secret, query secret/1, query%20secret%2F1, sk-client; eu 2. " + "x" * 1914 + "sk-own"
CLEAN = "No [key], [key], [key], [key], [key], [key]; eu 2. "


def leak_at_once(exchange):
    exchange.whole(json.dumps({"error": {"message": LEAK, "code": "sk-own"}}).encode(), status="500 X")


def leak_in_the_stream(exchange):
    exchange.head()
    exchange.chunk(sse({"error": {"message": LEAK, "code": "sk-own"}}))
    exchange.end()


def leak_in_a_document(exchange):
    exchange.whole(json.dumps({"error": {"message": LEAK, "code": "sk-own"}}).encode())


@pytest.mark.parametrize("answer", [leak_at_once, leak_in_the_stream, leak_in_a_document])
@pytest.mark.parametrize("kind", [OpenAIModel, AnthropicModel])
async def test_no_error_shows_a_secret(upstream, sleeps, caplog, kind, answer):
    caplog.set_level("DEBUG", "asynclm")
    if kind is AnthropicModel and answer is leak_in_the_stream:

        def answer(exchange):
            exchange.head()
            exchange.chunk(sse({"type": "error", "error": {"message": LEAK, "code": "sk-own"}}))
            exchange.end()

    upstream.answers = [answer] * 2
    model = kind(upstream.url, retries=2, **SECRETS)
    with pytest.raises(ModelError) as caught:
        async for _ in await model.open(request(api_key="sk-client")):
            pass
    await model.aclose()
    assert caught.value.message.startswith(CLEAN)
    assert len(caught.value.message) <= 2003
    said = f"{caught.value.message} {caught.value} {caught.value.code} {caplog.text}"
    assert not [secret for secret in ("sk-", "k-1", "tenant", "query") if secret in said]
