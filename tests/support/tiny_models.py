"""Causal language models with random weights, small enough to compare every number of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from asynclm.adapters.models.transformers.arena import Arena
from asynclm.adapters.models.transformers.check import replace_attention
from asynclm.adapters.models.transformers.engine import TransformersEngine

torch.set_num_threads(1)  # nothing here is worth the time in which threads wake each other

VOCABULARY = 320
CONTEXT = 512
WINDOW = 6
CPU = torch.device("cpu")

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def config(kind: str, **changes: Any) -> PreTrainedConfig:
    if kind == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "vocab_size": VOCABULARY}
        return GPT2Config(**sizes | {"bos_token_id": 1, "eos_token_id": 2} | changes)
    if kind == "mistral":
        return MistralConfig(**_SHAPE | {"sliding_window": WINDOW} | changes)
    kinds: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "gemma2": Gemma2Config}
    return kinds[kind](**_SHAPE | changes)


def stock(kind: str, **changes: Any) -> Any:
    """The model as transformers has it."""
    torch.manual_seed(7)
    model: Any = AutoModelForCausalLM.from_config(config(kind, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            # Wider than transformers draws them: attention that is nearly uniform would hide its mistakes.
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    return model.eval()


class Fresh:
    """One full forward pass of the stock model, nothing kept: what every history of feeds must agree with."""

    def __init__(self, kind: str, **changes: Any) -> None:
        self._model = stock(kind, **changes)

    def logits(self, tokens: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self._model(input_ids=torch.tensor([list(tokens)])).logits[0, -1]
        return logits


def engine(
    kind: str = "llama", *, kv_tokens: int = 2048, page: int = 16, context: int = CONTEXT, **changes: Any
) -> TransformersEngine:
    model = stock(kind, **changes)
    layers = replace_attention(model, vocabulary=VOCABULARY, dtype=torch.float32, device=CPU)
    arena = Arena(layers, tokens=kv_tokens, page=page, dtype=torch.float32, device=CPU)
    return TransformersEngine(model, arena, context=context, vocabulary=VOCABULARY, description=f"tiny {kind}")
