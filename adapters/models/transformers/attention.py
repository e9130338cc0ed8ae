"""Attention over the arena, as a function that `transformers` calls in place of its own (its attention interface).

A forward pass gets the tokens of many sequences side by side, [1, tokens]: decoded tokens, injections and chunks of
prompts alike. In each layer the new keys and values are written to the arena, then every sequence attends over its own
extent of it, so that no sequence sees another and no mask spans them all. What belongs to a pass travels in a `Batch`
through the model's keyword arguments.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from asynclm.adapters.models.transformers.arena import Arena, LayerShape

# The name under which transformers knows our function. There is no mask function of that name, so that none is made.
NAME: Final = "asynclm"
# Keyword arguments by which models ask for more than plain attention. Refused, not ignored.
_UNSUPPORTED: Final = {
    "softcap": "soft-capped attention scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "position biases",
    "encoder_hidden_states": "cross-attention",
}

logger = logging.getLogger(__name__)


class UnsupportedError(Exception):
    """The model's attention does something that this function doesn't."""


class Span(NamedTuple):
    """A sequence's part of a pass: rows `begin` to `end` of the packed tokens are its tokens from `past` on, and its
    token 0 lies at `start` in the arena.
    """

    begin: int
    end: int
    start: int
    past: int
    pages: range


class Paged(NamedTuple):
    """Where the sequences of a pass lie, for FlashAttention on pages; int32 tensors. Sequence i has the tokens
    `bounds[i]` to `bounds[i + 1]` of the pass, and `lengths[i]` in all (`length_bounds` are their sums); its pages are
    `table[i]`. No sequence has more than `longest_query` tokens in the pass, or more than `longest` in all.
    """

    bounds: Tensor
    lengths: Tensor
    length_bounds: Tensor
    table: Tensor
    longest_query: int
    longest: int


class StaticBatch(NamedTuple):
    """What attention needs to know of a forward pass whose tensors stay and are filled anew (see `decoding`)."""

    arena: Arena
    slots: Tensor
    paged: Paged


class Batch:
    """What attention needs to know of a forward pass; what all layers share is made once. `slots` are where in the
    arena the tokens of the pass go.
    """

    def __init__(self, arena: Arena, spans: Sequence[Span], *, varlen: bool) -> None:
        self.arena = arena
        self.spans = spans
        slots: list[int] = []
        for span in spans:
            first = span.start + span.past
            slots.extend(range(first, first + span.end - span.begin))
        self.slots = to_device(slots, torch.int64, arena.device)
        self.paged = _paged(arena, spans) if varlen else None
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def mask(self, rows: int, columns: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """[rows, columns] of 0 and -inf: the last row sees the last column, each `window` columns or all before it."""
        key = (rows, columns, window)
        mask = self._masks.get(key)
        if mask is None:
            mask = torch.full((rows, columns), float("-inf"), dtype=dtype, device=self.arena.device)
            hidden = mask.triu(columns - rows + 1)  # (-inf above the diagonal, 0 below it)
            if window is not None:
                hidden += mask.tril(columns - rows - window)
            mask = self._masks[key] = hidden
        return mask


class Probe:
    """Stands in for a `Batch` to find out what each layer keeps of a token, and how far back it looks (`windows`).

    What the model computes on the way is of no use.
    """

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}
        self.windows: dict[int, int] = {}


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    asynclm: Batch | StaticBatch | Probe | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of packed tokens: `query` [1, heads, tokens, width], `key` and `value` the same with the heads that
    they have. Returns [1, tokens, heads, value width].

    Raises `UnsupportedError` for what the model asks for and this function hasn't.
    """
    layer = getattr(module, "layer_idx", None)
    if asynclm is None or layer is None:
        raise UnsupportedError("its layers don't hand keyword arguments on to their attention")
    if isinstance(asynclm, Probe):
        _inspect(asynclm, module, layer, key, value, attention_mask, others)
        if sliding_window is not None:
            asynclm.windows[layer] = sliding_window
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return output.transpose(1, 2), None
    batch, arena = asynclm, asynclm.arena
    keys, values = arena.keys[layer], arena.values[layer]
    keys.index_copy_(0, batch.slots, key[0].transpose(0, 1))
    values.index_copy_(0, batch.slots, value[0].transpose(0, 1))
    if batch.paged is not None:
        return _by_varlen(arena.page, batch.paged, query, keys, values, scaling, sliding_window), None
    assert isinstance(batch, Batch)
    keys, values = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]  # [1, heads, tokens of the arena, width]
    outputs = [_by_span(batch, span, query, keys, values, scaling, sliding_window) for span in batch.spans]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return output.transpose(1, 2), None


