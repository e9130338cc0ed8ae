"""What may be declared of a tool beyond its signature: by the `tool` decorator, or by the config, which wins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar, overload

import msgspec

from asynclm.cml.tools import Effect

_ATTRIBUTE: Final = "__asynclm_tool__"
_YEAR_S: Final = 31_536_000  # a bound that every event loop's timers can represent
_SCOPE: Final = r"^(all|client|header:[!#$%&'*+.^_`|~0-9A-Za-z-]+)$"

F = TypeVar("F", bound=Callable[..., Any])


class ToolDefinitionError(ValueError):
    """Something can't be made a tool. One line that names it and says why."""


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Declared facts of a tool; None where nothing was declared. See `asynclm.cml.tools.ToolSpec` for their meaning."""

    name: str | None = None
    description: str | None = None
    estimate_ms: Annotated[float, msgspec.Meta(ge=0, le=_YEAR_S * 1000)] | None = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=_YEAR_S)] | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    effect: Effect | None = None
    cache_s: Annotated[float, msgspec.Meta(ge=0, le=_YEAR_S)] | None = None
    stale_s: Annotated[float, msgspec.Meta(ge=0, le=_YEAR_S)] | None = None
    negative_s: Annotated[float, msgspec.Meta(ge=0, le=_YEAR_S)] | None = None
    cache_scope: Annotated[str, msgspec.Meta(pattern=_SCOPE)] | None = None
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None

    def caching(self) -> dict[str, Any]:
        """What a `ToolSpec` says of caching, as its keywords."""
        return {name: getattr(self, name) for name in ("cache_s", "stale_s", "negative_s", "cache_scope", "version")}

    def over(self, other: Options) -> Options:
        """These options, and `other`'s where these say nothing."""
        return Options(
            **{field: _first(getattr(self, field), getattr(other, field)) for field in Options.__struct_fields__}
        )


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    estimate_ms: float | None = None,
    timeout_s: float | None = None,
    concurrency: int | None = None,
    effect: Effect | Literal["read_only", "idempotent", "effectful"] | None = None,
    cache_s: float | None = None,
    stale_s: float | None = None,
    negative_s: float | None = None,
    cache_scope: str | None = None,
    version: str | None = None,
) -> Callable[[F], F]: ...
def tool(function: F | None = None, /, **declared: Any) -> F | Callable[[F], F]:
    """Declare on a function what its signature can't say. It stays an ordinary function.

    `estimate_ms` is the expected running time, `timeout_s` and `concurrency` (calls at once) override the executor's
    defaults. `cache_s` allows results to be reused for that many seconds, if `effect` is not "effectful"; `stale_s`
    lets an older one serve for so much longer while a new one is fetched, `negative_s` does the same as `cache_s` for
    errors. `cache_scope` says whom a result may serve: "all", "client" (whoever has the same key) or "header:NAME". A
    new `version` makes the results of older ones unfit; by default it is the source. Raises ValueError for a value that
    makes no sense, TypeError for an unknown keyword.
    """
    unknown = set(declared) - set(Options.__struct_fields__)
    if unknown:
        raise TypeError(f"tool() got an unexpected keyword argument {min(unknown)!r}")
    try:
        options = msgspec.convert(declared, Options)
    except msgspec.ValidationError as error:
        raise ValueError(f"@tool: {error}") from None

    def declare(function: F) -> F:
        # A classmethod object isn't what attribute access hands out later: the function in it is.
        target = function.__func__ if isinstance(function, staticmethod | classmethod) else function
        setattr(target, _ATTRIBUTE, options)
        return function

    return declare if function is None else declare(function)


def declared_options(function: Callable[..., Any]) -> Options:
    """What the `tool` decorator declared on this function; nothing set where it wasn't used."""
    for holder in (function, getattr(function, "func", None), type(function).__call__):
        options = getattr(holder, _ATTRIBUTE, None)
        if isinstance(options, Options):
            return options
    return Options()
