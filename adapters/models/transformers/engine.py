"""The engine on torch and transformers: sequences in one arena, one forward pass for whatever is to be computed.

The model is the stock class of transformers, with its attention put in place of by ours (`attention`). That it still
computes what the stock model does is checked when it is loaded (`check`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from asynclm.adapters.models.local.engine import Feed, Memory, OutOfMemoryError, Pick, Sampled, Sampling
from asynclm.adapters.models.transformers.arena import Arena, Swapped
from asynclm.adapters.models.transformers.attention import Batch, Span, to_device
from asynclm.adapters.models.transformers.decoding import Decoder
from asynclm.adapters.models.transformers.sampler import Draw, sample


class _Sequence:
    """`logits` is the distribution behind the last token, a row of the pass that made it (float32)."""

    __slots__ = ("length", "logits", "sampling", "stream", "swapped")

    def __init__(self, sampling: Sampling) -> None:
        self.length = 0
        self.logits: Tensor | None = None
        self.sampling = sampling
        self.stream = random.Random(sampling.seed)
        self.swapped: Swapped | None = None


class TransformersEngine:
    """An `Engine`. Made by `load.load_engine`.

    `model` is a causal language model whose attention is ours; `arena` has its layers. `context` is the most tokens of
    a sequence. `varlen` says whether all sequences attend in one call (CUDA); `decoder` runs the passes that it takes.
    """

    def __init__(
        self,
        model: Any,
        arena: Arena,
        *,
        context: int,
        vocabulary: int,
        description: str,
        varlen: bool = False,
        decoder: Decoder | None = None,
    ) -> None:
        self._model: Any = model
        self._arena = arena
        self._context = min(context, arena.limit)
        self._vocabulary = vocabulary
        self._description = description
        self._varlen = varlen
        self._decoder = decoder
        self._sequences: dict[int, _Sequence] = {}
        self._opened = 0

    @property
    def context(self) -> int:
        """The most tokens of a sequence: what the model was made for, or what the whole cache holds if that is less."""
        return self._context

    @property
    def vocabulary(self) -> int:
        """The number of token ids, those included that no text needs."""
        return self._vocabulary

    @property
    def description(self) -> str:
        """Model, device and dtype."""
        return self._description

    def open(self, sampling: Sampling) -> int:
        """A new, empty sequence."""
        self._opened += 1
        self._sequences[self._opened] = _Sequence(sampling)
        return self._opened

    def fork(self, source: int, length: int, sampling: Sampling) -> int:
        """A new sequence with a copy of the first `length` tokens of another, which isn't swapped out."""
        origin = self._present(source)
        if not 0 <= length <= origin.length:
            raise ValueError(f"sequence {source} has {origin.length} tokens, not {length}")
        fork = self.open(sampling)
        try:
            if length:
                self._arena.copy(source, fork, length)
        except OutOfMemoryError:
            self.free(fork)
            raise
        self._sequences[fork].length = length
        return fork

    def length(self, sequence: int) -> int:
        """How many tokens are computed, or lie swapped out."""
        return self._sequence(sequence).length

    def forward(self, feeds: Sequence[Feed]) -> None:
        """Append and compute in one pass. All sequences are as before if it raises."""
        if not feeds:
            return
        needs = {feed.sequence: self._present(feed.sequence).length + len(feed.tokens) for feed in feeds}
        self._check(feeds, needs)
        self._arena.reserve(needs)
        done = False
        try:
            with _torch_memory_errors(), torch.inference_mode():
                logits = self._run(feeds)
            done = True
        finally:
            for feed in feeds:
                state = self._sequences[feed.sequence]
                if done:
                    state.length = needs[feed.sequence]
                    state.logits = None
                self._arena.fill(feed.sequence, state.length)
        self._let_go_of_older_passes()
        wanted = [feed.sequence for feed in feeds if feed.logits]
        for row, sequence in enumerate(wanted):
            self._sequences[sequence].logits = logits[row]

    def sample(self, picks: Sequence[Pick]) -> list[Sampled]:
        """Draw a token for each, from the distribution behind its last token."""
        if not picks:
            return []
        rows, draws = [], []
        for pick in picks:
            rows.append(self.logits(pick.sequence))
            state = self._sequence(pick.sequence)
            draws.append(Draw(state.sampling, state.stream, pick.mask))
        with torch.inference_mode():
            return sample(torch.stack(rows), draws)

    def logits(self, sequence: int) -> Tensor:
        """The distribution behind a sequence's last token, [vocabulary], float32. ValueError if there is none."""
        row = self._sequence(sequence).logits
        if row is None:
            raise ValueError(f"sequence {sequence} has no distribution to draw from: feed it with logits first")
        return row

    def truncate(self, sequence: int, length: int) -> None:
        """Forget all but the first `length` tokens, and the distribution; the sequence goes on by being fed."""
        state = self._sequence(sequence)
        if not 0 <= length <= state.length:
            raise ValueError(f"sequence {sequence} has {state.length} tokens, not {length}")
        if state.swapped is not None:
            state.swapped = self._arena.cut(state.swapped, length)
        else:
            self._arena.fill(sequence, length)
        state.length = length
        state.logits = None

    def swap_out(self, sequence: int) -> None:
        """Move a sequence's cache to the host's memory. One that lies there already stays there."""
        state = self._sequence(sequence)
        if state.swapped is None:
            state.swapped = self._arena.take_out(sequence)

    def swap_in(self, sequence: int) -> None:
        """Bring it back; one that is there stays there. Raises `OutOfMemoryError`, and leaves it where it is."""
        state = self._sequence(sequence)
        if state.swapped is not None:
            self._arena.put_back(sequence, state.swapped)
            state.swapped = None

    def drop(self, sequence: int) -> None:
        """Forget a sequence's cache and distribution, but not its sampling state."""
        state = self._sequence(sequence)
        self._forget(sequence, state)
        state.length = 0
        state.logits = None

    def free(self, sequence: int) -> None:
        """End a sequence; its memory is free at once. Unknown numbers are ignored."""
        state = self._sequences.pop(sequence, None)
        if state is not None:
            self._forget(sequence, state)

    def memory(self) -> Memory:
        """What the cache holds now; `used_tokens` in whole pages, so that the rest can really be had."""
        return self._arena.memory()

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked."""
        if self._arena.device.type == "cuda":
            torch.cuda.synchronize(self._arena.device)

    def close(self) -> None:
        """Free the model and all sequences. The engine can't be used any more."""
        for sequence in list(self._sequences):
            self.free(sequence)
        self._model = self._decoder = None
        self._arena.keys.clear()
        self._arena.values.clear()
        if self._arena.device.type == "cuda":
            torch.cuda.empty_cache()

    def _sequence(self, number: int) -> _Sequence:
        state = self._sequences.get(number)
        if state is None:
            raise ValueError(f"there is no sequence {number}")
        return state

    def _present(self, number: int) -> _Sequence:
        state = self._sequence(number)
        if state.swapped is not None:
            raise ValueError(f"sequence {number} is swapped out")
        return state

    def _forget(self, number: int, state: _Sequence) -> None:
        if state.swapped is not None:
            self._arena.discard(state.swapped)
            state.swapped = None
        self._arena.release(number)

    def _check(self, feeds: Sequence[Feed], needs: dict[int, int]) -> None:
        if len(needs) < len(feeds):
            raise ValueError("a sequence can be fed once in a pass")
        for feed in feeds:
            if not feed.tokens:
                raise ValueError(f"sequence {feed.sequence} is fed nothing")
            if needs[feed.sequence] > self._context:
                raise ValueError(
                    f"sequence {feed.sequence} would have {needs[feed.sequence]} tokens, more than the context of "
                    f"{self._context}"
                )
            if min(feed.tokens) < 0 or max(feed.tokens) >= self._vocabulary:
                raise ValueError(f"sequence {feed.sequence} is fed a token that isn't in the vocabulary")

    def _run(self, feeds: Sequence[Feed]) -> Tensor:
        """The forward pass: the logits (float32) behind the last tokens of those feeds that want them, in order."""
        tokens: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        rows: list[int] = []
        for feed in feeds:
            past, begin = self._sequences[feed.sequence].length, len(tokens)
            tokens.extend(feed.tokens)
            end = len(tokens)
            positions.extend(range(past, past + end - begin))
            start, pages = self._arena.start(feed.sequence), self._arena.pages(feed.sequence)
            spans.append(Span(begin, end, start, past, pages))
            if feed.logits:
                rows.append(end - 1)
        if self._decoder is not None and len(tokens) == len(rows) == len(feeds):  # each feed has one token
            decoded = self._decoder.run(tokens, spans)
            if decoded is not None:
                return decoded
        device = self._arena.device
        output = self._model(
            input_ids=to_device([tokens], torch.int64, device),
            position_ids=to_device([positions], torch.int64, device),
            logits_to_keep=to_device(rows, torch.int64, device),
            use_cache=False,
            asynclm=Batch(self._arena, spans, varlen=self._varlen),
        )
        logits: Tensor = output.logits[0]
        return logits.float()

    def _let_go_of_older_passes(self) -> None:
        """A row keeps all the rows of its pass in memory: sequences that weren't fed this time copy theirs out."""
        for state in self._sequences.values():
            row = state.logits
            if row is not None and row.untyped_storage().nbytes() > row.numel() * row.itemsize:
                state.logits = row.clone()


@contextmanager
def _torch_memory_errors() -> Iterator[None]:
    """Torch's own out-of-memory errors, on CUDA and on the CPU, as ours."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(_ADVICE.format(error)) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(_ADVICE.format(error)) from None


_ADVICE = "no memory for a forward pass: feed fewer tokens at once, or give the KV cache fewer tokens ({})"
