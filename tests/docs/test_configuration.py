"""docs/configuration.md lists every key of the config, with its type, default and environment variable."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from commands import ROOT, fenced, tables

from asynclm.adapters.models.local.settings import EngineSettings
from asynclm.adapters.tools.http_settings import HttpSettings
from asynclm.adapters.tools.mcp.settings import McpSettings
from asynclm.adapters.tools.options import declared_options
from asynclm.adapters.tools.python import PythonTool
from asynclm.proxy.config import (
    Cache,
    Config,
    Conversations,
    Limits,
    Model,
    Recording,
    Replay,
    Runs,
    Server,
    Store,
    Tool,
    Upstream,
    load,
)

PAGE = ROOT / "docs" / "configuration.md"
SECTIONS = {
    "`[server]`": (Server, "ASYNCLM_SERVER_"),
    "`[upstreams.NAME]`": (Upstream, "ASYNCLM_UPSTREAMS_MAIN_"),
    '`[models."NAME"]`': (Model, "ASYNCLM_MODELS_ANY_"),
    "`[limits]`": (Limits, "ASYNCLM_LIMITS_"),
    "`[runs]`": (Runs, "ASYNCLM_RUNS_"),
    "`[store]`": (Store, "ASYNCLM_STORE_"),
    "`[cache]`": (Cache, "ASYNCLM_CACHE_"),
    "`[conversations]`": (Conversations, "ASYNCLM_CONVERSATIONS_"),
    "`[recording]`": (Recording, "ASYNCLM_RECORDING_"),
    "`[replay]`": (Replay, "ASYNCLM_REPLAY_"),
    "Tools": (Tool, None),
    "HTTP services": (HttpSettings, None),
    "Local models": (EngineSettings, None),
    "MCP servers": (McpSettings, None),
}
WORDS = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "dict": "table",
    "struct": "table",
    "vartuple": "list",
    "literal": "string",
    "enum": "string",
}


def word(kind: msgspec.inspect.Type) -> str:
    """A type as the page calls it."""
    if isinstance(kind, msgspec.inspect.UnionType):
        return " or ".join(word(part) for part in kind.types if not isinstance(part, msgspec.inspect.NoneType))
    return WORDS[type(kind).__name__.removesuffix("Type").lower()]


def default(field: msgspec.inspect.Field) -> str:
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return "none" if value is None else f"`{json.dumps(value)}`"


def test_no_section_is_missing() -> None:
    described = {re.findall(r"[a-z]+", heading.lower())[0] for heading in SECTIONS} - {"http", "mcp", "local"}
    assert described == set(Config.__struct_fields__) - {"base", "source", "warnings"}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_there_as_it_is(heading: str) -> None:
    struct, prefix = SECTIONS[heading]
    kind = msgspec.inspect.type_info(struct)
    assert isinstance(kind, msgspec.inspect.StructType)
    wanted = {
        field.name: [word(field.type), default(field), *([f"`{prefix}{field.name.upper()}`"] if prefix else [])]
        for field in kind.fields
    }
    rows = tables(PAGE)[heading]
    assert {row[0].strip("`"): row[1:-1] for row in rows} == wanted
    assert len(rows) == len(wanted)
    assert all(row[-1] for row in rows)


def test_the_environment_variables_work(tmp_path: Path) -> None:
    environ = {
        "ASYNCLM_SERVER_PORT": "9000",
        "ASYNCLM_UPSTREAMS_MAIN_HEADERS": '{"x-team": "a"}',
        "ASYNCLM_MODELS_GPT_4O_POLICY": "sync",
        "ASYNCLM_RECORDING_REDACT": '["[0-9]{16}"]',
        "ASYNCLM_MODELS_ANY_MODEL": "small",
        "ASYNCLM_TOOLS": '[{"python": "tools.py:stock"}]',
    }
    (tmp_path / "asynclm.toml").write_text('[models."gpt-4o"]\n')
    config = load(None, environ, tmp_path)
    assert config.server.port == 9000
    assert config.recording.redact == ("[0-9]{16}",)
    assert config.upstreams["main"].headers == {"x-team": "a"}
    assert {name: (model.model, model.policy) for name, model in config.models.items()} == {
        "gpt-4o": (None, "sync"),
        "*": ("small", "auto"),
    }
    assert [tool.python for tool in config.tools] == ["tools.py:stock"]


def test_the_decorator_example_works() -> None:
    (code,) = fenced(PAGE, "python")
    names: dict[str, Any] = {}
    exec(code, names)
    assert declared_options(names["forecast"]).estimate_ms == 300
    spec = PythonTool(names["forecast"]).spec
    assert (spec.name, spec.effect, spec.timeout_s) == ("forecast", "read_only", 5)
    assert spec.description == "The temperatures of the coming days, in degrees Celsius."
