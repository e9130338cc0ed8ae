"""The KV cache: for each layer one tensor of keys and one of values, [tokens, heads, width], shared by all sequences.

A sequence's tokens lie together, in an extent of whole pages (see `pages`), so attention reads them in place. Memory
of the CPU is taken page by page as tokens are written, not at the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from asynclm.adapters.models.local.engine import Memory, OutOfMemoryError
from asynclm.adapters.models.transformers.pages import Move, OutOfPagesError, Pages


class LayerShape(NamedTuple):
    """What a layer keeps of a token: `heads` keys of `key_width` numbers, and as many values of `value_width`."""

    heads: int
    key_width: int
    value_width: int


class Swapped(NamedTuple):
    """A sequence's keys and values on the host: by layer, keys before values."""

    tokens: int
    tensors: list[Tensor]


class Arena:
    """Room for `tokens` tokens (rounded down to whole pages of `page`) of layers, by the model's layer numbers.

    `trash` is the first token of one page more, which belongs to no sequence: rows that only fill a pass write there.
    """

    def __init__(
        self, layers: Mapping[int, LayerShape], *, tokens: int, page: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.page = page
        self.device = device
        self._pages = Pages(tokens // page)
        self._filled: dict[int, int] = {}
        self._swapped_tokens = 0
        self.limit = self._pages.total * page
        self.trash = self.limit
        size = self.limit + page
        self.bytes_per_token = bytes_per_token(layers.values(), dtype)
        try:
            self.keys = {
                i: torch.empty(size, s.heads, s.key_width, dtype=dtype, device=device) for i, s in layers.items()
            }
            self.values = {
                i: torch.empty(size, s.heads, s.value_width, dtype=dtype, device=device) for i, s in layers.items()
            }
        except RuntimeError as error:  # torch's own out-of-memory errors are RuntimeErrors
            gib = self.limit * self.bytes_per_token / 2**30
            raise OutOfMemoryError(f"no room for a KV cache of {self.limit} tokens ({gib:.1f} GiB): {error}") from None

    def memory(self) -> Memory:
        """What is in use, in tokens; `used_tokens` counts whole pages, so that limit less used can really be had."""
        return Memory(
            used_tokens=self._pages.used * self.page,
            swapped_tokens=self._swapped_tokens,
            limit_tokens=self.limit,
            bytes_per_token=self.bytes_per_token,
        )

    def start(self, sequence: int) -> int:
        """Where a sequence's first token lies. Good until the next `reserve`."""
        return self._pages.extent(sequence).start * self.page

    def pages(self, sequence: int) -> range:
        """The numbers of a sequence's pages, for a block table."""
        extent = self._pages.extent(sequence)
        return range(extent.start, extent.end)

    def reserve(self, tokens: Mapping[int, int]) -> None:
        """See that every sequence named has room for so many tokens in all; those that have keep their place if they
        can. All or none: raises `OutOfMemoryError`.
        """
        sizes = {
            sequence: pages
            for sequence, count in tokens.items()
            if (pages := -(-count // self.page)) > self._pages.extent(sequence).size
        }
        if not sizes:
            return
        try:
            moves = self._pages.resize(sizes)
        except OutOfPagesError as error:
            raise OutOfMemoryError(
                f"the KV cache is full: {error.needed * self.page} tokens more are needed, "
                f"{error.free * self.page} of {self.limit} are free"
            ) from None
        self._carry_out(moves)

    def fill(self, sequence: int, tokens: int) -> None:
        """So many of a sequence's tokens are written now; room beyond them is given back."""
        self._filled[sequence] = tokens
        size = -(-tokens // self.page)
        if size < self._pages.extent(sequence).size:
            self._pages.resize({sequence: size})

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give `target`, which has nothing yet, the first tokens of `source`. Raises `OutOfMemoryError`."""
        self.reserve({target: tokens})
        self._copy(self.start(source), self.start(target), tokens)
        self.fill(target, tokens)

    def release(self, sequence: int) -> None:
        """Forget a sequence's tokens."""
        self._pages.release(sequence)
        self._filled.pop(sequence, None)

    def take_out(self, sequence: int) -> Swapped:
        """Move a sequence's tokens to the host: to pinned memory if they come from a device. Raises
        `OutOfMemoryError`, and they stay where they are.
        """
        tokens, start = self._filled.get(sequence, 0), self.start(sequence)
        pinned = self.device.type == "cuda"
        hosts = []
        for tensor in self._tensors():
            piece = tensor.narrow(0, start, tokens)
            try:
                host = torch.empty(piece.shape, dtype=piece.dtype, pin_memory=pinned)
            except RuntimeError as error:  # torch's own out-of-memory errors are RuntimeErrors
                raise OutOfMemoryError(f"the host has no room for {tokens} tokens: {error}") from None
            hosts.append(host.copy_(piece, non_blocking=pinned))
        # The copies and whatever writes these pages next are in one stream, in this order: no need to wait.
        self.release(sequence)
        self._swapped_tokens += tokens
        return Swapped(tokens, hosts)

    def put_back(self, sequence: int, swapped: Swapped) -> None:
        """Undo `take_out`. Raises `OutOfMemoryError`, and the tokens stay on the host."""
        self.reserve({sequence: swapped.tokens})
        start = self.start(sequence)
        for tensor, host in zip(self._tensors(), swapped.tensors, strict=True):
            tensor.narrow(0, start, swapped.tokens).copy_(host, non_blocking=True)
        self.fill(sequence, swapped.tokens)
        self._swapped_tokens -= swapped.tokens

    def cut(self, swapped: Swapped, tokens: int) -> Swapped:
        """Only the first `tokens` of what was taken out are needed any more."""
        self._swapped_tokens -= swapped.tokens - tokens
        if self.device.type == "cuda":  # the copies to the host may still be under way
            torch.cuda.current_stream(self.device).synchronize()
        return Swapped(tokens, [host[:tokens].clone() for host in swapped.tensors])

    def discard(self, swapped: Swapped) -> None:
        """What was taken out isn't needed any more."""
        self._swapped_tokens -= swapped.tokens

    def _tensors(self) -> list[Tensor]:
        return [*self.keys.values(), *self.values.values()]

    def _carry_out(self, moves: Sequence[Move]) -> None:
        for move in moves:
            self._copy(move.source * self.page, move.target * self.page, self._filled.get(move.owner, 0))

    def _copy(self, source: int, target: int, tokens: int) -> None:
        if not tokens:
            return
        overlap = abs(source - target) < tokens
        for tensor in self._tensors():
            piece = tensor.narrow(0, source, tokens)
            tensor.narrow(0, target, tokens).copy_(piece.clone() if overlap else piece)


def bytes_per_token(layers: Iterable[LayerShape], dtype: torch.dtype) -> int:
    """What all layers keep of one token, in bytes."""
    return sum(s.heads * (s.key_width + s.value_width) for s in layers) * dtype.itemsize
