"""What the step loop asks of an engine that runs a language model on this machine: the small interface behind which
`transformers` stands today, and llama.cpp or vLLM could tomorrow.

An engine holds *sequences*: tokens and what the model has computed of them (the KV cache). A step is two calls:
`forward` computes what was added to any number of sequences in one pass, `sample` draws the next token of those whose
last distribution is at hand. Nothing is added to a sequence but by `forward`, so that whoever steps the engine may
append other tokens (an interrupt) in place of a sampled one, or pause a sequence, between any two steps.

All methods are called from one thread. Positions, masks and sampling state of a sequence are its own: what else is in
a batch changes nothing but the time that it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn. `temperature` 0 is greedy. `top_k` 0: no bound. `seed` None: any.

    `logprobs` is how many alternatives to report with each token (natural logarithms of the model's own distribution,
    before temperature and masks), None for none at all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    logprobs: int | None = None


class Feed(NamedTuple):
    """A sequence's share of a forward pass: `tokens` are appended to it; with `logits`, the distribution behind the
    last of them is kept for `sample`.
    """

    sequence: int
    tokens: Sequence[int]
    logits: bool = True


class Pick(NamedTuple):
    """A token to be drawn. `mask` (int32, one bit a token, little-endian; None: all) says which may be."""

    sequence: int
    mask: Any | None = None


class Sampled(NamedTuple):
    """A token that was drawn, with its log-probability and those of the likeliest (NaN and none if not asked for).

    `error` says why there is none (`token` is -1): the model's output wasn't made of numbers, or the mask left nothing.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    error: str | None = None


class Memory(NamedTuple):
    """The KV cache, in tokens and bytes: `used` by sequences, `swapped` to the host, of `limit`."""

    used_tokens: int
    swapped_tokens: int
    limit_tokens: int
    bytes_per_token: int


class OutOfMemoryError(Exception):
    """There is no room for what was asked. Nothing has changed: free or swap out a sequence, and try again."""


class Engine(Protocol):
    """A language model with its sequences."""

    @property
    def context(self) -> int:
        """The most tokens that a sequence can have."""
        ...

    @property
    def vocabulary(self) -> int:
        """The number of token ids."""
        ...

    @property
    def description(self) -> str:
        """Model, device and dtype, in words; what is measured of one engine holds for others of the same."""
        ...

    def open(self, sampling: Sampling) -> int:
        """A new, empty sequence; the number is never used again."""
        ...

    def fork(self, source: int, length: int, sampling: Sampling) -> int:
        """A new sequence that begins with the first `length` tokens of another: they aren't computed again.

        Raises `OutOfMemoryError`.
        """
        ...

    def length(self, sequence: int) -> int:
        """How many tokens are computed, or lie swapped out."""
        ...

    def forward(self, feeds: Sequence[Feed]) -> None:
        """Append and compute, all in one pass. May return before the device is done.

        Raises `OutOfMemoryError` (before anything has changed) and ValueError for a sequence beyond `context`.
        """
        ...

    def sample(self, picks: Sequence[Pick]) -> list[Sampled]:
        """Draw a token for each; each needs a distribution (see `Feed`), which stays until the sequence is fed.

        Waits for the device. A drawn token isn't part of its sequence before it is fed. The token is -1 where the model
        computed no number (a distribution that holds NaN).
        """
        ...

    def truncate(self, sequence: int, length: int) -> None:
        """Forget all but the first `length` tokens, and the distribution; the sequence goes on by being fed."""
        ...

    def swap_out(self, sequence: int) -> None:
        """Move a sequence's cache to the host's memory. Its distribution is kept, too."""
        ...

    def swap_in(self, sequence: int) -> None:
        """Bring it back. Raises `OutOfMemoryError`, and leaves it where it is."""
        ...

    def drop(self, sequence: int) -> None:
        """Forget a sequence's cache, but not its sampling state: to be fed all of its tokens again."""
        ...

    def free(self, sequence: int) -> None:
        """End a sequence; its memory is free at once. Unknown numbers are ignored."""
        ...

    def memory(self) -> Memory:
        """What the cache holds now."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked (for measurements)."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...
