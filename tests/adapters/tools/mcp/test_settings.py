"""What the config may say of a server."""

import pytest
from mcp_types import ListToolsResult
from pydantic import ValidationError

from asynclm.adapters.tools.mcp.backoff import Backoff
from asynclm.adapters.tools.mcp.settings import McpSettings
from asynclm.adapters.tools.mcp.wording import Wording


@pytest.mark.parametrize(
    ("settings", "key", "why"),
    [
        ({}, "", "must say how to reach the server"),
        ({"command": "a", "url": "http://a"}, "", "one of them"),
        ({"command": "a", "headers": {"a": "b"}}, "headers", "makes no sense with command"),
        ({"command": "a", "bearer_env": "KEY"}, "bearer_env", "makes no sense with command"),
        ({"url": "http://a", "args": ("b",)}, "args", "makes no sense with url"),
        ({"url": "http://a", "env_from": ("B",)}, "env_from", "makes no sense with url"),
        ({"url": "ftp://a"}, "url", "must be an http"),
        ({"url": "http://"}, "url", "must be an http"),
        ({"url": "http://a:99999"}, "url", "must be an http"),
        ({"url": "http://a b"}, "url", "characters"),
        ({"url": "http://me:pass-word@a"}, "url", "must not hold a user name or password"),
        ({"url": "http://a", "bearer_env": "sk-secret-key"}, "bearer_env", "must name environment variables"),
        ({"url": "http://a", "headers_env": {"a": "Bearer x"}}, "headers_env", "must name environment variables"),
        ({"url": "http://a", "headers": {"a b": "c"}}, "headers", "can't be the name of a header"),
        ({"url": "http://a", "headers": {"a": "c\r\nd: e"}}, "headers", "characters that a header can't have"),
        ({"command": "a\0b"}, "command", "null character"),
    ],
)
def test_what_makes_no_sense(settings: dict[str, object], key: str, why: str) -> None:
    problem = McpSettings(**settings).problem()  # type: ignore[arg-type]
    assert problem is not None
    assert problem[0] == key
    assert why in problem[1]
    assert "secret-key" not in problem[1]
    assert "pass-word" not in problem[1]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"command": "/opt/bin/my-server"}, "my-server"),
        ({"command": "python3", "args": ("-u", "tools/weather.py", "--fast")}, "weather"),
        ({"command": "python3", "args": ("-m", "weather")}, "weather"),
        ({"command": "npx", "args": ("-y", "@scope/server-files", "/home")}, "server-files"),
        ({"command": "npx"}, "npx"),
        ({"url": "https://mcp.example.com:8000/mcp?key=k"}, "mcp.example.com"),
        ({"url": "https://mcp.example.com/", "name": "mine"}, "mine"),
    ],
)
def test_a_server_has_a_name(settings: dict[str, object], name: str) -> None:
    assert McpSettings(**settings).shown == name  # type: ignore[arg-type]


def test_secrets_are_not_shown() -> None:
    settings = McpSettings(
        command="a", args=("--key=arg-secret",), env={"K": "env-secret"}, headers={"h": "head-secret"}
    )
    assert "secret" not in repr(settings)
    assert "secret" not in repr(McpSettings(url="http://a/?key=secret"))


def test_variables_that_are_not_set() -> None:
    settings = McpSettings(url="http://a", headers_env={"a": "A", "b": "B"}, bearer_env="KEY")
    assert settings.missing({"A": "1", "B": " "}) == ["B", "KEY"]
    assert settings.request_headers({"A": " 1 ", "B": " "}) == {"a": "1"}


def test_what_counts_as_secret() -> None:
    over_http = McpSettings(url="http://a/mcp?key=in-the-url", headers={"h": "in-a-header"}, bearer_env="KEY")
    assert over_http.secrets({"KEY": " in-a-variable "}) == ["in-a-header", "in-the-url", "in-a-variable"]
    assert McpSettings(command="a", env={"A": "given"}, env_from=("B",)).secrets({"B": "passed"}) == ["given", "passed"]


def test_keys_are_what_the_model_must_not_read() -> None:
    started = McpSettings(
        command="x",
        env={"ROOT": "/srv/projects", "API_KEY": "abcd-1234", "PASSWORD": "short"},
        env_from=("GITHUB_TOKEN", "WORKDIR"),
    )
    environ = {"GITHUB_TOKEN": "ghp_123456", "WORKDIR": "/srv/projects", "MCP": "opaque-word", "TEAM": "blue-team-7"}
    assert started.keys(environ) == ["ghp_123456", "abcd-1234"]
    reached = McpSettings(
        url="http://a",
        bearer_env="MCP",
        headers_env={"X-Team": "TEAM"},
        headers={"Authorization": "Basic YWJjZGVmZ2g="},
    )
    assert set(reached.keys(environ)) == {"Basic YWJjZGVmZ2g=", "YWJjZGVmZ2g=", "opaque-word", "blue-team-7"}


def test_foreign_text_is_put_into_one_line_without_secrets() -> None:
    wording = Wording(["Bearer abcdef-123", "on", "long-password"])
    assert wording.line("it said\n\x1b[31mabcdef-123\r\n on long-password") == "it said  [31m[...] on [...]"
    assert wording.line("x" * 1000, 10) == "xxxxxxxxxx..."
    assert wording.end("abc" * 1000, 6) == "...abcabc"


def test_backing_off() -> None:
    backoff = Backoff(1.0, 8.0)
    waits = [backoff.after(0.0) for _ in range(5)]
    assert waits == [pytest.approx(wait, rel=0.11) for wait in (1, 2, 4, 8, 8)]
    assert backoff.after(1.0) == pytest.approx(8, rel=0.11)  # it came up, and went at once
    assert [backoff.after(up) for up in (100.0, 0.0, 0.0)] == [pytest.approx(wait, rel=0.11) for wait in (1, 2, 4)]


def test_what_the_protocol_does_not_allow_is_told_with_its_place() -> None:
    with pytest.raises(ValidationError) as raised:
        ListToolsResult.model_validate({"tools": [{"name": "a", "inputSchema": "s3cret-text"}]})
    said = Wording().error(raised.value)
    assert said.startswith("it sent what the protocol doesn't allow (tools.0.inputSchema: Input should be a valid dict")
    assert "s3cret" not in said
