"""Reading documents: JSON and YAML, several files, and everything that may be wrong with them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from asynclm.adapters.tools.openapi.document import MAX_BYTES, Document, load
from asynclm.adapters.tools.options import ToolDefinitionError

SMALL = {"openapi": "3.1.0", "paths": {}}


async def nothing(url: str) -> bytes:
    raise AssertionError(f"{url} was fetched")


class Web:
    """Documents by address."""

    def __init__(self, **pages: Any) -> None:
        self.pages = {f"https://api.example/{name}": json.dumps(page).encode() for name, page in pages.items()}
        self.fetched: list[str] = []

    async def fetch(self, url: str) -> bytes:
        self.fetched.append(url)
        return self.pages[url]


async def read(folder: Path, text: str | bytes, name: str = "api.yaml") -> Document:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return await load(name, folder, nothing)


async def refused(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ToolDefinitionError) as raised:
        await read(folder, text)
    assert "\n" not in str(raised.value)
    return str(raised.value)


async def test_json_and_yaml(tmp_path: Path) -> None:
    assert (await read(tmp_path, "openapi: 3.1")).version == "3.1"
    for text in (json.dumps(SMALL), b"\xef\xbb\xbf" + json.dumps(SMALL).encode(), "openapi: 3.1.0\npaths: {}\n"):
        document = await read(tmp_path, text)
        assert document.root.value == SMALL
        assert document.version == "3.1.0"


async def test_yaml_has_the_types_of_json(tmp_path: Path) -> None:
    text = """
openapi: 3.0.3
paths: {}
x:
  no: no
  on: [yes, off, true, FALSE]
  date: 2020-01-01
  time: 12:30:45
  octal: 0755
  200: [1, -2, 1.5, 1e3, ~, null, 1_000]
  base: &base {a: 1, b: 2}
  merged: {<<: *base, b: 3}
  both: {b: 3, <<: [*base, {a: 7, c: 4}]}
  tagged: [!!int "1", !thing x, "true", 'null']
  ? long
  : |
    two
    lines
  empty: {"": 1, k: ""}
  &key named: &one 1
  again: [*one, *key]
