"""Models with random weights in the shapes of well-known ones, made on the spot: how long a step takes depends on the
shapes alone, and forced output needs no sense.

    python -m asynclm.bench.local.shapes llama-3.2-1b FOLDER [--device cuda] [--dtype bfloat16]

The tokenizer is a byte-level BPE, trained on some text with calls in it, so that a call takes about as many
tokens as in any other model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

from asynclm.bench.parser import CALL, PLAIN
from asynclm.cml.tokens import CONTROL_TOKENS

PREFIX: Final = "random:"
_LLAMA: Final[dict[str, Any]] = {
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
# As their makers publish them in config.json.
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "smollm2-135m": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    },
    "llama-3.2-1b": _LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama-3.2-3b": _LLAMA
    | {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
_ROLES: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MERGES: Final = 8192


class UnknownShapeError(ValueError):
    """There is no such shape; the message says which there are."""


def make(name: str, folder: Path, *, device: str = "auto", dtype: str = "auto") -> None:
    """Write a model and its tokenizer into the folder, as hubs have them. Raises `UnknownShapeError`, and OSError."""
    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SHAPES.get(name)
    if shape is None:
        raise UnknownShapeError(f"there is no shape {name!r}: give {', '.join(SHAPES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = _tokenizer()
    config = LlamaConfig(**shape, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id)
    kind = ("bfloat16" if device.startswith("cuda") else "float32") if dtype == "auto" else dtype
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, kind))
    try:
        torch.manual_seed(0)
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    log: Any = transformers.logging
    log.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MERGES,
        special_tokens=list(_ROLES),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    end, start = _ROLES[2], _ROLES[0]
    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=tokenizer, eos_token=end, bos_token=start, chat_template=_TEMPLATE)


def _corpus() -> list[str]:
    """This package's own text is English and Python, as calls are."""
    root = Path(__file__).resolve().parents[2]
    files = sorted(file for package in ("cml", "proxy", "bench") for file in (root / package).rglob("*.py"))
    found = [file.read_text("utf-8") for file in files]
    return [*found, *([PLAIN, CALL] * 50), *(f"{token} a1 {token}\n" for token in CONTROL_TOKENS for _ in range(20))]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("name", choices=tuple(SHAPES))
    options.add_argument("folder", type=Path)
    options.add_argument("--device", default="auto")
    options.add_argument("--dtype", default="auto")
    args = options.parse_args()
    make(args.name, args.folder, device=args.device, dtype=args.dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main())
