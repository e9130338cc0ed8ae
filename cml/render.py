"""Write CML blocks. What is rendered here parses back to the same blocks, whatever the values hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from .tokens import CALL, END, HEAD, INTR, TOKEN_START, TRAP, escape_json

# A stop sequence that ends a stream at a trap and leaves proof of it: APIs return the text before the match, so what
# remains is `[TRA`, which the run machine completes. After a bare "[TRAP]" as stop sequence nobody could tell a
# trap from an answer that just ended. And with "][END]" an API would hold back the last character of every call, since
# a match could begin there, and with it the call, for as long as the next token takes.
STOP: Final = "P][END]"


def render_call(id: str | None, body: str) -> str:
    """`[CALL] id [HEAD] body [END]`, or `[CALL] body [END]` without an id. `body` must be one that `cml.body` reads."""
    return f"{CALL} {body} {END}" if id is None else f"{CALL} {id} {HEAD} {body} {END}"


def render_body(name: str, arguments: Mapping[str, Any]) -> str:
    """A Python call expression, `f(x=1)`. Argument names must be identifiers; values are what JSON can hold, finite."""
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    # Control tokens can only stand in string literals here, where \x5b is the same as the bracket.
    return TOKEN_START.sub(r"\\x5b", f"{name}({written})")


def render_interrupt(id: str, value: str) -> str:
    """`[INTR] id [HEAD] value [END]`, `value` being JSON text; control tokens in its strings are escaped."""
    return f"{INTR} {id} {HEAD} {escape_json(value)} {END}"


def render_trap(names: Iterable[str] = ()) -> str:
    """`[TRAP][END]`, or `[TRAP] a, b [END]` to wait for those calls."""
    listed = ", ".join(names)
    return f"{TRAP} {listed} {END}" if listed else f"{TRAP}{END}"