"""
    assert (await read(tmp_path, text)).root.value["x"] == {
        "no": "no",
        "on": ["yes", "off", True, False],
        "date": "2020-01-01",
        "time": "12:30:45",
        "octal": "0755",
        "200": [1, -2, 1.5, 1000.0, None, None, "1_000"],
        "base": {"a": 1, "b": 2},
        "merged": {"a": 1, "b": 3},
        "both": {"a": 1, "b": 3, "c": 4},
        "tagged": ["1", "x", "true", "null"],
        "long": "two\nlines\n",
        "empty": {"": 1, "k": ""},
        "named": 1,
        "again": [1, "named"],
    }


def laughs(brackets: str) -> str:
    """Few lines, in which each is nine times the one before."""
    opening, closing = brackets
    name = "" if opening == "[" else "n{}: "
    lines = [f"x0: &x0 {opening}{name and 'n: '}lol{closing}"]
    for level in range(1, 10):
        repeated = ", ".join(name.format(number) + f"*x{level - 1} " for number in range(9))
        lines.append(f"x{level}: &x{level} {opening}{repeated}{closing}")
    return "\n".join([*lines, "openapi: *x9"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", 'it is no OpenAPI document: it has no "openapi" key'),
        ("hello", 'it is no OpenAPI document: it has no "openapi" key'),
        ("[1, 2]", 'it is no OpenAPI document: it has no "openapi" key'),
        ("<html></html>", 'it is no OpenAPI document: it has no "openapi" key'),
        ('{"openapi": "3.1.0", ', "it is neither JSON nor YAML: line 2, column 1: "),
        ("openapi: 3.1.0\npaths: [", "it is neither JSON nor YAML: line 3, column 1: "),
        ("a: !!python/object/apply:os.system [id]", 'it is no OpenAPI document: it has no "openapi" key'),
        (b"\x00\x01\x02", "it is neither JSON nor YAML"),
        (b"a: \xff\xfe", "it is neither JSON nor YAML"),
        ("[" * 3_000_000, "it is neither JSON nor YAML: line 1, column 201: nested deeper than 200 levels"),
        ("- " * 300_000, "nested deeper than 200 levels"),
        ('{"a":' * 300_000, "it is nested too deeply"),
        ("a: *b", "it is neither JSON nor YAML: line 1, column 4: there is no anchor 'b'"),
        (laughs("[]"), "it is neither JSON nor YAML: line 8, column "),
        (laughs("{}"), "aliases repeat too much"),
        (f"a: &a {'x' * 2**20}\nopenapi: [*a, *a, *a, *a, *a]", "line 2, column 23: aliases repeat too much"),
        ("a: &a [1, {b: [*a]}]", "it is neither JSON nor YAML: line 1, column 16: 'a' contains itself"),
        ("a: &a 1\nb: &a {c: *a}", "line 2, column 11: 'a' contains itself"),
        (f"a: &a {'[' * 150}{']' * 150}\nb: {'[' * 50}*a", "line 2, column 54: nested deeper than 200 levels"),
        ("{[a]: 1}", "it is neither JSON nor YAML: line 1, column 2: a key must be a text"),
        ("a: 1\n---\nb: 2", "it is neither JSON nor YAML: line 2, column 1: a second document begins"),
        ('{"swagger": "2.0", "paths": {}}', "it is of version 2.0 (Swagger); OpenAPI 3.0 and 3.1 are understood"),
        ("openapi: 4.0.0", "it is of OpenAPI version '4.0.0'; 3.0 and 3.1 are understood"),
        ("openapi: 3", "it is of OpenAPI version '3'"),
        ("openapi: 3.1.0\npaths: []", "paths: must be an object"),
    ],
)
async def test_what_is_no_document(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert said in await refused(tmp_path, text)


async def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ToolDefinitionError, match=r"none\.yaml can't be read: No such file or directory"):
        await load("none.yaml", tmp_path, nothing)
    with pytest.raises(ToolDefinitionError, match="can't be read: Is a directory"):
        await load(".", tmp_path, nothing)


async def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for location in ("pipe", "/dev/zero"):
        with pytest.raises(ToolDefinitionError, match="can't be read: it is no file"):
            await load(location, tmp_path, nothing)
    with pytest.raises(ToolDefinitionError, match="there is no such home folder"):
        await load("~no-such-user/api.json", tmp_path, nothing)


async def test_an_address_is_shown_without_what_may_be_keys(tmp_path: Path) -> None:
    pages = {"api.json": json.dumps({**SMALL, "a": {"$ref": "b.json?key=s3cret"}}).encode()}

    async def fetch(address: str) -> bytes:
        return pages.get(address.rpartition("/")[2], b"{")

    with pytest.raises(ToolDefinitionError, match=r"^https://host/b\.json: it is neither JSON nor YAML"):
        await load("https://ann:s3cret@host/api.json", tmp_path, fetch)


async def test_one_that_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ToolDefinitionError, match=f"is larger than {MAX_BYTES} bytes"):
        await load("large.json", tmp_path, nothing)


class TestReferences:
    async def test_are_followed(self, tmp_path: Path) -> None:
        text = """
