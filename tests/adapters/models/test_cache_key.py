"""The key by which a conversation's requests find its prompts cached: what it is made of, and who is sent one."""

import contextlib
import json
import logging

import pytest
from loopback import collect, request

from asynclm.adapters.models import ModelError, OpenAIModel
from asynclm.adapters.models.cache_key import cache_key_for, knows_cache_key
from asynclm.cml.transcript import Segment


def message(role, content):
    return {"role": role, "content": content}


SYSTEM, ASKED = message("system", "Be brief."), message("user", "Hello")
FIRST = [SYSTEM, ASKED]
LATER = [*FIRST, message("assistant", "Hi."), message("user", "What is 1 + 2?")]


def test_a_conversation_keeps_its_key():
    key = cache_key_for(FIRST, {})
    assert key == cache_key_for(LATER, {}) == cache_key_for(LATER, {"temperature": 1, "seed": 7})
    assert key == cache_key_for([dict(reversed(message.items())) for message in FIRST], {})
    assert len(key) <= 64  # OpenAI's bound


def test_conversations_that_begin_otherwise_have_other_keys():
    parts = message("user", [{"type": "image_url", "image_url": {"url": "data:"}}])
    keys = [
        cache_key_for(FIRST, {}),
        cache_key_for([ASKED], {}),
        cache_key_for([message("system", "Be long."), ASKED], {}),
        cache_key_for([SYSTEM, message("user", "Hello?")], {}),
        cache_key_for([SYSTEM, parts], {}),
        cache_key_for(FIRST, {"user": "ann"}),
        cache_key_for(FIRST, {"safety_identifier": "ann"}),
        cache_key_for([SYSTEM, message("assistant", "Hello")], {}),
        cache_key_for([SYSTEM], {}),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("host", "knows"),
    [
        ("api.openai.com", True),
        ("eu.api.openai.com", True),
        ("mine.openai.azure.com", True),
        ("mine.services.ai.azure.com", True),
        ("api.mistral.ai", True),
        ("127.0.0.1", False),
        ("openrouter.ai", False),
        ("notopenai.com", False),
        ("openai.com.example.org", False),
    ],
)
def test_who_knows_it(host, knows):
    assert knows_cache_key(host) is knows


# ------------------------------------------------------------------------------------------------ over HTTP

HELLO = b'data: {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
SEGMENTS = (Segment("model", "[TRAP][END]"), Segment("runtime", "[INTR] a [HEAD] 1 [END]"))


def answer(exchange):
    exchange.head()
    exchange.chunk(HELLO)
    exchange.end()


@contextlib.asynccontextmanager
async def opened(upstream, url=None, **options):
    upstream.answers = [answer]
    model = OpenAIModel(url or upstream.url, **options)
    try:
        yield model
    finally:
        await model.aclose()


def keys(upstream):
    return [exchange.json.get("prompt_cache_key") for exchange in upstream.exchanges]


async def test_every_stream_of_a_run_has_the_same(upstream):
    async with opened(upstream, prompt_cache_key=True) as model:
        for transcript in ((), SEGMENTS, SEGMENTS * 2):
            await collect(await model.open(request(transcript=transcript, parameters={"prompt_cache_key": None})))
    assert keys(upstream) == [cache_key_for([message("user", "hi")], {})] * 3


async def test_the_clients_own_wins(upstream):
    async with opened(upstream, prompt_cache_key=True) as model:
        await collect(await model.open(request(parameters={"prompt_cache_key": "mine"})))
    async with opened(upstream, prompt_cache_key=False) as model:
        await collect(await model.open(request(parameters={"prompt_cache_key": "mine"})))
        await collect(await model.open(request()))
    assert keys(upstream) == ["mine", "mine", None]


@pytest.mark.parametrize(
    ("host", "sent"), [("api.openai.com", True), ("x.openai.azure.com", True), ("vllm.example.org", False)]
)
async def test_by_default_the_host_decides(upstream, monkeypatch, host, sent):
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{upstream.port}")  # so that the host's requests come here
    async with opened(upstream, f"http://{host}/v1") as model:
        await collect(await model.open(request()))
    assert upstream.last.path == f"http://{host}/v1/chat/completions"
    assert (keys(upstream) != [None]) is sent
    monkeypatch.delenv("http_proxy")
    async with opened(upstream) as model:
        await collect(await model.open(request()))
    assert keys(upstream)[-1] is None


REFUSALS = [
    ("400 Bad Request", {"error": {"message": "Unrecognized request argument supplied: prompt_cache_key"}}),
    ("400 Bad Request", {"error": {"message": "Not supported by this model.", "param": "prompt_cache_key"}}),
    ("422 Unprocessable Entity", {"detail": [{"loc": ["body", "prompt_cache_key"], "msg": "Extra inputs"}]}),
]


@pytest.mark.parametrize(("status", "body"), REFUSALS)
async def test_a_model_that_refuses_it_is_asked_without(upstream, caplog, status, body):
    def choosy(exchange):
        if exchange.json["model"] == "deepseek" and "prompt_cache_key" in exchange.json:
            exchange.whole(json.dumps(body).encode(), status=status)
        else:
            answer(exchange)

    async with opened(upstream, prompt_cache_key=True) as model:
        upstream.answers = [choosy]
        with caplog.at_level(logging.WARNING):
            for name in ("deepseek", "deepseek", "gpt-5"):
                await collect(await model.open(request(model=name)))
    assert [(exchange.json["model"], "prompt_cache_key" in exchange.json) for exchange in upstream.exchanges] == [
        ("deepseek", True),
        ("deepseek", False),
        ("deepseek", False),
        ("gpt-5", True),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "127.0.0.1 refuses prompt_cache_key for the model 'deepseek', where it is left out from now on"
    ]


@pytest.mark.parametrize(
    ("asked", "status", "text"),
    [
        ({}, "400 Bad Request", "No."),
        ({}, "401 Unauthorized", "prompt_cache_key? No."),
        ({"prompt_cache_key": "mine"}, "400 Bad Request", "Invalid 'prompt_cache_key': string too long."),
    ],
)
async def test_other_refusals_are_the_clients(upstream, asked, status, text):
    async with opened(upstream, prompt_cache_key=True) as model:
        upstream.answers = [
            lambda exchange: exchange.whole(json.dumps({"error": {"message": text}}).encode(), status=status)
        ]
        with pytest.raises(ModelError, match=text[:5]):
            await model.open(request(parameters=asked))
    assert len(upstream.exchanges) == 1