def _by_span(
    batch: Batch,
    span: Span,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """One sequence's attention by torch's SDPA, on views of the arena: [1, heads, tokens, value width]."""
    rows = span.end - span.begin
    length = span.past + rows
    first = 0 if window is None else max(0, span.past + 1 - window)  # the first token that the first row sees
    columns = length - first
    query = query[:, :, span.begin : span.end]
    keys = keys.narrow(2, span.start + first, columns)
    values = values.narrow(2, span.start + first, columns)
    heads = keys.shape[1]
    if rows == 1:
        # Heads of queries that share keys are as rows of one: those keys are then read once for all of them.
        query = query.reshape(1, heads, query.shape[1] // heads, -1)
        return scaled_dot_product_attention(query, keys, values, scale=scaling).flatten(1, 2).unsqueeze(2)
    windowed = window is not None and window < length
    if span.past == 0 and not windowed:
        return scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scaling, enable_gqa=True)
    # Heads of queries that share keys go into the batch's dimension: faster under a mask than `enable_gqa` (CPU).
    shared = query.shape[1] // heads
    mask = batch.mask(rows, columns, window if windowed else None, query.dtype)
    output = scaled_dot_product_attention(
        query[0].view(heads, shared, rows, -1),
        keys[0].unsqueeze(1).expand(-1, shared, -1, -1),
        values[0].unsqueeze(1).expand(-1, shared, -1, -1),
        attn_mask=mask,
        scale=scaling,
    )
    return output.flatten(0, 1)[None]


def _paged(arena: Arena, spans: Sequence[Span]) -> Paged:
    widest = max(len(span.pages) for span in spans)
    table = [[*span.pages, *[0] * (widest - len(span.pages))] for span in spans]
    lengths = [span.past + span.end - span.begin for span in spans]
    return Paged(
        bounds=to_device([0, *(span.end for span in spans)], torch.int32, arena.device),
        lengths=to_device(lengths, torch.int32, arena.device),
        length_bounds=to_device([0, *accumulate(lengths)], torch.int32, arena.device),
        table=to_device(table, torch.int32, arena.device),
        longest_query=max(span.end - span.begin for span in spans),
        longest=max(lengths),
    )


def _by_varlen(
    page: int, paged: Paged, query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """All sequences at once by FlashAttention on the arena's pages (CUDA): [1, tokens, heads, value width]."""
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        keys.view(-1, page, *keys.shape[1:]),
        values.view(-1, page, *values.shape[1:]),
        paged.bounds,
        paged.length_bounds,
        paged.longest_query,
        paged.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=True,
        seqused_k=paged.lengths,
        block_table=paged.table,
    )
    assert isinstance(output, Tensor)
    return output[None]


def _inspect(
    probe: Probe,
    module: nn.Module,
    layer: int,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    others: dict[str, Any],
) -> None:
    for name, words in _UNSUPPORTED.items():
        if others.get(name) is not None:
            raise UnsupportedError(f"it has {words}")
    if attention_mask is not None or not getattr(module, "is_causal", True):
        raise UnsupportedError("its attention isn't causal")
    if layer in probe.layers:
        raise UnsupportedError(f"it attends twice in layer {layer}")
    probe.layers[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])


def to_device(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Through pinned memory where there is a device, so that the copy needn't be waited for."""
    tensor = torch.tensor(numbers, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


AttentionInterface.register(NAME, attend)
