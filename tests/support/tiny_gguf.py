"""A GGUF file with a Llama of two layers and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType
from tiny_tokenizers import CHAT, byte_level

_WIDTH, _INNER, _HEADS, _LAYERS = 64, 96, 4, 2


def write_gguf(path: Path, *, architecture: str = "llama") -> Path:
    description = json.loads(byte_level().backend_tokenizer.to_str())
    tokens = dict(sorted(description["model"]["vocab"].items(), key=lambda item: item[1]))
    special = {token["content"]: token["id"] for token in description["added_tokens"]}
    names = [*tokens, *(name for name in special if name not in tokens)]
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(names))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_types([TokenType.CONTROL if name in special else TokenType.NORMAL for name in names])
    writer.add_token_merges([" ".join(merge) for merge in description["model"]["merges"]])
    writer.add_bos_token_id(special["<|end|>"])
    writer.add_eos_token_id(special["<|stop|>"])
    writer.add_chat_template(CHAT)
    random = np.random.default_rng(3)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.2, shape).astype(np.float32))

    tensor("token_embd.weight", len(names), _WIDTH)
    for layer in range(_LAYERS):
        tensor(f"blk.{layer}.attn_q.weight", _WIDTH, _WIDTH)
        tensor(f"blk.{layer}.attn_k.weight", _WIDTH // 2, _WIDTH)
        tensor(f"blk.{layer}.attn_v.weight", _WIDTH // 2, _WIDTH)
        tensor(f"blk.{layer}.attn_output.weight", _WIDTH, _WIDTH)
        tensor(f"blk.{layer}.ffn_gate.weight", _INNER, _WIDTH)
        tensor(f"blk.{layer}.ffn_up.weight", _INNER, _WIDTH)
        tensor(f"blk.{layer}.ffn_down.weight", _WIDTH, _INNER)
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(_WIDTH, np.float32))
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", np.ones(_WIDTH, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(_WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
