"""The adapter against real HTTP. What the two hosted adapters share is tested with the other one."""

import asyncio
import contextlib
import json

import pytest
from loopback import collect, collect_failing, request

from asynclm.adapters.models import Abilities, AnthropicModel, Ended, ModelError, TextDelta
from asynclm.cml.transcript import Segment
from asynclm.cml.usage import Usage


def sse(*events) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events
    )


START = {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}
TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}
ENDED = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}
HELLO = sse(START, TEXT, ENDED, {"type": "message_stop"})
EVENTS = [TextDelta("Hello"), Ended("stop"), Usage(5, 3)]


def answer_hello(exchange):
    exchange.head()
    exchange.chunk(HELLO)
    exchange.end()


@contextlib.asynccontextmanager
async def opened(upstream, *answers, **options):
    upstream.answers = list(answers or [answer_hello])
    model = AnthropicModel(upstream.url.removesuffix("/v1"), **options)
    try:
        yield model
    finally:
        await model.aclose()


async def test_the_request(upstream):
    async with opened(upstream, api_key="k1", prompt_cache=False, max_tokens=99) as model:
        assert await collect(await model.open(request(model="claude-sonnet-5", api_key="client's"))) == EVENTS
    assert (upstream.last.method, upstream.last.path) == ("POST", "/v1/messages")
    assert upstream.last.json == {
        "model": "claude-sonnet-5",
        "max_tokens": 99,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "stream": True,
    }
    headers = upstream.last.headers
    assert headers["authorization"] == "Bearer k1"
    assert headers["anthropic-version"] == "2026-10-21"
    assert headers["accept-encoding"] == "identity"


async def test_a_base_url_with_the_version_in_it(upstream):
    upstream.answers = [answer_hello]
    model = AnthropicModel(f"{upstream.url}/")
    assert await collect(await model.open(request())) == EVENTS
    await model.aclose()
    assert upstream.last.path == "/v1/messages"


@pytest.mark.parametrize(
    ("model_name", "parameters", "options", "version", "temperature"),
    [
        ("claude-sonnet-4-6", {"temperature": 0.5}, {}, "2023-06-01", 0.5),
        ("claude-sonnet-4-6", {}, {}, "2026-10-21", None),
        ("claude-opus-4-7", {"temperature": 0.5}, {}, "2026-10-21", None),
        ("claude-sonnet-4-6", {"temperature": 0.5}, {"headers": {"Anthropic-Version": "x"}}, "x", 0.5),
    ],
)
async def test_the_api_version_goes_by_the_sampling_parameters(
    upstream, model_name, parameters, options, version, temperature
):
    async with opened(upstream, **options) as model:
        await collect(await model.open(request(model=model_name, parameters=parameters)))
    assert upstream.last.headers["anthropic-version"] == version
    assert upstream.last.json.get("temperature") == temperature


@pytest.mark.parametrize(
    ("options", "client", "sent"),
    [
        ({"api_key": "own"}, "client", {"authorization": "Bearer own"}),
        ({}, "client", {"authorization": "Bearer client"}),
        ({}, None, {}),
        ({"headers": {"X-Api-Key": "own"}}, "client", {"x-api-key": "own"}),
        ({"headers": {"Authorization": "Bearer own"}}, "client", {"authorization": "Bearer own"}),
    ],
)
async def test_whose_key_goes_out(upstream, monkeypatch, options, client, sent):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "environment")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "environment")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://environment")
    async with opened(upstream, **options) as model:
        await collect(await model.open(request(api_key=client)))
    names = ("authorization", "x-api-key")
    assert {name: value for name, value in upstream.last.headers.items() if name in names} == sent


async def test_abilities():
    model = AnthropicModel()
    assert model.abilities("claude-sonnet-4-5") == Abilities(prefill=True, stop_sequences=16)
    assert model.abilities("claude-sonnet-4-6") == Abilities(prefill=False, stop_sequences=16)
    configured = Abilities(stop_sequences=2)
    assert AnthropicModel(default_abilities=configured).abilities("claude-sonnet-4-5") is configured


