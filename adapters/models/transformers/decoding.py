"""Decoding from static tensors, to be captured as CUDA graphs: passes in which each sequence has one token.

Such a pass is short on the device and long on the host, which would launch some hundreds of kernels for it. Here it is
a function of nothing but a few static tensors: tokens, positions, where they go in the arena, and where their sequences
lie. For each number of rows (1, 2, 4, ...) and width of the block table (doubling, too) it is captured once, when it is
first needed; from then on a pass costs the host one small copy and one launch. Rows too many are padding: they write to
the arena's trash page and attend to one token there.

Nothing of sampling is in the graph. Its logits are copied out, so that a distribution can wait while others go on.
Sequences may move in the arena between passes (the table says where they lie); the arena's tensors stay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from asynclm.adapters.models.transformers.agreement import alike
from asynclm.adapters.models.transformers.arena import Arena
from asynclm.adapters.models.transformers.attention import Paged, Span, StaticBatch

# Takes a function of static tensors, runs it at least once, and returns what runs it again on what they hold then.
Capture: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]

_MOST_ROWS: Final = 64
_PREPARED_ROWS: Final = 16
_FIRST_WIDTH: Final = 2048  # tokens
_WARM_UPS: Final = 2  # the first pass of a shape may look for the fastest kernels, or allocate workspaces

logger = logging.getLogger(__name__)


class _Inputs(NamedTuple):
    """Views of one int32 tensor, so that one copy brings them all to the device. The first three are int64, [rows]."""

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    lengths: Tensor
    length_bounds: Tensor
    table: Tensor

    @staticmethod
    def size(rows: int, width: int) -> int:
        return 6 * rows + rows + (rows + 1) + rows * width

    @classmethod
    def of(cls, flat: Tensor, rows: int, width: int) -> _Inputs:
        wide, lengths, length_bounds, table = torch.split(flat, [6 * rows, rows, rows + 1, rows * width])
        tokens, positions, slots = wide.view(torch.int64).view(3, rows)
        return cls(tokens, positions, slots, lengths, length_bounds, table.view(rows, width))


class _Shape:
    """The static tensors of passes of `rows` rows whose sequences have up to `width` pages."""

    def __init__(self, arena: Arena, rows: int, width: int) -> None:
        self.rows = rows
        self.width = width
        self.replay: Callable[[], None] | None = None
        self._arena = arena
        self._flat = torch.zeros(_Inputs.size(rows, width), dtype=torch.int32, device=arena.device)
        self.inputs = _Inputs.of(self._flat, rows, width)
        bounds = torch.arange(rows + 1, dtype=torch.int32, device=arena.device)
        # The longest must not depend on the sequences: a graph would keep what it was when it was captured.
        self.batch = StaticBatch(
            arena,
            self.inputs.slots,
            Paged(bounds, self.inputs.lengths, self.inputs.length_bounds, self.inputs.table, 1, width * arena.page),
        )

    def fill(self, tokens: Sequence[int], spans: Sequence[Span]) -> None:
        """One row for each span, which has one token; padding behind them. Doesn't wait for the device."""
        arena = self._arena
        pinned = arena.device.type == "cuda"
        # A new one each time: torch doesn't use pinned memory again before the copy out of it is done.
        flat = torch.empty(len(self._flat), dtype=torch.int32, pin_memory=pinned)
        host = [view.numpy() for view in _Inputs.of(flat, self.rows, self.width)]
        ids, positions, slots, lengths, length_bounds, table = host
        padding = self.rows - len(spans)
        ids[:] = [*tokens, *[0] * padding]
        positions[:] = [*(span.past for span in spans), *[0] * padding]
        slots[:] = [*(span.start + span.past for span in spans), *[arena.trash] * padding]
        np.add(positions, 1, out=lengths, casting="same_kind")
        length_bounds[0] = 0
        np.cumsum(lengths, out=length_bounds[1:])
        trash = arena.trash // arena.page
        table[:] = trash
        for row, span in zip(table, spans, strict=False):
            row[: len(span.pages)] = np.arange(span.pages.start, span.pages.stop)
        self._flat.copy_(flat, non_blocking=pinned)


