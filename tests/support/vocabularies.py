"""Small tokenizers of the kinds that model families have, trained on CML so that its brackets fuse with their
neighbours.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from asynclm.cml.tokens import CONTROL_TOKENS

FAMILIES = ("gpt2", "llama3", "sentencepiece", "fused", "special")
"""GPT-2's pre-tokenizer (SmolLM2 has it, too), that of Llama 3 and Qwen, SentencePiece with bytes to fall back on,
bytes that fuse over anything, and GPT-2's again with the control tokens as special tokens.
"""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_END = "<|end|>"

CORPUS = [
    text
    for n in range(40)
    for text in (
        f'Let me look.\n[CALL] a{n} [HEAD] temperature(city="Oslo") [END]\n[CALL] b [HEAD] now() [END]',
        f"[CALL] b{n} [HEAD] find(name='Ann', n={n})[END]\n",
        f'[CALL]c{n}[HEAD]search(query="some words", limit={n}, tags=["x", "y"])[END]\n[TRAP][END]\n[TRAP] b [END]',
        f'[INTR] a{n} [HEAD] {{"value":{n}.5,"ok":true}} [END]\n[INTR]b[HEAD]"x"[END][TRAP][END]\n',
        f"It is {n} degrees, as xs[{n}][0] says; see [1], [INTRO], [CALLER]. <think>No.</think> f(x={{'k': None}})\n",
    )
]


class ToyVocabulary:
    """A `Vocabulary` over a `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: Tokenizer, pieces: Sequence[bytes], ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._ends = ends

    @property
    def pieces(self) -> Sequence[bytes]:
        return self._pieces

    @property
    def ends(self) -> frozenset[int]:
        return self._ends

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def chat(self, messages: Sequence[dict[str, Any]], answer: str) -> list[int]:
        return self.encode("".join(f"{each['role']}: {each['content']}\n" for each in messages) + answer)

    def text(self, tokens: Sequence[int]) -> bytes:
        """What these tokens stand for."""
        return b"".join(self._pieces[token] for token in tokens)


@functools.cache
def vocabulary(family: str, size: int = 700) -> ToyVocabulary:
    """The vocabulary of that family (see `FAMILIES`), of about `size` tokens."""
    if family == "sentencepiece":
        return _sentencepiece(size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    if family == "llama3":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family != "fused")
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[_END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
            max_token_length=9 if family == "fused" else None,
        ),
    )
    if family == "special":
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in CONTROL_TOKENS])
    letters = {char: byte for byte, char in _byte_letters()}
    pieces = []
    for token in range(tokenizer.get_vocab_size()):
        written = tokenizer.id_to_token(token)
        if written in CONTROL_TOKENS:
            pieces.append(written.encode())
        else:
            pieces.append(b"" if written == _END else bytes(letters[char] for char in written))
    return ToyVocabulary(tokenizer, pieces, frozenset([tokenizer.token_to_id(_END)]))


def _sentencepiece(size: int) -> ToyVocabulary:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    specials = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False,
        ),
    )
    pieces = []
    for token in range(tokenizer.get_vocab_size()):
        written = tokenizer.id_to_token(token)
        if written in specials:
            pieces.append(b"")
        elif 3 <= token < 3 + 256:
            pieces.append(bytes([token - 3]))
        else:
            pieces.append(written.replace("▁", " ").encode())
    return ToyVocabulary(tokenizer, pieces, frozenset([tokenizer.token_to_id("</s>")]))


def _byte_letters() -> Iterator[tuple[int, str]]:
    """GPT-2's letters for bytes: those that can be seen stand for themselves, others for what comes behind 255."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in seen)
    yield from ((byte, chr(byte)) for byte in seen)
    yield from ((byte, chr(256 + place)) for place, byte in enumerate(others))
