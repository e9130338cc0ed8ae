"""Operations as tools, against a real service: names, arguments, requests, effects, and documents that are wrong."""

import asyncio
import email
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from loopback import start
from services import Received, Service, answering

from asynclm.adapters.tools.http_settings import HttpSettings
from asynclm.adapters.tools.openapi import OpenAPISource
from asynclm.adapters.tools.options import Options, ToolDefinitionError
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.tools import CallError, Effect, Invocation

STRING = {"type": "string"}
INTEGER = {"type": "integer"}
OPEN = HttpSettings(allow_private=True)


def parameter(name: str, where: str = "query", schema: Any = STRING, **more: Any) -> dict[str, Any]:
    return {"name": name, "in": where, "schema": schema, **({"required": True} if where == "path" else {}), **more}


def body(schema: Any, kind: str = "application/json", required: bool = True, **more: Any) -> dict[str, Any]:
    return {"required": required, "content": {kind: {"schema": schema, **more}}}


def document(*parameters: Any, path: str = "/x", method: str = "get", **operation: Any) -> dict[str, Any]:
    """A document with one operation, `go`."""
    return {
        "openapi": "3.1.0",
        "paths": {path: {method: {"operationId": "go", "parameters": list(parameters), **operation}}},
    }


@asynccontextmanager
async def tools(contents: Any, url: str | None = "http://127.0.0.1:9", **more: Any) -> AsyncIterator[Toolbox]:
    """The tools of a document whose service is at `url`."""
    http = more.pop("http", OPEN)
    pages = {"/api": answering(lambda: web.Response(text=json.dumps(contents)))}
    async with Service(pages) as host:
        if url is not None:
            contents = {"servers": [{"url": url}], **contents}
        source = OpenAPISource(f"{host.url}/api", http=http, base=Path(), environ=more.pop("environ", {}), **more)
        try:
            yield Toolbox(await source.open(lambda tools: None))
        finally:
            await source.aclose()


async def call(box: Toolbox, name: str = "go", /, **arguments: Any) -> Any:
    spec, checked = box.check(Invocation(name, (), arguments))
    return await box[spec.name].run(checked)


async def sent(contents: Any, **arguments: Any) -> Received:
    """What a call of `go` sends."""
    async with Service() as service, tools(contents, service.url) as box:
        await call(box, **arguments)
        return service.last


async def refused(contents: Any, **more: Any) -> str:
    with pytest.raises(ToolDefinitionError) as raised:
        async with tools(contents, **more):
            pass
    place, _, said = str(raised.value).partition("/api: ")
    assert place.startswith("http://127.0.0.1:")
    assert "\n" not in said
    return said


class TestQueries:
    @pytest.mark.parametrize(
        ("style", "value", "query"),
        [
            ({}, "a b&c", "p=a%20b%26c"),
            ({}, True, "p=true"),
            ({}, 3.0, "p=3"),
            ({}, 0.25, "p=0.25"),
            ({}, None, ""),
            ({}, "", "p="),
            ({}, ["a", "b,c"], "p=a&p=b%2Cc"),
            ({}, [], ""),
            ({}, {"a": 1, "b": None, "c": "x y"}, "a=1&c=x%20y"),
            ({"explode": False}, ["a", "b,c"], "p=a,b%2Cc"),
            ({"explode": False}, {"a": 1, "b": 2}, "p=a,1,b,2"),
            ({"style": "spaceDelimited", "explode": False}, ["a", "b"], "p=a%20b"),
            ({"style": "pipeDelimited", "explode": False}, ["a", "b"], "p=a|b"),
            ({"style": "deepObject"}, {"a": 1, "b": {"c": "x"}, "d": [1, 2]}, "p[a]=1&p[b][c]=x&p[d][]=1&p[d][]=2"),
            ({"allowReserved": True}, "a/b?c:d&e#", "p=a/b?c:d%26e%23"),
            ({"allowReserved": False}, "a/b", "p=a%2Fb"),
        ],
    )
    async def test_styles(self, style: Any, value: Any, query: str) -> None:
        received = await sent(document(parameter("p", schema={}, **style)), p=value)
        assert received.target.partition("?")[2] == query

    async def test_content_instead_of_a_schema(self) -> None:
        as_json = {"name": "f", "in": "query", "content": {"application/json": {"schema": {"type": "object"}}}}
        assert (await sent(document(as_json), f={"a": [1]})).target == "/x?f=%7B%22a%22%3A%5B1%5D%7D"


