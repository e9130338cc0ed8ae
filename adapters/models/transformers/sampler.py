"""Drawing tokens: masks, greedy choice, temperature, top-k and top-p, log-probabilities; for many sequences at once.

Each sequence draws with a random number of its own stream and from its own row alone, so that what else is in the batch
changes nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asynclm.adapters.models.local.engine import Sampled, Sampling

# Top-p looks at so many of the likeliest tokens, then at more: sorting a whole vocabulary is rarely needed, and slow.
_HEADS: Final = (256, 4096)


class Draw(NamedTuple):
    """A token to be drawn from a row of logits. `mask` is as in `Pick`."""

    sampling: Sampling
    stream: random.Random
    mask: Any | None


def sample(rows: Tensor, draws: Sequence[Draw]) -> list[Sampled]:
    """Draw a token from each row of `rows` ([draws, vocabulary], float32, the model's own logits; not changed).

    A row that isn't made of numbers (NaN), and one whose mask leaves nothing, gives a `Sampled` with `error`; the
    others are drawn all the same. A random number is taken from a stream only if its draw isn't greedy.
    """
    allowed = _masked(rows, [draw.mask for draw in draws])
    best, tokens = allowed.max(dim=-1)
    # NaN is the maximum of any row that holds it; -inf only of a row with nothing left.
    sound = torch.isfinite(best).tolist()
    chosen: list[int] = tokens.tolist()
    random_rows = [i for i, draw in enumerate(draws) if sound[i] and draw.sampling.temperature > 0]
    if random_rows:
        drawn = _draw(allowed[random_rows], [draws[i] for i in random_rows])
        for i, token in zip(random_rows, drawn, strict=True):
            chosen[i] = token
    sampled = [
        Sampled(chosen[i], math.nan) if sound[i] else Sampled(-1, math.nan, error=_reason(rows[i]))
        for i in range(len(draws))
    ]
    for i, draw in enumerate(draws):
        if sound[i] and draw.sampling.logprobs is not None:
            sampled[i] = _with_logprobs(rows[i], chosen[i], draw.sampling.logprobs)
    return sampled


def _masked(rows: Tensor, masks: Sequence[Any | None]) -> Tensor:
    held = [i for i, mask in enumerate(masks) if mask is not None]
    if not held:
        return rows
    size = rows.shape[-1]
    words = -(-size // 32)
    bits = np.zeros((len(held), words), dtype=np.int32)  # a mask that ends before the vocabulary does forbids the rest
    for row, i in enumerate(held):
        mask = np.asarray(masks[i], dtype=np.int32).ravel()[:words]
        bits[row, : len(mask)] = mask
    if rows.device.type == "cpu":
        flags = torch.from_numpy(np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, :size]).bool()
    else:
        packed = torch.from_numpy(bits).pin_memory().to(rows.device, non_blocking=True)
        shifts = torch.arange(32, dtype=torch.int32, device=rows.device)
        flags = ((packed.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, :size].bool()
    if len(held) == len(masks):
        return rows.masked_fill(~flags, -math.inf)
    allowed = rows.clone()
    allowed[held] = rows[held].masked_fill(~flags, -math.inf)
    return allowed


def _draw(rows: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Inverse transform sampling, in float64: the sums over a vocabulary lose nothing that matters."""
    uniform = torch.tensor([draw.stream.random() for draw in draws], dtype=torch.float64)
    temperatures = torch.tensor([draw.sampling.temperature for draw in draws], dtype=torch.float64)
    uniform, temperatures = uniform.to(rows.device), temperatures.to(rows.device)
    # The maximum is taken off first: a tiny temperature then makes 0 and -inf of logits, never an overflow.
    logits = (rows - rows.amax(-1, keepdim=True)).double() / temperatures.unsqueeze(-1)
    probabilities = torch.softmax(logits, -1)
    cut = [i for i, draw in enumerate(draws) if draw.sampling.top_k > 0 or draw.sampling.top_p < 1]
    whole = [i for i in range(len(draws)) if i not in set(cut)]
    tokens = torch.empty(len(draws), dtype=torch.int64, device=rows.device)
    if whole:
        tokens[whole] = _inverse(probabilities[whole], uniform[whole])
    for i in cut:
        tokens[i] = _draw_cut(probabilities[i], uniform[i], draws[i].sampling)
    result: list[int] = tokens.tolist()
    return result


def _draw_cut(probabilities: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Of the `top_k` likeliest those, from the likeliest on, that together first reach `top_p` of what top-k left."""
    size = len(probabilities)
    counts = [min(sampling.top_k, size)] if sampling.top_k > 0 else [*(n for n in _HEADS if n < size), size]
    for count in counts:
        values, tokens = probabilities.topk(count)
        sums = values.cumsum(0)
        bound = sampling.top_p * (sums[-1] if sampling.top_k > 0 else probabilities.sum())
        if count == counts[-1] or bool(sums[-1] >= bound):
            break
    kept = values.masked_fill(sums - values >= bound, 0.0)
    kept[0] = values[0]  # the likeliest always stays, top_p 0 included
    return tokens[_inverse(kept[None], uniform[None])[0]]


def _inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """For each row the index at which the running sum of its weights first exceeds that share of the whole."""
    sums = weights.cumsum(-1)
    target = (uniform * sums[:, -1]).unsqueeze(-1)
    return torch.searchsorted(sums, target, right=True).squeeze(-1).clamp_(max=weights.shape[-1] - 1)


def _with_logprobs(row: Tensor, token: int, count: int) -> Sampled:
    logprobs = torch.log_softmax(row, -1)
    values, tokens = logprobs.topk(min(count, len(row))) if count else (row[:0], row[:0])
    return Sampled(token, logprobs[token].item(), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


def _reason(row: Tensor) -> str:
    if bool(torch.isfinite(row.max())):
        return "the mask leaves no token to be drawn"
    return "the model's output isn't made of numbers (NaN or infinite): its weights, or its dtype, can't be right"
