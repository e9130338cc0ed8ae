"""The exact bytes of each token, from a tokenizer's own description (`tokenizer.json`).

Two families cover the causal language models of today: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM), which writes
each byte as a printable character, and SentencePiece style (Llama 2, Gemma, Mistral), which writes a space as U+2581
and bytes without a character as `<0x0A>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_SPACE: Final = "\u2581"
_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class UnknownTokenizerError(Exception):
    """The tokenizer is of neither family."""


def token_pieces(
    description: Mapping[str, Any], vocabulary: Mapping[str, int], added: Mapping[int, bytes], size: int
) -> list[bytes]:
    """The bytes of the ids 0 to `size`; b"" for those that no token has.

    `description` is the parsed `tokenizer.json`, `vocabulary` gives the ids of its tokens, and `added` has the bytes
    of tokens that were added to it. Raises `UnknownTokenizerError`.
    """
    kinds = set(_types(description.get("decoder"))) | set(_types(description.get("pre_tokenizer")))
    if "ByteLevel" in kinds:
        decode = _byte_level
    elif _SPACE in _strings(description.get("decoder")) or "Metaspace" in kinds:
        decode = _sentencepiece
    else:
        raise UnknownTokenizerError("it is neither byte-level BPE nor of SentencePiece's kind")
    pieces = [b""] * size
    for token, number in vocabulary.items():
        if number < size:
            pieces[number] = added[number] if number in added else decode(token)
    return pieces


def byte_characters() -> dict[str, int]:
    """GPT-2's table: the character that stands for each byte. Printable Latin-1 stands for itself, what is left for
    the characters from U+0100 on.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES: Final = byte_characters()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:  # not made of bytes: a word that the vocabulary has as it stands
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()


def _types(node: Any) -> Iterator[str]:
    """The types of a component, and of those that it is made of."""
    if isinstance(node, dict):
        if "type" in node:
            yield node["type"]
        for value in node.values():
            yield from _types(value)
    elif isinstance(node, list):
        for value in node:
            yield from _types(value)


def _strings(node: Any) -> set[str]:
    if isinstance(node, str):
        return {node}
    if isinstance(node, dict):
        return set().union(*map(_strings, node.values()))
    return set().union(*map(_strings, node)) if isinstance(node, list) else set()