class TestPaths:
    @pytest.mark.parametrize(
        ("style", "value", "path"),
        [
            ({}, "a/b c?", "/a%2Fb%20c%3F/end"),
            ({}, 7, "/7/end"),
            ({}, ["a", "b"], "/a,b/end"),
            ({}, {"a": 1}, "/a,1/end"),
            ({"explode": True}, {"a": 1, "b": 2}, "/a=1,b=2/end"),
            ({"style": "label"}, ["a", "b"], "/.a,b/end"),
            ({"style": "label", "explode": True}, ["a", "b"], "/.a.b/end"),
            ({"style": "matrix"}, ["a", "b"], "/;p=a,b/end"),
            ({"style": "matrix", "explode": True}, ["a", "b"], "/;p=a;p=b/end"),
        ],
    )
    async def test_styles(self, style: Any, value: Any, path: str) -> None:
        contents = document(parameter("p", "path", {}, **style), path="/{p}/end")
        assert (await sent(contents, p=value)).target == path

    @pytest.mark.parametrize(
        ("path", "target"),
        [
            ("/a b/{p}", "/a%20b/x"),
            ("/caf\u00e9/{p}", "/caf%C3%A9/x"),
            ("/a%20b/{p}", "/a%20b/x"),
            ("/x:run/{p}?action=go", "/x:run/x?action=go&q=1"),
            ("/{p}/a\tX#y", "/x/a%09X%23y"),
        ],
    )
    async def test_what_else_stands_in_them(self, path: str, target: str) -> None:
        contents = document(parameter("p", "path"), parameter("q"), path=path)
        more = {"q": "1"} if "?" in path else {}
        assert (await sent(contents, p="x", **more)).target == target

    async def test_a_value_is_never_a_template(self) -> None:
        contents = document(parameter("a", "path"), parameter("\u00fc", "path"), path="/{a}/{\u00fc}")
        assert (await sent(contents, a="{\u00fc}", ü="1")).target == "/%7B%C3%BC%7D/1"

    @pytest.mark.parametrize("value", ["", ".", "..", []])
    async def test_what_would_lead_elsewhere(self, value: Any) -> None:
        async with tools(document(parameter("p", "path", {}), path="/pets/{p}")) as box:
            with pytest.raises(CallError, match="can't be part of a path") as raised:
                await call(box, p=value)
        assert raised.value.type == "invalid_arguments"


class TestHeaders:
    async def test_headers_and_cookies(self) -> None:
        contents = document(
            parameter("X-Ids", "header", {"type": "array"}), parameter("session", "cookie"), parameter("b", "cookie")
        )
        received = await sent(contents, X_Ids=[1, 2], session="a b", b="1")
        assert received.headers["x-ids"] == "1,2"
        assert received.headers["cookie"] == "session=a%20b; b=1"

    async def test_none_can_be_smuggled_in(self) -> None:
        async with tools(document(parameter("X-Id", "header"))) as box:
            with pytest.raises(CallError, match="a header can't hold control characters"):
                await call(box, X_Id="1\r\nX-Admin: 1")

    async def test_those_of_the_protocol_are_no_arguments(self) -> None:
        names = ("Accept", "content-type", "Authorization", "Host", "Transfer-Encoding", "Cookie")
        contents = document(*(parameter(name, "header") for name in names))
        async with tools(contents) as box:
            assert box["go"].spec.parameters["properties"] == {}


OBJECT = {"type": "object", "properties": {"a": STRING, "b": {"type": "array"}}, "required": ["a"]}


