"""HTTP requests of tools, against real servers: where they go, what is retried, what is said when it goes wrong."""

import asyncio
import gzip
from typing import Any

import pytest
from aiohttp import web
from loopback import start
from services import Service, answering
from yarl import URL

from asynclm.adapters.tools.http import HttpClient, HttpRequest
from asynclm.adapters.tools.http_answer import value
from asynclm.adapters.tools.http_settings import HttpSettings
from asynclm.cml.tools import CallError

TOKEN = "t0ken+with/signs"


class Client(HttpClient):
    """Opened for the loopback interface, with one key; closes itself."""

    def __init__(self, *urls: str, **settings: Any) -> None:
        settings = {"allow_private": True, "bearer_env": "TOKEN", **settings}
        super().__init__(HttpSettings(**settings), {"TOKEN": TOKEN, "PAIR": "ann:s3cret-word", "KEY": "k-123456789"})
        self.allow(map(URL, urls))

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def get(self, url: str, **more: Any) -> Any:
        request = {"method": "GET", "url": URL(url, encoded=True), "repeatable": True, **more}
        return value(await self.send(HttpRequest(**request)))

    async def fails(self, url: str, **more: Any) -> str:
        with pytest.raises(CallError) as raised:
            await self.get(url, **more)
        assert raised.value.type == "tool_error"
        assert TOKEN not in raised.value.message
        return raised.value.message


async def test_a_request_carries_what_the_config_says() -> None:
    settings = {
        "bearer_env": None,
        "basic_env": "PAIR",
        "headers": {"X-Team": "blue"},
        "headers_env": {"X-Key": "KEY", "X-None": "NOT_SET"},
        "query": {"version": "1 a"},
        "query_env": {"key": "KEY"},
    }
    async with Service() as service, Client(service.url, **settings) as client:
        await client.get(f"{service.url}/a%2Fb?x=%2C", headers={"X-Own": "1"})
    received = service.last
    assert received.target == "/a%2Fb?x=%2C&version=1+a&key=k-123456789"
    assert received.headers["authorization"] == "Basic YW5uOnMzY3JldC13b3Jk"
    assert (received.headers["x-team"], received.headers["x-key"], received.headers["x-own"]) == (
        "blue",
        "k-123456789",
        "1",
    )
    assert "x-none" not in received.headers


async def test_keys_that_are_echoed_are_masked() -> None:
    async with Service() as service, Client(service.url) as client:
        echoed = await client.get(f"{service.url}/")
    assert service.last.headers["authorization"] == f"Bearer {TOKEN}"
    assert echoed["headers"]["authorization"] == "Bearer [key]"


async def test_what_is_fixed_and_no_key_is_not_masked() -> None:
    fixed = {
        "headers": {"X-Api-Version": "2022-11-28", "X-Api-Key": "abcd-1234"},
        "query": {"format": "detailed", "access_token": "efgh-5678"},
    }
    said = {"date": "2022-11-28", "kind": "detailed", "keys": ["abcd-1234", "efgh-5678"]}
    async with Service({"/": answering((200, said))}) as service, Client(service.url, **fixed) as client:
        assert await client.get(f"{service.url}/") == {**said, "keys": ["[key]", "[key]"]}


async def test_a_header_is_sent_once_however_it_is_written() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.extend(request.headers.getall("Accept") + request.headers.getall("X-A"))
        return web.json_response({})

    async with Service({"/": handler}) as service, Client(service.url, headers={"accept": "a/b", "x-a": "2"}) as client:
        await client.get(f"{service.url}/", headers={"X-A": "1"})
    assert seen == ["a/b", "2"]


async def test_a_key_that_no_header_can_hold_is_not_quoted() -> None:
    with pytest.raises(ValueError, match="the value of TOKEN holds characters that a header can't have") as raised:
        HttpClient(HttpSettings(bearer_env="TOKEN"), {"TOKEN": "se\ncret"})
    assert "se" + "\n" not in str(raised.value)


