"""How near the engine comes to what the memory's bandwidth allows: each step reads all of the weights once."""

from __future__ import annotations

import statistics
from typing import Any, Final

import torch

from asynclm.adapters.models.local.engine import Engine

from .clock import Clock
from .results import Bandwidth
from .steps import plain_steps

_COPIED: Final = {"cuda": 4 << 30, "cpu": 256 << 20}  # bytes; far more than any cache holds
_TIMES: Final = 5


def bandwidth(engine: Engine, *, context: int, steps: int, clock: Clock) -> Bandwidth | None:
    """Measure one sequence of that length; None for an engine that isn't made of torch's parameters."""
    model: Any = getattr(engine, "_model", None)
    if not isinstance(model, torch.nn.Module):
        return None
    device = next(model.parameters()).device
    rate = 1 / statistics.median(plain_steps(engine, context, steps, clock=clock))
    return Bandwidth(
        weight_bytes=weight_bytes(model),
        cache_bytes=(context + steps // 2) * engine.memory().bytes_per_token,
        copy_gb_s=copy_gb_s(device, clock),
        engine_tokens_per_s=rate,
    )


def weight_bytes(model: torch.nn.Module) -> int:
    """What a step reads of the weights: all of them once, but for an embedding of which it takes a row a token."""
    everything = {id(each): each.numel() * each.element_size() for each in model.parameters()}
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if embedding is not None and getattr(head, "weight", None) is not embedding.weight:
        everything.pop(id(embedding.weight), None)
    size = next(model.parameters()).element_size()
    layers: list[Any] = [each for each in model.modules() if hasattr(each, "in_features")]
    packed = [each for each in layers if not hasattr(each, "weight")]
    return sum(everything.values()) + size * sum(int(each.in_features * each.out_features) for each in packed)


def copy_gb_s(device: torch.device, clock: Clock) -> float:
    """Copying on the device: bytes read and written, in 10⁹ a second; the best of several times."""
    source = torch.ones(_COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(_TIMES):
        _wait(device)
        began = clock.now()
        with clock.working():
            target.copy_(source)
            _wait(device)
        best = min(best, clock.now() - began)
    return 2 * source.numel() / best / 1e9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
