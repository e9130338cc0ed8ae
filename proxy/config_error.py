"""How a config error is worded: one line with the place, the key, the reason and what to do; never a secret value."""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import msgspec

Key = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_INVALID_CHOICE = re.compile(r"Invalid enum value '(.*)'", re.DOTALL)
_WORDS = {"object": "table", "array": "list", "float": "number", "int": "whole number", "str": "string"}


class ConfigError(Exception):
    """The configuration can't be used; the message is one line for whoever wrote it."""


def dotted(key: Key) -> str:
    """A key's path as TOML writes it: `models."*".upstream`, `tools[0].python`."""
    path = ""
    for part in key:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += ("." if path else "") + (part if _BARE.fullmatch(part) else f'"{part}"')
    return path


def listed(names: Iterable[str]) -> str:
    """The names, for a sentence."""
    return ", ".join(names)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` if a known name is close, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def reason(error: msgspec.ValidationError, type: Any) -> str:
    """What msgspec found wrong with a value of that type, in the words of a config file."""
    message = str(error).partition(" - at ")[0]
    choice = _INVALID_CHOICE.fullmatch(message)
    if choice:
        return f"{choice[1][:40]!r} is not one of {listed(_choices(type))}"
    if message.endswith("of length >= 1"):
        return "must not be empty"
    message = re.sub(
        r"`([^`]*)`", lambda m: " or ".join(_WORDS.get(w, w) for w in m[1].split(" | ") if w != "null"), message
    )
    return message[:1].lower() + message[1:]


def _choices(type: Any) -> list[str]:
    if get_origin(type) is Literal:
        return [str(value) for value in get_args(type)]
    if isinstance(type, enum.EnumMeta):
        members: list[enum.Enum] = list(type)
        return [str(member.value) for member in members]
    return [choice for part in get_args(type) for choice in _choices(part)]
