"""Names as Python identifiers, which calls are written with."""

from __future__ import annotations

import keyword
import re
import unicodedata


def identifier_characters(text: str, other: str = "_") -> str:
    r"""The text with `other` for each character that can't stand in a Python identifier, not even after the first.

    Not what a regular expression's `\W` finds: the numerals of some scripts are word characters, but in no identifier.
    """
    return "".join(character if f"_{character}".isidentifier() else other for character in text)


def identifier(text: str) -> str:
    """The text as a Python identifier, as close to it as can be."""
    name = unicodedata.normalize("NFKC", text)
    if not text.isidentifier():
        name = re.sub(r"_* +", "_", identifier_characters(name, " ")).strip("_")
    if not name.isidentifier():
        name = f"_{name}"
    return f"{name}_" if keyword.iskeyword(name) else name
