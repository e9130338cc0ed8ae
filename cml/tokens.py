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
_ESCAPABLE = re.compile(r"\[(?=(?:CALL|INTR|TRAP|HEAD|END)\])|\\(?=u005[bc])")
_ESCAPED = re.compile(r"\\u005([bc])")


def escape(text: str) -> str:
    """Make `text` safe to stand in a prompt: no control token is left in it. Undone by `unescape`."""
    if "[" not in text and "\\" not in text:
        return text
    return _ESCAPABLE.sub(lambda m: "\\u005b" if m[0] == "[" else "\\u005c", text)


def unescape(text: str) -> str:
    """The text that `escape` was given."""
    return _ESCAPED.sub(lambda m: "[" if m[1] == "b" else "\\", text)


def escape_json(json: str) -> str:
    """Escape control tokens in a JSON document, where they can only stand in strings: any JSON decoder undoes it."""
    return TOKEN_START.sub("\\\\u005b", json)
