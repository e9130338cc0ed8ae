"""Tokenizers of the families that causal language models use, trained on a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "[CALL] get_weather(city='Paris') [END] and [TRAP][END] then\n  user: system assistant",
    'def call(x): return {"a": [1, 2], "b": "[HEAD]"}\n\n\t# done',
    "Grüße aus Köln, 日本語 and emoji 🎉 too",
] * 3
CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
ROLES = ("<|start|>", "<|stop|>")


def byte_level(special: Sequence[str] = ROLES, *, template: str | None = CHAT, size: int = 320) -> Any:
    """As GPT-2, Llama 3, Qwen and SmolLM."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(special) - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=["<|end|>"],
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens(list(special))
    return _wrapped(tokenizer, template, eos_token="<|end|>")


def sentencepiece(special: Sequence[str] = ROLES, *, template: str | None = CHAT, prepend: str = "normalizer") -> Any:
    """As Llama 2 (`prepend` "normalizer") and Mistral ("metaspace"): a space before a text, bytes for what is rare."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prepend == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=60,
        show_progress=False,
    )
    tokenizer.train_from_iterator([line.replace(" ", "▁") for line in LINES], trainer)
    description = _without_bytes_as_special(tokenizer)
    tokenizer = Tokenizer.from_str(description)
    tokenizer.add_special_tokens(list(special))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(tokenizer, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(special: Sequence[str] = ROLES, *, template: str | None = CHAT) -> Any:
    """As models that take SentencePiece's other kind: its control tokens are ordinary words of the vocabulary."""
    alphabet = sorted({character for line in LINES for character in line.replace(" ", "▁")})
    words = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)] + [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    words += [(character, -5.0) for character in alphabet] + [("▁the", -3.0), ("▁fox", -3.0), ("<", -5.0), (">", -5.0)]
    tokenizer = Tokenizer(models.Unigram(list(dict(words).items()), unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *special])
    return _wrapped(tokenizer, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def added(tokenizer: Any, *texts: str, special: bool) -> Any:
    tokenizer.add_tokens(
        [AddedToken(text, special=special, normalized=False) for text in texts], special_tokens=special
    )
    return tokenizer


def _wrapped(tokenizer: Tokenizer, template: str | None, **special: str) -> Any:
    wrapped: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = template
    return wrapped


def _without_bytes_as_special(tokenizer: Tokenizer) -> str:
    import json

    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["id"] < 3]
    return json.dumps(description)
