"""What the transport does on its own: proxies, cookies, error answers without end."""

import contextlib
import socket
import sys

import pytest
from loopback import collect, request

from asynclm.adapters.models import ModelError, OpenAIModel

HELLO = b'data: {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def answer_hello(exchange):
    exchange.head(set_cookie="session=1; Path=/")
    exchange.chunk(HELLO)
    exchange.end()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY"])
async def test_a_proxy_from_the_environment(upstream, monkeypatch, variable):
    monkeypatch.setenv(variable, f"http://127.0.0.1:{upstream.port}")
    upstream.answers = [answer_hello]
    model = OpenAIModel("http://somewhere.invalid/v1")
    await collect(await model.open(request()))
    await model.aclose()
    assert upstream.last.path == "http://somewhere.invalid/v1/chat/completions"


async def test_hosts_that_need_no_proxy(upstream, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    upstream.answers = [answer_hello]
    model = OpenAIModel(upstream.url)
    await collect(await model.open(request()))
    await model.aclose()
    assert upstream.last.path == "/v1/chat/completions"


def test_a_proxy_of_another_kind_is_named_at_once(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://user:secret@127.0.0.1:1")
    with pytest.raises(ValueError, match="the proxy in the environment for somewhere") as caught:
        OpenAIModel("http://somewhere.invalid/v1")
    assert "secret" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses connections")
async def test_a_connection_that_takes_too_long(sleeps):
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):  # nobody accepts: the third one gets no answer
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        model = OpenAIModel(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", connect_timeout_s=0.05, retries=2)
        with pytest.raises(ModelError) as caught:
            await model.open(request())
        await model.aclose()
    assert (caught.value.status, caught.value.code) == (502, "upstream_unreachable")
    assert caught.value.message == "The upstream could not be reached: the connection could not be made in time."
    assert len(sleeps) == 1


async def test_cookies_are_not_kept(upstream):
    upstream.answers = [answer_hello]
    model = OpenAIModel(upstream.url)
    await collect(await model.open(request(api_key="one")))
    await collect(await model.open(request(api_key="another")))
    await model.aclose()
    assert upstream.connections == 1
    assert "cookie" not in upstream.last.headers


async def test_an_error_answer_without_end_is_cut(upstream):
    async def refuse(exchange):
        exchange.head("text/plain", status="400 Bad Request")
        for _ in range(40):
            exchange.chunk(b"x" * 65536)
        await exchange.gone.wait()

    upstream.answers = [refuse]
    model = OpenAIModel(upstream.url)
    with pytest.raises(ModelError) as caught:
        await model.open(request())
    assert (caught.value.status, len(caught.value.message)) == (400, 2003)
    await upstream.last.gone.wait()
    await model.aclose()
