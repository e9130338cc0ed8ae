"""What the model and the run machine know of a tool: name, schema, how long it takes, what it does to the world.

How a tool is run is the adapters' business; here it is only described.
"""

from __future__ import annotations

import enum
from typing import Any, Protocol

import msgspec


class Effect(enum.StrEnum):
    """What running a tool does to the world. Undeclared tools count as effectful."""

    READ_ONLY = "read_only"
    IDEMPOTENT = "idempotent"
    EFFECTFUL = "effectful"


class Owner(enum.StrEnum):
    """Who runs a tool: the proxy, or the client that brought it along in its request."""

    SERVER = "server"
    CLIENT = "client"


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tool, described.

    `parameters` is the JSON schema of its arguments (an object schema; the order of `properties` is the order of
    positional arguments). `estimate_ms` is the expected running time in milliseconds, told to the model so that it can
    write the longest call first (paper, section 4). `timeout_s` and `concurrency` (calls at once) override the
    executor's defaults.

    `cache_s` allows results to be reused for that many seconds, unless the tool is effectful; for `stale_s` more they
    may be, while a fresh one is fetched; `negative_s` is the same as `cache_s` for errors. `cache_scope` is whom a
    result may serve: "all" (None too), "client" or "header:NAME". `version` stands for what the tool does: results of
    another version are not reused.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "object", "properties": {}})
    estimate_ms: float | None = None
    effect: Effect = Effect.EFFECTFUL
    timeout_s: float | None = None
    concurrency: int | None = None
    cache_s: float | None = None
    stale_s: float | None = None
    negative_s: float | None = None
    cache_scope: str | None = None
    version: str | None = None
    owner: Owner = Owner.SERVER


class Invocation(msgspec.Struct, frozen=True):
    """A call body, read but not yet checked: `f(1, x=2)` is `Invocation("f", (1,), {"x": 2})`."""

    name: str
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = {}


class CallError(Exception):
    """What is wrong with a call, in words that the model can act on.

    `type` is one of: `syntax_error`, `not_closed`, `invalid_id`, `duplicate_id`, `too_many_calls`, `unknown_tool`,
    `invalid_arguments` (the call was not run); `tool_error`, `timeout`, `unserializable_result`, `cancelled` (it was);
    `no_result` (the client has not said what came of it), `outcome_unknown` (the process that ran it was lost).
    """

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type
        self.message = message


class Catalog(Protocol):
    """The tools of a run, as the run machine sees them."""

    def specs(self) -> list[ToolSpec]:
        """Every tool, in the order in which the prompt lists them."""
        ...

    def check(self, invocation: Invocation) -> tuple[ToolSpec, dict[str, Any]]:
        """Find the tool, bind the arguments to its parameters and validate them. Raises `CallError`."""
        ...


def error_value(error: CallError) -> str:
    """What the model reads in place of a result: `{"error": {"type": ..., "message": ...}}`, compact JSON text."""
    # A message may quote anything, even text that has no UTF-8 form.
    message = error.message.encode(errors="replace").decode()
    return msgspec.json.encode({"error": {"type": error.type, "message": message}}).decode()
