"""The five control tokens of CML, and the escaping that keeps foreign text from forging one.

Escaping is lossless: `unescape(escape(text)) == text` for every text, and `escape(text)` holds no control token. A `[`
that begins a control token becomes ``\\u005b``; a backslash that already begins ``\\u005b`` or ``\\u005c`` becomes
``\\u005c``. Inside a JSON string the first half alone is enough, and is JSON's own escape: see `escape_json`.
"""

from __future__ import annotations

import re
from typing import Final

CALL: Final = "[CALL]"
INTR: Final = "[INTR]"
TRAP: Final = "[TRAP]"
HEAD: Final = "[HEAD]"
END: Final = "[END]"
CONTROL_TOKENS: Final = (CALL, INTR, TRAP, HEAD, END)

# Where a control token begins.
TOKEN_START: Final = re.compile(r"\[(?=(?:CALL|INTR|TRAP|HEAD|END)\])")
_TOKEN = re.compile(r"\[(CALL|INTR|TRAP|HEAD|END)\]")
_ESCAPABLE = re.compile(r"\[(?=(?:CALL|INTR|TRAP|HEAD|END)\])|\\(?=u005[bc])")
# What `escape` makes of a control token, and of text that looks as if it had.
_QUOTED = re.compile(r"\\u005(?:(b)(?=(?:CALL|INTR|TRAP|HEAD|END)\])|c(?=u005[bc]))")
_ESCAPES: Final = (*(f"\\u005b{token[1:]}" for token in CONTROL_TOKENS), "\\u005cu005b", "\\u005cu005c")
_LONGEST_ESCAPE: Final = max(map(len, _ESCAPES))
_ESCAPED = re.compile(r"\\u005([bc])")


def defuse(text: str) -> str:
    """`text` with its control tokens out of their brackets: to be read, not parsed."""
    return _TOKEN.sub(r"\1", text) if "[" in text else text


def escape(text: str) -> str:
    """Make `text` safe to stand in a prompt: no control token is left in it. Undone by `unescape`."""
    if "[" not in text and "\\" not in text:
        return text
    return _ESCAPABLE.sub(lambda m: "\\u005b" if m[0] == "[" else "\\u005c", text)


def unescape(text: str) -> str:
    """The text that `escape` was given."""
    return _ESCAPED.sub(lambda m: "[" if m[1] == "b" else "\\", text)


class Unescaper:
    """`unescape` for text that comes in pieces, where a model quotes what it was given escaped."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Take a piece; return what can be told already."""
        if not self._held and "\\" not in text:
            return text
        text = self._held + text
        last = text.rfind("\\")
        cut = last if last >= 0 and _may_become_escape(text[last:]) else len(text)
        self._held = text[cut:]
        return _QUOTED.sub(lambda m: "[" if m[1] == "b" else "\\", text[:cut])

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


def _may_become_escape(text: str) -> bool:
    return len(text) < _LONGEST_ESCAPE and any(escape.startswith(text) for escape in _ESCAPES)


def escape_json(json: str) -> str:
    """Escape control tokens in a JSON document, where they can only stand in strings: any JSON decoder undoes it."""
    return TOKEN_START.sub("\\\\u005b", json)