class Decoder:
    """Runs passes in which each sequence has one token, for an engine whose attention is FlashAttention on pages.

    `context` is the most tokens of a sequence, `dtype` the model's. `capture` is `CudaGraphs` on a GPU. Passes of more
    than `most_rows` rows aren't taken. `first_width` is the narrowest block table, in tokens.
    """

    def __init__(
        self,
        model: Any,
        arena: Arena,
        capture: Capture,
        *,
        context: int,
        vocabulary: int,
        dtype: torch.dtype,
        most_rows: int = _MOST_ROWS,
        first_width: int = _FIRST_WIDTH,
    ) -> None:
        self._model: Any = model
        self._arena = arena
        self._capture = capture
        self._dtype = dtype
        self._most_rows = most_rows
        self._most_pages = -(-min(context, arena.limit) // arena.page)
        self._first_pages = max(1, first_width // arena.page)
        self._tensors = self._arena_tensors()
        self._logits = torch.empty(0, vocabulary, device=arena.device)  # grown when the first graph is captured
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self.works = True

    def run(self, tokens: Sequence[int], spans: Sequence[Span]) -> Tensor | None:
        """Compute a pass; returns the logits behind each token ([tokens, vocabulary], float32), in memory of their
        own. None if it has to be computed in another way: there are too many rows, or it doesn't work here.

        Doesn't wait for the device, but where a shape is captured.
        """
        if not self.works or len(tokens) > self._most_rows:
            return None
        shape = self._shape(len(tokens), max(len(span.pages) for span in spans))
        shape.fill(tokens, spans)
        if shape.replay is None:
            if not self._prepare(shape):
                return None
        else:
            assert all(map(is_, self._arena_tensors(), self._tensors)), "graphs hold the arena's old tensors"
            shape.replay()
        return self._logits[: len(tokens)].clone()

    def prepare(self) -> None:
        """Capture the shapes that are needed soonest, so that no request waits for it."""
        rows = 1
        with torch.inference_mode():
            while self.works and rows <= min(_PREPARED_ROWS, self._most_rows):
                shape = self._shape(rows, 1)
                shape.fill([], [])
                self._prepare(shape)
                rows *= 2

    def give_up(self, why: object) -> None:
        """It doesn't work here: nothing is run any more, and the log says so, once."""
        if self.works:
            self.works = False
            self._shapes.clear()
            logger.warning("decoding without CUDA graphs, which is slower: %s", " ".join(str(why).split())[:500])

    def _shape(self, rows: int, pages: int) -> _Shape:
        """The smallest into which so many rows, of up to so many pages, fit."""
        width = _doubled(self._first_pages, pages, self._most_pages)
        key = (_doubled(1, rows, self._most_rows), width)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = _Shape(self._arena, *key)
        return shape

    def _prepare(self, shape: _Shape) -> bool:
        """Capture, and see that a replay computes what the pass itself did. Leaves the logits of what is filled in."""
        try:
            if not len(self._logits):
                self._logits = self._logits.new_empty(self._most_rows, self._logits.shape[1])
            logits = self._logits[: shape.rows]
            replay = self._capture(lambda: self._forward(shape))
            expected = logits.clone()
            logits.fill_(float("nan"))
            replay()
            if not alike(logits, expected, self._dtype):
                raise RuntimeError("a graph's logits aren't those that it was captured from")
        except Exception as error:  # whatever torch, a driver or a model comes up with: the engine can do without
            self.give_up(f"{type(error).__name__}: {error}")
            return False
        shape.replay = replay
        return True

    def _forward(self, shape: _Shape) -> None:
        output = self._model(
            input_ids=shape.inputs.tokens[None],
            position_ids=shape.inputs.positions[None],
            logits_to_keep=0,
            use_cache=False,
            asynclm=shape.batch,
        )
        self._logits[: shape.rows].copy_(output.logits[0])

    def _arena_tensors(self) -> list[Tensor]:
        return [*self._arena.keys.values(), *self._arena.values.values()]


class CudaGraphs:
    """Captures functions of static tensors as CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """See `Capture`."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            graph = torch.cuda.CUDAGraph()
            # The stream is set here, too: where a capture fails, `graph` leaves its own behind as the current one.
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    run()
                # Other threads may use the device meanwhile.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    run()
            current.wait_stream(self._stream)
        return graph.replay


def _doubled(least: int, needed: int, most: int) -> int:
    """The first of `least`, its double and so on that is enough; `most` where that is less."""
    size = least
    while size < needed:
        size *= 2
    return min(size, most)