class TestResults:
    async def test_by_content_type(self) -> None:
        def made(body: bytes, kind: str, status: int = 200) -> Any:
            return answering(lambda: web.Response(body=body, status=status, headers={"Content-Type": kind}))

        handlers = {
            "/json": made(b'{"a": [1, 2.5]}', "application/json; charset=utf-8"),
            "/problem": made(b"[1]", "application/vnd.api+json"),
            "/broken": made(b'{"a": ', "application/json"),
            "/text": made("gr\u00fcn".encode("latin-1"), "text/plain; charset=latin-1"),
            "/strange": made("gr\u00fcn".encode(), "text/plain; charset=klingon"),
            "/xml": made(b"<a/>", "application/atom+xml"),
            "/png": made(b"\x89PNG", "image/png"),
            "/none": made(b"", "application/json", 204),
        }
        async with Service(handlers) as service, Client(service.url) as client:
            results = {path: await client.get(service.url + path) for path in handlers}
        assert results == {
            "/json": {"a": [1, 2.5]},
            "/problem": [1],
            "/broken": '{"a": ',
            "/text": "gr\u00fcn",
            "/strange": "gr\u00fcn",
            "/xml": "<a/>",
            "/png": {"content_type": "image/png", "bytes": 4, "note": "binary data is not shown"},
            "/none": {"status": 204},
        }

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({"error": {"message": "no such pet", "code": 7}}, "no such pet"),
            ({"title": "Gone", "detail": "It was sold."}, "It was sold."),
            ({"detail": [{"loc": ["query", "limit"], "msg": "too large"}, {"msg": "no"}]}, "too large; no"),
            ({"errors": ["a", "b"]}, "a; b"),
            ({"message": f"key {TOKEN} is wrong"}, "key [key] is wrong"),
            ("just words", '"just words"'),
            ({"x": 1}, '{"x": 1}'),
            ({"message": "x" * 2000}, "x" * 600 + "..."),
        ],
    )
    async def test_what_a_service_says_of_an_error(self, body: Any, said: str) -> None:
        async with Service({"/pets/7": answering((404, body))}) as service, Client(service.url) as client:
            url = f"{service.url}/pets/7?key=secret"
            assert await client.fails(url) == f"GET /pets/7: answered 404 Not Found: {said}"

    async def test_a_page_of_html_is_not_quoted(self) -> None:
        page = answering(lambda: web.Response(status=500, text="<html>...", content_type="text/html"))
        async with Service({"/": page}) as service, Client(service.url) as client:
            assert await client.fails(f"{service.url}/") == "GET /: answered 500 Internal Server Error"


class TestSize:
    @pytest.mark.parametrize("chunked", [False, True])
    async def test_fifty_megabytes_are_not_read(self, chunked: bool) -> None:
        sent = 0

        async def large(request: web.Request) -> web.StreamResponse:
            nonlocal sent
            response = web.StreamResponse()
            if not chunked:
                response.content_length = 50_000_000
            await response.prepare(request)
            for _ in range(50):
                await response.write(bytes(1_000_000))
                sent += 1_000_000
            return response

        async with Service({"/": large}) as service, Client(service.url, max_bytes=1_000_000) as client:
            message = await client.fails(f"{service.url}/")
        assert message == "GET /: the answer is larger than 1000000 bytes; ask for less"
        assert len(service.received) == 1  # asking again would not make it smaller
        assert sent < 50_000_000

    async def test_nor_is_what_only_becomes_large(self) -> None:
        bomb = gzip.compress(bytes(50_000_000))
        headers = {"Content-Encoding": "gzip"}
        handlers = {"/": answering(lambda: web.Response(body=bomb, headers=headers))}
        async with Service(handlers) as service, Client(service.url, max_bytes=1_000_000) as client:
            assert "larger than 1000000 bytes" in await client.fails(f"{service.url}/")

    async def test_of_an_error_only_the_beginning_is_read(self) -> None:
        handlers = {"/": answering(lambda: web.Response(status=404, text="no such pet " + "x" * 2_000_000))}
        async with Service(handlers) as service, Client(service.url, max_bytes=1_000_000) as client:
            assert "answered 404 Not Found: no such pet xxx" in await client.fails(f"{service.url}/")


class TestRetries:
    async def test_a_repeatable_request_is_sent_again(self) -> None:
        handler = answering((503, {}), (429, {}), (200, "at last"))
        async with Service({"/": handler}) as service, Client(service.url) as client:
            assert await client.get(f"{service.url}/") == "at last"
            assert len(service.received) == 3

    async def test_any_other_is_not(self) -> None:
        handler = answering((503, {"message": "busy"}))
        async with Service({"/": handler}) as service, Client(service.url) as client:
            message = await client.fails(f"{service.url}/", method="POST", body=b"x", repeatable=False)
            assert message == "POST /: answered 503 Service Unavailable: busy"
            assert len(service.received) == 1

    @pytest.mark.parametrize("status", [400, 401, 404, 500, 501])
    async def test_what_would_be_refused_again_is_not(self, status: int) -> None:
        async with Service({"/": answering((status, {}))}) as service, Client(service.url) as client:
            await client.fails(f"{service.url}/")
            assert len(service.received) == 1

    async def test_nor_what_is_to_wait_too_long(self) -> None:
        handler = answering(lambda: web.Response(status=429, headers={"Retry-After": "3600"}))
        async with Service({"/": handler}) as service, Client(service.url) as client:
            assert "429 Too Many Requests" in await client.fails(f"{service.url}/")
            assert len(service.received) == 1

    async def test_the_wait_is_the_one_asked_for(self) -> None:
        handler = answering(lambda: web.Response(status=503, headers={"Retry-After": "0"}), (200, "now"))
        async with Service({"/": handler}) as service, Client(service.url, retries=1) as client:
            assert await client.get(f"{service.url}/") == "now"

    async def test_as_often_as_the_config_says(self) -> None:
        handler = answering(lambda: web.Response(status=503, headers={"Retry-After": "0"}))
        async with Service({"/": handler}) as service, Client(service.url, retries=4) as client:
            await client.fails(f"{service.url}/")
            assert len(service.received) == 5


