"""Write token by token under the mask of a token monitor."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import numpy as np
from vocabularies import ToyVocabulary

from asynclm.adapters.models.local.monitor import Monitor


def allowed(monitor: Monitor, vocabulary: ToyVocabulary) -> set[int]:
    """The tokens that may come next."""
    mask = monitor.mask()
    if mask is None:
        return set(range(len(vocabulary.pieces)))
    assert mask.dtype == np.int32
    assert mask.shape == ((len(vocabulary.pieces) + 31) // 32,)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def write(monitor: Monitor, vocabulary: ToyVocabulary, tokens: Iterable[int]) -> bytes | None:
    """Take all of `tokens`; None, or what was written up to and with the first that may not come."""
    written = b""
    for token in tokens:
        written += vocabulary.pieces[token]
        if token not in allowed(monitor, vocabulary):
            return written
        monitor.take(token)
    return None


def wander(monitor: Monitor, vocabulary: ToyVocabulary, random: Random, steps: int = 400) -> bytes:
    """Write tokens by chance until the open block is closed; from `steps` on rather those that close something."""
    written = b""
    count = 0
    while monitor.critical:
        choice = sorted(allowed(monitor, vocabulary))
        count += 1
        if count > steps:
            closing = [token for token in choice if vocabulary.pieces[token][:1] in (b'"', b"'", b")", b"]", b"}")]
            choice = closing or choice
        assert count < 5 * steps, written
        token = random.choice(choice)
        written += vocabulary.pieces[token]
        monitor.take(token)
    return written
