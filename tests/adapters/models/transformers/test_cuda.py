"""What needs a GPU: captured graphs beside passes that aren't captured, and a forward pass that waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny_models import CONTEXT, VOCABULARY, stock

from asynclm.adapters.models.local.engine import Feed, Pick, Sampling
from asynclm.adapters.models.transformers.agreement import alike
from asynclm.adapters.models.transformers.arena import Arena
from asynclm.adapters.models.transformers.check import decoding_works, replace_attention, varlen_works
from asynclm.adapters.models.transformers.decoding import CudaGraphs, Decoder
from asynclm.adapters.models.transformers.engine import TransformersEngine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

KINDS = ("llama", "qwen2", "qwen3", "mistral", "gpt2")
DTYPE = torch.bfloat16
PAGE = 256


@contextmanager
def no_waiting() -> Iterator[None]:
    """Torch raises where an operation of its own waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def made(kind: str) -> tuple[TransformersEngine, TransformersEngine, Decoder]:
    """One that decodes from graphs, and one that doesn't."""
    cuda = torch.device("cuda", 0)
    model = stock(kind).to(cuda, DTYPE)
    layers = replace_attention(model, vocabulary=VOCABULARY, dtype=DTYPE, device=cuda)
    if not varlen_works(model, layers, vocabulary=VOCABULARY, dtype=DTYPE, device=cuda):
        pytest.skip("FlashAttention on pages doesn't work on this GPU")
    assert decoding_works(model, layers, CudaGraphs(cuda), vocabulary=VOCABULARY, dtype=DTYPE, device=cuda)
    arenas = [Arena(layers, tokens=12 * PAGE, page=PAGE, dtype=DTYPE, device=cuda) for _ in range(2)]
    decoder = Decoder(
        model, arenas[0], CudaGraphs(cuda), context=CONTEXT, vocabulary=VOCABULARY, dtype=DTYPE, first_width=PAGE
    )
    graphs, eager = (
        TransformersEngine(
            model, arena, context=CONTEXT, vocabulary=VOCABULARY, description="", varlen=True, decoder=each
        )
        for arena, each in zip(arenas, (decoder, None), strict=True)
    )
    return graphs, eager, decoder


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_compute_what_passes_that_are_not_captured_do(kind: str) -> None:
    graphs, eager, decoder = made(kind)
    sequences = []
    for number in range(9):
        text = [(number + i * 31) % VOCABULARY for i in range(1 + number * 57 % 400)]
        for engine in (graphs, eager):
            sequence = engine.open(Sampling(temperature=0))
            engine.forward([Feed(sequence, text)])
        sequences.append(sequence)
    for step in range(40):
        fed = sequences[: 1 + step * 5 % 9]
        for engine in (graphs, eager):
            engine.forward([Feed(s, [(step * 17 + s) % VOCABULARY]) for s in fed])
        for sequence in sequences:  # those that wait, too
            assert alike(graphs.logits(sequence), eager.logits(sequence), DTYPE)
    assert decoder.works
    graphs.close()


@pytest.mark.parametrize("captured", [True, False])
def test_a_forward_pass_waits_for_nothing(captured: bool) -> None:
    graphs, eager, decoder = made("llama")
    engine = graphs if captured else eager
    if captured:
        decoder.prepare()
    sequences = [engine.open(Sampling(temperature=0)) for _ in range(3)]
    engine.forward([Feed(s, [1, 2, 3]) for s in sequences])
    for step in range(4):
        with no_waiting():
            engine.forward([Feed(s, [step + 3]) for s in sequences])
        assert len(engine.sample([Pick(s) for s in sequences])) == 3
    with no_waiting():
        engine.forward([Feed(s, [5] * 150) for s in sequences])  # several tokens, and room has to be found
    assert decoder.works