class TestBodies:
    async def test_properties_are_arguments(self) -> None:
        contents = document(method="post", requestBody=body(OBJECT))
        received = await sent(contents, a="\u00e9", b=[1])
        assert received.headers["content-type"] == "application/json"
        assert json.loads(received.body) == {"a": "\u00e9", "b": [1]}

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "array", "items": INTEGER},
            {"type": "object"},
            {"type": "object", "properties": {"a": STRING}, "additionalProperties": True},
            {"type": "object", "properties": {"a": STRING}, "additionalProperties": INTEGER},
            {"oneOf": [{"properties": {"a": STRING}}, {"properties": {"b": STRING}}]},
            {"type": ["object", "null"], "properties": {"a": STRING}},
            {},
        ],
    )
    async def test_any_other_is_one_argument(self, schema: Any) -> None:
        async with tools(document(method="post", requestBody=body(schema))) as box:
            assert list(box["go"].spec.parameters["properties"]) == ["body"]
            assert box["go"].spec.parameters["required"] == ["body"]

    async def test_one_argument_is_sent_as_it_is(self) -> None:
        contents = document(method="put", requestBody=body({"type": "array"}))
        assert (await sent(contents, body=[1, {"a": None}])).body == b'[1,{"a":null}]'

    async def test_what_may_be_left_out_whole(self) -> None:
        contents = document(method="post", requestBody=body(OBJECT, required=False))
        received = await sent(contents)
        assert (received.body, "content-type" in received.headers) == (b"", False)
        assert (await sent(contents, body={"a": "x"})).body == b'{"a":"x"}'
        optional = {"type": "object", "properties": {"a": STRING}}
        assert (await sent(document(method="post", requestBody=body(optional, required=False)), a="x")).body == (
            b'{"a":"x"}'
        )

    async def test_parts_that_are_put_together(self) -> None:
        schema = {"allOf": [OBJECT, {"properties": {"id": {**INTEGER, "readOnly": True}, "c": INTEGER}}]}
        async with tools(document(method="post", requestBody=body(schema))) as box:
            assert list(box["go"].spec.parameters["properties"]) == ["a", "b", "c"]

    async def test_forms(self) -> None:
        schema = {"properties": {name: {} for name in ("a", "list", "object", "deep")}}
        form = body(
            schema, "application/x-www-form-urlencoded", encoding={"deep": {"style": "deepObject", "explode": True}}
        )
        received = await sent(
            document(method="post", requestBody=form), a="x&y z", list=[1, 2], object={"k": 1}, deep={"k": {"l": 1}}
        )
        assert received.headers["content-type"] == "application/x-www-form-urlencoded"
        assert received.body == b"a=x%26y%20z&list=1&list=2&object=%7B%22k%22%3A1%7D&deep[k][l]=1"

    async def test_forms_of_any_fields(self) -> None:
        form = body({"type": "object"}, "application/x-www-form-urlencoded")
        assert (await sent(document(method="post", requestBody=form), body={"a": 1, "b": "x y"})).body == b"a=1&b=x%20y"

    async def test_forms_of_several_parts(self) -> None:
        contents = document(method="post", requestBody=body({"properties": {"a": {}, 'b"': {}}}, "multipart/form-data"))
        received = await sent(contents, a="line 1\r\nline 2", b={"k": 1})
        head = f"content-type: {received.headers['content-type']}\r\n\r\n".encode()
        parts = email.message_from_bytes(head + received.body).get_payload()
        assert [(part["content-disposition"], part.get_content_type(), part.get_payload()) for part in parts] == [
            ('form-data; name="a"', "text/plain", "line 1\r\nline 2"),
            ('form-data; name="b%22"', "application/json", '{"k":1}'),
        ]

    async def test_files_in_forms(self) -> None:
        properties = {
            "old": {"type": "string", "format": "binary"},
            "new": {"type": "string", "contentMediaType": "text/csv"},
            "many": {"type": "array", "items": {"type": "string", "format": "binary"}},
            "note": {"type": "string"},
            "meta": {"type": "string"},
        }
        encoding = {"old": {"contentType": "text/csv, text/plain"}, "meta": {"contentType": "application/json"}}
        contents = document(
            method="post", requestBody=body({"properties": properties}, "multipart/form-data", encoding=encoding)
        )
        received = await sent(contents, old="a,b", new="c", many=["d", "e"], note="n", meta="m")
        head = f"content-type: {received.headers['content-type']}\r\n\r\n".encode()
        parts = email.message_from_bytes(head + received.body).get_payload()
        assert [(part.get_filename(), part["content-type"], part.get_payload()) for part in parts] == [
            ("old", "text/csv", "a,b"),
            ("new", "application/octet-stream", "c"),
            ("many", "application/octet-stream", "d"),
            ("many", "application/octet-stream", "e"),
            (None, None, "n"),
            (None, "application/json", '"m"'),
        ]

    async def test_plain_text(self) -> None:
        received = await sent(document(method="post", requestBody=body(STRING, "text/plain")), body="hello")
        assert (received.body, received.headers["content-type"]) == (b"hello", "text/plain")

    async def test_json_is_preferred(self) -> None:
        content = {"application/xml": {}, "application/x-www-form-urlencoded": {}, "application/ld+json": {}}
        received = await sent(document(method="post", requestBody={"required": True, "content": content}), body=1)
        assert (received.body, received.headers["content-type"]) == (b"1", "application/ld+json")

    async def test_what_is_not_written_here_is_left_out(self, caplog: pytest.LogCaptureFixture) -> None:
        contents = document(method="post", requestBody=body(STRING, "application/xml"))
        contents["paths"]["/y"] = {"get": {"operationId": "other"}}
        with caplog.at_level(logging.WARNING):
            async with tools(contents) as box:
                assert [spec.name for spec in box.specs()] == ["other"]
        assert "left out: POST /x (its body is application/xml, which is not written here)" in caplog.text