class TestRedirects:
    async def test_within_the_host_they_are_followed_with_the_key(self) -> None:
        async with Service() as service, Client(service.url) as client:
            service.handlers["/old"] = answering(lambda: web.Response(status=302, headers={"Location": "/new?a=1"}))
            assert (await client.get(f"{service.url}/old"))["target"] == "/new?a=1"
            assert service.last.headers["authorization"] == f"Bearer {TOKEN}"

    async def test_to_another_known_host_without_the_key(self) -> None:
        async with Service() as one, Service() as other, Client(one.url, other.url) as client:
            target = {"Location": f"{other.url}/x"}
            one.handlers["/"] = answering(lambda: web.Response(status=307, headers=target))
            assert (await client.get(f"{one.url}/", headers={"Cookie": "a=1"}))["target"] == "/x"
            assert not other.last.headers.keys() & {"authorization", "cookie"}

    @pytest.mark.parametrize(
        "to", ["http://example.com/", "http://127.0.0.1:1/", "http://169.254.169.254/latest/", "//evil.example/x"]
    )
    async def test_to_an_unknown_host_they_are_not(self, to: str) -> None:
        async with Service() as service, Client(service.url) as client:
            service.handlers["/"] = answering(lambda: web.Response(status=302, headers={"Location": to}))
            assert "is not a host of the document, so it is not requested" in await client.fails(f"{service.url}/")

    async def test_to_a_private_address_of_a_known_host_they_are_not(self) -> None:
        """As when a public service redirects to a name of its own that leads into the network."""
        async with Service() as public, Service(host="127.0.0.2") as private:
            async with Client(public.url, private.url, allow_private=("127.0.0.1",)) as client:
                target = {"Location": f"{private.url}/"}
                public.handlers["/"] = answering(lambda: web.Response(status=302, headers=target))
                message = await client.fails(f"{public.url}/")
            assert "127.0.0.2 is a loopback address, which allow_private does not allow" in message
            assert private.received == []
            assert len(public.received) == 1

    @pytest.mark.parametrize("to", ["file:///etc/passwd", "gopher://127.0.0.1/", "http://[::1", ""])
    async def test_to_what_is_no_address_they_are_not(self, to: str) -> None:
        async with Service() as service, Client(service.url) as client:
            service.handlers["/"] = answering(lambda: web.Response(status=302, headers={"Location": to}))
            message = await client.fails(f"{service.url}/")
            assert "without saying where to go" in message or "only http and https" in message

    async def test_in_a_circle_they_end(self) -> None:
        async with Service() as service, Client(service.url) as client:
            service.handlers["/"] = answering(lambda: web.Response(status=302, headers={"Location": "/"}))
            assert await client.fails(f"{service.url}/") == "GET /: answered with more than 5 redirects"
            assert len(service.received) == 6

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    async def test_nothing_is_posted_twice(self, status: int) -> None:
        async with Service() as service, Client(service.url) as client:
            service.handlers["/"] = answering(lambda: web.Response(status=status, headers={"Location": "/other"}))
            message = await client.fails(f"{service.url}/", method="POST", body=b"x", repeatable=False)
            assert message.endswith("which is not followed for POST")
            assert len(service.received) == 1

    async def test_see_other_is_looked_at(self) -> None:
        async with Service() as service, Client(service.url) as client:
            service.handlers["/"] = answering(lambda: web.Response(status=303, headers={"Location": "/done"}))
            more = {"method": "POST", "body": b"{}", "headers": {"Content-Type": "application/json"}}
            echoed = await client.get(f"{service.url}/", repeatable=False, **more)
            assert (echoed["method"], echoed["target"], echoed["body"]) == ("GET", "/done", "")
            assert "content-type" not in service.last.headers


