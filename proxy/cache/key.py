"""Which calls are the same: a hash of tool, version, arguments and whom the result may serve."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from asynclm.cml.tools import ToolSpec

ALL: Final = "all"
CLIENT: Final = "client"
_HEADER: Final = "header:"


class Caller(msgspec.Struct, frozen=True):
    """Who a call is made for: the client's key, and the headers of its request (names in any case)."""

    key: str | None = None
    headers: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return "Caller(...)"  # a key must get into no log


ANYONE: Final = Caller()


class UnscopedError(Exception):
    """The tool's results are for one customer each, and the request doesn't say whose it is."""


def scope_of(spec: ToolSpec, caller: Caller) -> str | None:
    """Whom the call's result may serve: None for everyone, else what tells customers apart (a secret, perhaps).

    Raises `UnscopedError`.
    """
    declared = spec.cache_scope or ALL
    if declared == ALL:
        return None
    if declared == CLIENT:
        found = caller.key
    else:
        wanted = declared.removeprefix(_HEADER).lower()
        found = next((value for name, value in caller.headers.items() if name.lower() == wanted), None)
    if not found:
        raise UnscopedError
    return f"{declared}\0{found}"


def tool_version(spec: ToolSpec) -> str:
    """A hash of what the tool takes and of what it does (its declared version, or its source)."""
    return hashlib.sha256(canonical([spec.name, spec.parameters, spec.version])).hexdigest()[:16]


def placed_version(spec: ToolSpec) -> str:
    """The same, and of whom it asks and as who: another account may get other results."""
    return tool_version(spec) + (spec.place or "")


def canonical(value: Any) -> bytes:
    """JSON in which equal values have equal texts: `1`, `1.0`, `"1"` and `true` differ, the order of keys does not
    count. Raises ValueError or TypeError for what is no JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(version: str, arguments: Mapping[str, Any], scope: str | None, secret: bytes, *shape: int) -> str:
    """The key of a call: 32 hexadecimal digits.

    `version` is that of `placed_version`, `secret` the key of the hash that hides the scope; `shape` is what else the
    form of a result depends on. Raises ValueError or TypeError for arguments that are no JSON.
    """
    hidden = "" if scope is None else hmac.new(secret, scope.encode("utf-8", "surrogateescape"), "sha256").hexdigest()
    return hashlib.sha256(canonical([version, arguments, hidden, shape])).hexdigest()[:32]