class TestArguments:
    async def test_names_and_clashes(self) -> None:
        contents = document(
            parameter("id", "path"),
            parameter("id"),
            parameter("id", "header"),
            parameter("id", "cookie"),
            parameter("query_id"),
            parameter("filter[name]"),
            parameter("class"),
            parameter("$top", required=True),
            parameter("2nd"),
            path="/x/{id}",
            method="post",
            requestBody=body({"properties": {"id": INTEGER, "from": STRING}, "required": ["id"]}),
        )
        async with tools(contents) as box:
            assert list(box["go"].spec.parameters["properties"]) == [
                "id",
                "top",
                "body_id",
                "query_id",
                "query_query_id",
                "filter_name",
                "class_",
                "_2nd",
                "header_id",
                "cookie_id",
                "from_",
            ]
        received = await sent(
            contents,
            id="p",
            top="t",
            body_id=1,
            query_id="q",
            query_query_id="r",
            filter_name="f",
            from_="g",
            header_id="h",
        )
        assert received.target == "/x/p?%24top=t&id=q&query_id=r&filter[name]=f"
        assert (received.headers["id"], json.loads(received.body)) == ("h", {"id": 1, "from": "g"})

    async def test_the_operations_own_win_over_the_paths(self) -> None:
        contents = document(parameter("a", schema=INTEGER, description="Own."))
        contents["paths"]["/x"]["parameters"] = [parameter("a"), {"$ref": "#/components/parameters/B"}]
        contents["components"] = {"parameters": {"B": parameter("b", description=" Of the\npath. ")}}
        async with tools(contents) as box:
            assert box["go"].spec.parameters["properties"] == {
                "b": {"type": "string", "description": "Of the path."},
                "a": {"type": "integer", "description": "Own."},
            } or list(box["go"].spec.parameters["properties"]) == ["a", "b"]

    async def test_what_the_config_provides_is_none(self) -> None:
        http = HttpSettings(allow_private=True, headers_env={"X-Key": "KEY"}, query={"version": "2"})
        contents = document(parameter("x-key", "header", required=True), parameter("version"), parameter("a"))
        async with Service() as service:
            async with tools(contents, service.url, http=http, environ={"KEY": "k-12345678"}) as box:
                assert list(box["go"].spec.parameters["properties"]) == ["a"]
                await call(box, a="1")
            assert service.last.target == "/x?a=1&version=2"
            assert service.last.headers["x-key"] == "k-12345678"

    async def test_a_wrong_one_is_refused_before_anything_is_sent(self) -> None:
        async with tools(document(parameter("limit", schema={**INTEGER, "maximum": 5}))) as box:
            with pytest.raises(CallError, match="argument 'limit': 9 is greater than the maximum of 5"):
                box.check(Invocation("go", (), {"limit": 9}))

    async def test_one_nested_as_deep_as_can_be(self) -> None:
        tree = {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Tree"}}}
        contents = document(method="post", requestBody=body({"$ref": "#/components/schemas/Tree"}))
        contents["components"] = {"schemas": {"Tree": tree}}
        value: dict[str, Any] = {}
        for _ in range(60):
            value = {"next": value}
        async with Service() as service, tools(contents, service.url) as box:
            await call(box, next=value)
            assert json.loads(service.last.body) == {"next": value}


class TestNames:
    @pytest.mark.parametrize(
        ("id", "name"),
        [
            ("listPets", "listPets"),
            ("list-pets", "list_pets"),
            ("pets/list.all", "pets_list_all"),
            ("import", "import_"),
            ("2x", "_2x"),
            ("Über", "Über"),
            ("to-\U00011fc0-pet", "to_pet"),  # a numeral: a word character, but in no identifier
            (None, "get_pets_by_id_toys"),
            ("", "get_pets_by_id_toys"),
        ],
    )
    async def test_of_operations(self, id: str | None, name: str) -> None:
        contents = document(parameter("id", "path"), path="/pets/{id}/toys", operationId=id)
        async with tools(contents) as box:
            assert [spec.name for spec in box.specs()] == [name]

    async def test_that_would_be_the_same(self) -> None:
        contents = document()
        contents["paths"]["/y"] = {"get": {"operationId": "go"}, "post": {"operationId": "go"}}
        async with tools(contents, prefix="api") as box:
            assert [spec.name for spec in box.specs()] == ["api_go", "api_go_2", "api_go_3"]


METHODS = {
    "get": Effect.READ_ONLY,
    "head": Effect.READ_ONLY,
    "options": Effect.READ_ONLY,
    "put": Effect.IDEMPOTENT,
    "delete": Effect.IDEMPOTENT,
    "post": Effect.EFFECTFUL,
    "patch": Effect.EFFECTFUL,
}


@pytest.mark.parametrize("method", METHODS)
async def test_effects_and_what_follows_for_retries(method: str) -> None:
    busy = answering(lambda: web.Response(status=503, headers={"Retry-After": "0"}))
    async with Service({"/x": busy}) as service, tools(document(method=method), service.url) as box:
        assert box["go"].spec.effect is METHODS[method]
        with pytest.raises(CallError, match="503 Service Unavailable"):
            await call(box)
        assert len(service.received) == (1 if METHODS[method] is Effect.EFFECTFUL else 3)


async def test_overrides() -> None:
    contents = document(method="post", summary="Search", description="Search.")
    contents["paths"]["/y"] = {"get": {"operationId": "look-up", "summary": "Look up.", "description": "Slowly."}}
    more = {
        "options": Options(timeout_s=9, estimate_ms=100),
        "overrides": {"look-up": Options(name="find", timeout_s=3), "go": Options(effect=Effect.READ_ONLY, cache_s=5)},
    }
    async with tools(contents, **more) as box:
        go, find = box.specs()
    assert (go.name, go.effect, go.timeout_s, go.estimate_ms, go.cache_s) == ("go", "read_only", 9, 100, 5)
    assert (find.name, find.timeout_s, find.estimate_ms) == ("find", 3, 100)
    assert (go.description, find.description) == ("Search.", "Look up. Slowly.")
    assert "there is no tool 'loop-up'; did you mean 'look_up'?" in await refused(
        contents, overrides={"loop-up": Options()}
    )


PETS = {
    "openapi": "3.0.3",
    "paths": {
        "/pets": {"get": {"operationId": "listPets"}, "post": {"operationId": "addPet"}},
        "/pets/{id}": {
            "parameters": [parameter("id", "path")],
            "get": {"operationId": "getPet"},
            "delete": {"operationId": "dropPet"},
        },
    },
}


async def test_versions_tell_apart_what_may_be_answered_differently() -> None:
    async def version(url: str = "http://127.0.0.1:9", key: str = "a", **more: Any) -> str | None:
        http = HttpSettings(bearer_env="KEY", allow_private=True)
        async with tools(document(), url, http=http, environ={"KEY": key}, **more) as box:
            return box["go"].spec.version

    versions = [await version(), await version(url="http://127.0.0.1:10"), await version(key="b")]
    assert len(set(versions)) == 3
    assert await version() == versions[0]
    assert await version(options=Options(version="mine")) == "mine"


class TestChoice:
    @pytest.mark.parametrize(
        ("include", "exclude", "names"),
        [
            (None, (), ["listPets", "addPet", "getPet", "dropPet"]),
            (["list*", "addPet"], (), ["listPets", "addPet"]),
            (["GET *"], (), ["listPets", "getPet"]),
            (["* /pets/{id}"], ["DELETE *"], ["getPet"]),
            (None, ["addPet", "DELETE /pets/*"], ["listPets", "getPet"]),
        ],
    )
    async def test_of_operations(self, include: Any, exclude: Any, names: list[str]) -> None:
        async with tools(PETS, include=include, exclude=exclude) as box:
            assert [spec.name for spec in box.specs()] == names

    async def test_of_what_is_not_there(self) -> None:
        assert await refused(PETS, include=["getPets"]) == (
            "include: no operation is called 'getPets'; did you mean 'getPet'?"
        )
        assert await refused(PETS, exclude=["*"]) == "it has no operation that can be a tool"

    async def test_a_broken_operation_can_be_left_out(self) -> None:
        contents = document(parameter("a", schema={"$ref": "#/nowhere"}))
        contents["paths"]["/y"] = {"get": {"operationId": "other"}}
        assert await refused(contents) == (
            "GET /x: paths./x.get.parameters.0.schema: there is no '#/nowhere' (exclude leaves it out)"
        )
        async with tools(contents, exclude=["go"]) as box:
            assert len(box) == 1


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"openapi": "3.1.0"}, "it has no operation that can be a tool"),
        ({"openapi": "3.1.0", "paths": {"x": {}}}, "paths: 'x' does not begin with a slash"),
        ({"openapi": "3.1.0", "paths": {"/x": []}}, "paths./x: must be an object"),
        ({"openapi": "3.1.0", "paths": {"/x": {"get": None}}}, "paths./x.get: must be an object"),
        (document({"in": "query"}), 'paths./x.get.parameters.0: a parameter must be an object with "name" and "in"'),
        (document(parameter("a", "body")), '"in" must be one of path, query, header, cookie'),
        (document(parameter("a", style="deep")), "there is no style 'deep' for a query parameter"),
        (document(path="/x/{id}"), "paths./x/{id}.get: the path parameter 'id' is not described"),
        (document(requestBody={}), 'a request body must be an object with "content"'),
        (document(parameter("a", schema={"type": "text"})), "there is no type 'text'"),
        (document(parameter("a", schema={"type": {"$ref": "#"}})), "there is no type"),
        (document(parameter("a", schema={"type": [["string"]]})), "there is no type"),
        (
            document(requestBody=body({"properties": {"a": {}}}, "multipart/form-data", encoding={"a": {"style": {}}})),
            "there is no style '{}' for a form's field",
        ),
        ({"swagger": "2.0"}, "it is of version 2.0 (Swagger)"),
    ],
)
async def test_documents_that_are_wrong(contents: Any, said: str) -> None:
    assert said in await refused(contents, url=None)