openapi: 3.1.0
paths: {/a~b: {get: {x: 1}}}
one: {$ref: '#/two'}
two: {$ref: '#/paths/~1a~0b/get'}
three: {$ref: '#/spaced%20name'}
spaced name: here
"""
        document = await read(tmp_path, text)
        found = document.follow(document.root.at("one"))
        assert (found.value, found.pointer, found.shown) == ({"x": 1}, "/paths/~1a~0b/get", "paths./a~b.get")
        assert document.follow(document.root.at("three")).value == "here"
        assert document.follow(document.root.at("nothing", "there")).value is None

    @pytest.mark.parametrize("reference", ["#/nowhere", "#/paths/0", "#anchor", "#/list/7", "#/list/x", "#/text/x"])
    async def test_that_lead_nowhere(self, tmp_path: Path, reference: str) -> None:
        document = await read(tmp_path, json.dumps({**SMALL, "list": [1], "text": "t", "a": {"$ref": reference}}))
        with pytest.raises(ToolDefinitionError, match=f"^a: there is no '{reference}'$"):
            document.follow(document.root.at("a"))

    async def test_that_lead_in_a_circle(self, tmp_path: Path) -> None:
        document = await read(tmp_path, json.dumps({**SMALL, "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}}))
        with pytest.raises(ToolDefinitionError, match=r"its \$ref leads in a circle"):
            document.follow(document.root.at("a"))

    async def test_into_other_files_and_back(self, tmp_path: Path) -> None:
        (tmp_path / "parts").mkdir()
        (tmp_path / "parts" / "pet.yaml").write_text("Pet: {items: {$ref: 'age.json'}, up: {$ref: '../api.yaml#/x'}}")
        (tmp_path / "parts" / "age.json").write_text('{"type": "integer"}')
        document = await read(
            tmp_path, "openapi: 3.1.0\nx: 7\npaths: {/a: {parameters: [{$ref: 'parts/pet.yaml#/Pet'}]}}"
        )
        pet = document.follow(document.root.at("paths", "/a", "parameters", 0))
        assert document.follow(pet.at("items")).value == {"type": "integer"}
        assert document.follow(pet.at("up")).value == 7

    @pytest.mark.parametrize(
        "reference", ["../secret.yaml", "/etc/passwd", "%2e%2e/secret.yaml", "file:///etc/passwd", "link.yaml"]
    )
    async def test_out_of_the_folder_are_not(self, tmp_path: Path, reference: str) -> None:
        (tmp_path / "secret.yaml").write_text("password: 1")
        folder = tmp_path / "api"
        folder.mkdir()
        (folder / "link.yaml").symlink_to(tmp_path / "secret.yaml")
        message = await refused(folder, json.dumps({**SMALL, "a": {"$ref": f"{reference}#/password"}}))
        assert "is not in the folder of the document, so it is not read" in message

    async def test_to_the_web_are_not_from_a_file(self, tmp_path: Path) -> None:
        message = await refused(tmp_path, json.dumps({**SMALL, "a": {"$ref": "http://169.254.169.254/x#/a"}}))
        assert "is not in the folder of the document" in message

    async def test_on_the_same_host(self) -> None:
        web = Web(**{"v1/api.json": {**SMALL, "a": {"$ref": "pets.json#/b"}}, "v1/pets.json": {"b": 5}})
        document = await load("https://api.example/v1/api.json", Path(), web.fetch)
        assert document.follow(document.root.at("a")).value == 5

    @pytest.mark.parametrize("reference", ["https://evil.example/x", "http://api.example/x", "file:///etc/passwd"])
    async def test_elsewhere_are_not(self, reference: str) -> None:
        web = Web(**{"api.json": {**SMALL, "a": {"$ref": reference}}})
        with pytest.raises(ToolDefinitionError, match="is not on the host of the document, so it is not read"):
            await load("https://api.example/api.json", Path(), web.fetch)
        assert web.fetched == ["https://api.example/api.json"]

    async def test_that_are_none(self, tmp_path: Path) -> None:
        message = await refused(tmp_path, json.dumps({**SMALL, "a": {"$ref": "http://[::1"}}))
        assert message == "'http://[::1' is no reference"

    async def test_in_examples_and_answers_are_none(self, tmp_path: Path) -> None:
        elsewhere = {"$ref": "https://evil.example/x"}
        part = {"example": elsewhere, "x-more": elsewhere, "responses": {"200": elsewhere}}
        document = await read(tmp_path, json.dumps({**SMALL, "components": {"schemas": {"A": part}}}))
        assert document.root.value["openapi"] == "3.1.0"

    async def test_in_properties_of_such_names_are_some(self, tmp_path: Path) -> None:
        (tmp_path / "b.json").write_text('{"type": "string"}')
        schema = {"properties": {"example": {"$ref": "b.json"}, "$ref": {"type": "string"}}}
        document = await read(tmp_path, json.dumps({**SMALL, "schema": schema}))
        assert document.follow(document.root.at("schema", "properties", "example")).value == {"type": "string"}

    async def test_to_too_many_documents(self, tmp_path: Path) -> None:
        for number in range(100):
            (tmp_path / f"{number}.json").write_text(json.dumps({"a": {"$ref": f"{number + 1}.json"}}))
        message = await refused(tmp_path, json.dumps({**SMALL, "a": {"$ref": "0.json"}}))
        assert message == "it refers to more than 64 other documents"

    async def test_errors_name_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "b.json").write_text("{")
        message = await refused(tmp_path, json.dumps({**SMALL, "a": {"$ref": "b.json"}}))
        assert "/b.json: it is neither JSON nor YAML" in message