class TestConnections:
    @pytest.mark.parametrize("url", ["http://unknown.example/", "http://127.0.0.1:9/", "ftp://127.0.0.1/"])
    async def test_only_known_hosts_are_asked(self, url: str) -> None:
        async with Client("http://127.0.0.1:80") as client:
            message = await client.fails(url)
            assert "is not a host of the document" in message or "only http and https" in message

    async def test_private_addresses_are_refused_and_not_tried_again(self) -> None:
        async with Service() as service, Client(service.url, allow_private=False) as client:
            message = await client.fails(f"{service.url}/")
            assert "127.0.0.1 is a loopback address, which allow_private does not allow" in message
            assert service.received == []

    async def test_a_host_that_the_config_trusts(self) -> None:
        async with Service() as service:
            url = f"http://localhost:{service.port}"
            async with Client(url, allow_private=("localhost",)) as client:
                assert (await client.get(f"{url}/x"))["target"] == "/x"

    async def test_nobody_there(self) -> None:
        async with Service() as service:
            pass
        async with Client(service.url, retries=0) as client:
            assert await client.fails(f"{service.url}/") == "GET /: 127.0.0.1 can't be reached: Connection refused"

    async def test_a_name_that_is_none(self) -> None:
        async with Client("http://nosuch.invalid", retries=0) as client:
            assert await client.fails("http://nosuch.invalid/") == "GET /: the name nosuch.invalid can't be resolved"

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (lambda exchange: exchange.drop(), "127.0.0.1"),
            (lambda exchange: exchange.close(), "127.0.0.1 closed the connection without an answer"),
            (lambda exchange: exchange.write(b"SSH-2.0-OpenSSH\r\n\r\n"), "127.0.0.1 did not answer in proper HTTP"),
            (
                lambda exchange: (exchange.head("application/json"), exchange.chunk(b"{"), exchange.close()),
                "the answer of 127.0.0.1 broke off",
            ),
            (
                lambda exchange: exchange.whole(b"no gzip", content_encoding="gzip"),
                "the answer of 127.0.0.1 broke off, or is not encoded as it says",
            ),
        ],
    )
    async def test_servers_that_answer_badly(self, answer: Any, said: str) -> None:
        upstream, server = await start()
        upstream.answers = [answer]
        async with server, Client(f"http://127.0.0.1:{upstream.port}", retries=0) as client:
            assert said in await client.fails(f"http://127.0.0.1:{upstream.port}/v1")

    async def test_a_call_that_is_cancelled_drops_its_connection(self) -> None:
        upstream, server = await start()
        upstream.answers = [lambda exchange: None]
        async with server, Client(f"http://127.0.0.1:{upstream.port}") as client:
            calling = asyncio.create_task(client.get(f"http://127.0.0.1:{upstream.port}/v1"))
            exchange = await upstream.arrival()
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            await exchange.gone.wait()

    async def test_cookies_are_not_kept(self) -> None:
        headers = {"Set-Cookie": "session=1"}
        handlers = {"/": answering(lambda: web.Response(headers=headers))}
        async with Service(handlers) as service, Client(service.url) as client:
            await client.get(f"{service.url}/")
            await client.get(f"{service.url}/")
            assert "cookie" not in service.last.headers

    async def test_the_proxy_of_the_environment_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Service() as service, Service() as other, Client(service.url) as client:
            monkeypatch.setenv("HTTP_PROXY", other.url)
            monkeypatch.delenv("NO_PROXY", raising=False)
            await client.get(f"{service.url}/")
            assert (len(service.received), len(other.received)) == (1, 0)


@pytest.mark.parametrize(
    ("settings", "key", "why"),
    [
        ({"base_url": "ftp://x"}, "base_url", "must be an http:// or https:// address"),
        ({"base_url": "https://u:p4ss@x"}, "base_url", "must not hold a user name"),
        ({"base_url": "https://x?key=1"}, "base_url", "must end with its path"),
        ({"base_url": "https://{x}"}, "base_url", "characters that an address can't have"),
        ({"bearer_env": "sk-123"}, "bearer_env", "must name environment variables"),
        ({"query_env": {"key": "a b"}}, "query_env", "must name environment variables"),
        ({"bearer_env": "A", "basic_env": "B"}, "basic_env", "makes no sense with bearer_env"),
        ({"headers": {"a b": "c"}}, "headers", "can't be the name of a header"),
        ({"headers": {"a": "b\nc"}}, "headers", "characters that a header can't have"),
        ({"allow_private": ("10.0.0.0/x",)}, "allow_private", "neither a host nor a network"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], key: str, why: str) -> None:
    problem = HttpSettings(**settings).problem()
    assert problem is not None
    assert problem[0] == key
    assert why in problem[1]
    assert "p4ss" not in problem[1]


def test_settings_are_shown_without_what_may_be_keys() -> None:
    shown = repr(HttpSettings(headers={"X-Key": "abc"}, query={"key": "def"}))
    assert "X-Key" in shown
    assert "abc" not in shown
    assert "def" not in shown