class TestServers:
    @pytest.mark.parametrize(
        ("servers", "target"),
        [
            ([{"url": "/v1"}], "/v1/x"),
            ([{"url": "v1/"}], "/v1/x"),
            ([], "/x"),
            ([{"url": "/{version}", "variables": {"version": {"default": "v2"}}}, {"url": "/v1"}], "/v2/x"),
        ],
    )
    async def test_are_relative_to_the_document(self, servers: Any, target: str) -> None:
        async with Service() as service:
            contents = {**document(), "servers": servers}
            service.handlers["/api"] = answering(lambda: web.Response(text=json.dumps(contents)))
            source = OpenAPISource(f"{service.url}/api", http=OPEN, base=Path(), environ={})
            box = Toolbox(await source.open(lambda tools: None))
            assert (await call(box))["target"] == target
            await source.aclose()

    async def test_of_single_operations_and_the_configs(self, tmp_path: Path) -> None:
        async with Service() as one, Service() as two, Service() as three:
            contents = {**document(), "servers": [{"url": f"{one.url}/one"}]}
            contents["paths"]["/y"] = {"get": {"operationId": "other", "servers": [{"url": f"{two.url}/two"}]}}
            async with tools(contents, None) as box:
                assert (await call(box))["target"] == "/one/x"
                assert (await call(box, "other"))["target"] == "/two/y"
            http = HttpSettings(base_url=f"{three.url}/three/", allow_private=True)
            async with tools(contents, None, http=http) as box:
                assert (await call(box, "other"))["target"] == "/three/y"

    @pytest.mark.parametrize("url", ["ftp://x", "http://{host}/", "http://:80", "http://[::1"])
    async def test_that_are_none(self, url: str) -> None:
        assert "it is no" not in await refused(document(), url=url)

    async def test_a_file_must_name_one(self, tmp_path: Path) -> None:
        (tmp_path / "api.json").write_text(json.dumps(document()))
        with pytest.raises(ToolDefinitionError, match=r"^api\.json: GET /x: the document names no server: say where"):
            await OpenAPISource("api.json", base=tmp_path, environ={}).open(lambda tools: None)
        http = HttpSettings(base_url="https://api.example/v1")
        assert await OpenAPISource("api.json", http=http, base=tmp_path, environ={}).open(lambda tools: None)


