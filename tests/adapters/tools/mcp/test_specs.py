"""How a server's tools are seen: names, effects, which of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import Tool, ToolAnnotations

from asynclm.adapters.tools.mcp.source import McpTool
from asynclm.adapters.tools.mcp.specs import callable_name, effect_of, spec_of, wanted
from asynclm.adapters.tools.options import Options
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.tools import Effect


@pytest.mark.parametrize(
    ("hints", "effect"),
    [
        (None, Effect.EFFECTFUL),
        ({}, Effect.EFFECTFUL),
        ({"read_only_hint": True}, Effect.READ_ONLY),
        ({"read_only_hint": True, "destructive_hint": False}, Effect.READ_ONLY),
        ({"idempotent_hint": True}, Effect.IDEMPOTENT),
        ({"idempotent_hint": True, "read_only_hint": False}, Effect.IDEMPOTENT),
        ({"idempotent_hint": True, "destructive_hint": True}, Effect.EFFECTFUL),
        ({"read_only_hint": True, "destructive_hint": True}, Effect.EFFECTFUL),  # it contradicts itself
        ({"destructive_hint": False}, Effect.EFFECTFUL),
        ({"open_world_hint": False}, Effect.EFFECTFUL),
    ],
)
def test_effects(hints: dict[str, bool] | None, effect: Effect) -> None:
    assert effect_of(None if hints is None else ToolAnnotations(**hints)) is effect


@pytest.mark.parametrize(
    ("name", "prefix", "known_as"),
    [
        ("search", None, "search"),
        ("search-files", None, "search_files"),
        ("files/read", None, "files_read"),
        ("admin.users.list", None, "admin.users.list"),
        ("admin..list", None, "admin._.list"),
        ("class", None, "class_"),
        ("2d", None, "_2d"),
        ("größe", None, "größe"),
        ("\U00011fc0x", None, "_x"),  # a numeral: a word character, but in no identifier
        ("search", "web", "web_search"),
        ("2d", "draw", "draw_2d"),
    ],
)
def test_names(name: str, prefix: str | None, known_as: str) -> None:
    assert callable_name(name, prefix) == known_as


@given(st.text(min_size=1, max_size=30))
def test_any_name_can_be_called(name: str) -> None:
    tool = Tool(name=name, input_schema={"type": "object"})
    spec = spec_of(tool, Options(), name=callable_name(name), timeout_s=1)
    assert Toolbox([McpTool(None, name, spec)]).specs() == [spec]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        (None, [], ["get_a", "get_b", "set_a"]),
        (["get_*"], [], ["get_a", "get_b"]),
        (["get_*", "set_a"], ["*_a"], ["get_b"]),
        ([], [], []),
        (["GET_*"], [], []),
    ],
)
def test_which_tools(include: list[str] | None, exclude: list[str], names: list[str]) -> None:
    assert [name for name in ("get_a", "get_b", "set_a") if wanted(name, include, exclude)] == names


def test_the_config_wins() -> None:
    tool = Tool(
        name="t",
        title="A title",
        input_schema={"type": "object"},
        annotations=ToolAnnotations(read_only_hint=True),
    )
    plain = spec_of(tool, Options(), name="t", timeout_s=60)
    assert (plain.description, plain.effect, plain.timeout_s) == ("A title", Effect.READ_ONLY, 60)
    options = Options(effect=Effect.EFFECTFUL, timeout_s=5, estimate_ms=100, concurrency=2, cache_s=10)
    spec = spec_of(tool, options, name="t", timeout_s=60)
    assert (spec.effect, spec.timeout_s, spec.estimate_ms, spec.concurrency, spec.cache_s) == (
        Effect.EFFECTFUL,
        5,
        100,
        2,
        10,
    )


def test_a_description_without_end_is_cut() -> None:
    tool = Tool(name="t", description="x" * 100_000, input_schema={"type": "object"})
    assert len(spec_of(tool, Options(), name="t", timeout_s=1).description) == 4099
