"""Which characters a Python identifier can hold."""

from __future__ import annotations


def identifier_characters(text: str, other: str = "_") -> str:
    r"""The text with `other` for each character that can't stand in a Python identifier, not even after the first.

    Not what a regular expression's `\W` finds: the numerals of some scripts are word characters, but in no identifier.
    """
    return "".join(character if f"_{character}".isidentifier() else other for character in text)
