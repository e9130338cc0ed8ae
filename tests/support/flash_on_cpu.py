"""Stand-ins for what only a GPU has, so that the passes made for it run here: FlashAttention's kernel, by its
documentation (`torch.nn.attention.varlen.varlen_attn`), and the capture of a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen  # before the kernel is replaced: it is looked at on import
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

# Operations that look at a tensor's numbers.
_LOOKS = frozenset({"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select"})


def flash_attention_forward(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bounds: Tensor,
    length_bounds: Tensor,
    longest_query: int,
    longest: int,
    dropout: float,
    is_causal: bool,
    *,
    return_debug_mask: bool,
    scale: float | None,
    window_size_left: int,
    window_size_right: int,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int | None,
) -> tuple[Tensor, ...]:
    """`query` [tokens, heads, width]; `keys` and `values` [pages, page, heads, width]. Made of operations on tensors
    alone, without a look at their numbers, so that it can be captured.
    """
    rows = torch.arange(len(query))
    owner = torch.searchsorted(bounds[1:], rows, right=True)  # the sequence of each row
    lengths = torch.minimum(seqused_k, length_bounds.diff())  # the same, given both ways
    position = lengths[owner] - (bounds[1:][owner] - rows)  # of the row in its sequence
    pages = block_table[owner].long()
    # [rows, columns, heads, width]; as many columns as the kernel was told, the table's width permitting
    columns = min(longest, pages.shape[1] * keys.shape[1])
    keys = keys[pages].flatten(1, 2)[:, :columns]
    values = values[pages].flatten(1, 2)[:, :columns]
    shared = query.shape[1] // keys.shape[2]
    keys, values = keys.repeat_interleave(shared, 2), values.repeat_interleave(shared, 2)
    column = torch.arange(columns)
    seen = column <= position[:, None]
    assert window_size_right == 0
    assert is_causal == (window_size_left == -1)
    if window_size_left >= 0:
        seen &= column >= position[:, None] - window_size_left
    scores = torch.einsum("rhw,rchw->rhc", query, keys) * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = torch.softmax(scores.masked_fill(~seen[:, None], float("-inf")), -1)
    # As on the device: what isn't seen isn't touched, even if it is no number.
    output = torch.einsum("rhc,rchw->rhw", weights, values.masked_fill(~seen[:, :, None, None], 0.0))
    return output, weights.new_zeros(1), weights.new_zeros(1), weights.new_zeros(1), weights.new_zeros(1)


def flash_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on torch's `varlen_attn`, itself unchanged, comes down to the function above."""
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash_attention_forward)


class Recorded:
    """What a CUDA graph is, on the CPU: the operations of a run, to be done again on the same tensors.

    Nothing of Python runs again: a number that the run worked out is what it was. As in a capture, to look at a number
    of a tensor is refused.
    """

    def __init__(self) -> None:
        self.captured = 0
        self.replayed = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        recorder = _Recorder()
        with recorder:
            run()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            recorder.replay()

        return replay


class Waiting(TorchDispatchMode):
    """Notes the `operations` that would wait for the device: `item`, `bool`, masks as indices. (Not all can be told on
    the CPU: `tolist` is what is done to a tensor of the host's, too.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _looks(func, args):
            self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _looks(func, args) or func.overloadpacket.__name__ == "lift_fresh":  # numbers of Python's, brought over
            raise RuntimeError(f"{func} waits for the device, which a capture doesn't permit")
        output = func(*args, **(kwargs or {}))
        self._operations.append((func, args, kwargs or {}, output))
        return output

    def replay(self) -> None:
        made: dict[int, Tensor] = {}

        def again(tensor: Tensor) -> Tensor:
            return made.get(id(tensor), tensor)

        for func, args, kwargs, output in self._operations:
            args, kwargs = tree_map_only(Tensor, again, (args, kwargs))
            result = func(*args, **kwargs)
            for old, new in zip(_tensors(output), _tensors(result), strict=True):
                made[id(old)] = new


def _has_mask(indices: Any) -> bool:
    each_index = indices if isinstance(indices, list | tuple) else [indices]
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in each_index)


def _looks(func: Any, args: Any) -> bool:
    name = func.overloadpacket.__name__
    masks = name.startswith("index") and _has_mask(args[1])
    return name in _LOOKS or masks


def _tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [each for each in output or () if isinstance(each, Tensor)]