class TestFetching:
    async def open(self, location: str, **settings: Any) -> str:
        http = HttpSettings(**{"allow_private": True, "retries": 0, **settings})
        source = OpenAPISource(location, http=http, base=Path(), environ={"KEY": "k-12345678"})
        try:
            with pytest.raises(ToolDefinitionError) as raised:
                await source.open(lambda tools: None)
        finally:
            await source.aclose()
        return str(raised.value)

    async def test_nobody_there(self) -> None:
        async with Service() as service:
            pass
        assert await self.open(f"{service.url}/api?key=k-12345678") == (
            f"{service.url}/api: the document can't be fetched: "
            "GET /api: 127.0.0.1 can't be reached: Connection refused"
        )

    async def test_not_there(self) -> None:
        async with Service({"/api": answering((404, {"message": "gone"}))}) as service:
            assert "the document can't be fetched: GET /api: answered 404 Not Found: gone" in await self.open(
                f"{service.url}/api"
            )

    async def test_no_address(self) -> None:
        with pytest.raises(ToolDefinitionError, match="it is neither a file nor an address"):
            OpenAPISource("http://[::1/api", base=Path(), environ={})
        assert "the address has no host" in await self.open("http:///api")

    async def test_not_allowed(self) -> None:
        async with Service() as service:
            message = await self.open(f"{service.url}/api", allow_private=False)
            assert "127.0.0.1 is a loopback address, which allow_private does not allow" in message
            assert service.received == []

    async def test_too_large(self) -> None:
        async def endless(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"#" * 1_000_000)

        async with Service({"/api": endless}) as service:
            assert "the answer is larger than 33554432 bytes" in await self.open(f"{service.url}/api")

    async def test_keys_go_to_the_service_only(self) -> None:
        contents = {**document(), "servers": [{"url": "/"}]}
        page = answering(lambda: web.Response(text=json.dumps(contents)))
        async with Service({"/api": page}) as host, Service() as service:
            for base_url, has_key in ((service.url, False), (host.url, True)):
                http = HttpSettings(base_url=base_url, query_env={"key": "KEY"}, allow_private=True)
                source = OpenAPISource(f"{host.url}/api", http=http, base=Path(), environ={"KEY": "k-12345678"})
                await source.open(lambda tools: None)
                assert ("key=" in host.last.target) is has_key
                await source.aclose()

    async def test_it_can_be_cancelled(self) -> None:
        upstream, server = await start()
        upstream.answers = [lambda exchange: None]
        async with server:
            source = OpenAPISource(f"http://127.0.0.1:{upstream.port}/v1", http=OPEN, base=Path(), environ={})
            opening = asyncio.create_task(source.open(lambda tools: None))
            exchange = await upstream.arrival()
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            await exchange.gone.wait()
            await source.aclose()


async def test_many_tools_are_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    contents = {"openapi": "3.1.0", "paths": {f"/{n}": {"get": {}} for n in range(101)}}
    async with tools(contents):
        pass
    assert "makes 101 tools, all of which the model is told of in every request" in caplog.text