@pytest.mark.parametrize(
    ("name", "roles"),
    [("claude-haiku-4-5", ["user", "assistant"]), ("claude-opus-5", ["user", "assistant", "user"])],
)
async def test_a_resume_goes_by_the_abilities(upstream, name, roles):
    transcript = (Segment("model", "[TRAP][END]"), Segment("runtime", "[INTR] a [HEAD] 1 [END]"))
    async with opened(upstream) as model:
        await collect(await model.open(request(model=name, transcript=transcript)))
    assert [turn["role"] for turn in upstream.last.json["messages"]] == roles


async def test_refusals(upstream, sleeps):
    def refuse(status, type, **headers):
        body = {"type": "error", "error": {"type": type, "message": "No, sk-secret."}, "request_id": "r"}
        return lambda exchange: exchange.whole(json.dumps(body).encode(), status=status, **headers)

    async with opened(upstream, refuse("401 X", "authentication_error"), api_key="sk-secret") as model:
        with pytest.raises(ModelError) as caught:
            await model.open(request())
        assert (caught.value.status, caught.value.type) == (401, "authentication_error")
        assert caught.value.message == "No, [key]."
        assert sleeps == []
        upstream.answers = [refuse("529 X", "overloaded_error", retry_after="2"), answer_hello]
        assert await collect(await model.open(request())) == EVENTS
        assert sleeps == [2.0]
        upstream.answers = [refuse("302 X", "?", location="/elsewhere")]
        with pytest.raises(ModelError) as caught:
            await model.open(request())
        assert (caught.value.status, caught.value.code) == (502, "upstream_redirect")


async def test_an_upstream_that_is_down(unused_tcp_port, sleeps):
    model = AnthropicModel(f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(ModelError) as caught:
        await model.open(request())
    await model.aclose()
    assert caught.value.message == "The upstream could not be reached: Connection refused."
    assert len(sleeps) == 2


async def test_silence(upstream):
    def begin(exchange):
        exchange.head()
        exchange.chunk(sse(START, TEXT))

    quick = {"first_byte_timeout_s": 0.2, "idle_timeout_s": 0.2}
    async with opened(upstream, lambda exchange: None, begin, **quick) as model:
        with pytest.raises(ModelError) as caught:
            await model.open(request())
        assert (caught.value.status, caught.value.code) == (504, "upstream_timeout")
        events, error = await collect_failing(await model.open(request()))
        assert (events, error.status, error.code) == ([TextDelta("Hello")], 504, "upstream_timeout")


async def test_an_error_event_first_is_not_retried(upstream):
    def fail(exchange):
        exchange.head()
        exchange.chunk(sse({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}))
        exchange.end()

    async with opened(upstream, fail) as model:
        events, error = await collect_failing(await model.open(request()))
    assert (events, error.status, error.message) == ([], 529, "Overloaded")
    assert len(upstream.exchanges) == 1


async def test_an_answer_that_came_whole(upstream):
    document = {
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 5, "output_tokens": 3},
    }
    async with opened(upstream, lambda exchange: exchange.whole(json.dumps(document).encode())) as model:
        assert await collect(await model.open(request())) == EVENTS


async def test_connections_are_reused_and_dropped(upstream):
    async def begin(exchange):
        exchange.head()
        exchange.chunk(sse(START, TEXT))
        await exchange.gone.wait()

    async with opened(upstream, answer_hello, answer_hello, begin, lambda exchange: None) as model:
        await collect(await model.open(request()))
        await collect(await model.open(request()))
        stream = await model.open(request())
        assert upstream.connections == 1
        assert await anext(aiter(stream)) == [TextDelta("Hello")]
        await stream.aclose()
        await upstream.last.gone.wait()
        upstream.arrived.clear()
        opening = asyncio.ensure_future(model.open(request()))
        exchange = await upstream.arrival()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await exchange.gone.wait()
