"""Does our attention compute what the model's own does? Found out by trying, before anything is served.

What a layer keeps of a token, too, is read from a trial pass and not from the configuration, where every model family
has its own names for it.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from asynclm.adapters.models.local.engine import Feed, Sampling
from asynclm.adapters.models.transformers.agreement import alike
from asynclm.adapters.models.transformers.arena import Arena, LayerShape
from asynclm.adapters.models.transformers.attention import NAME, Probe, UnsupportedError
from asynclm.adapters.models.transformers.decoding import Capture, Decoder
from asynclm.adapters.models.transformers.engine import TransformersEngine
from asynclm.adapters.models.transformers.linears import PackedLinears

_TOKENS: Final = 24
_PIECES: Final = (10, 1, 13)  # a prompt, a token, and a chunk behind a past
_PAGE: Final = 256
_DECODED: Final = (3, 1, 2, 3, 2, 1)  # sequences in passes of one token each: each graph is replayed, too
_LAYER_TYPES: Final = frozenset({"full_attention", "sliding_attention"})


def replace_attention(
    model: Any, *, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> dict[int, LayerShape]:
    """Put our attention into the model; returns what each layer keeps of a token.

    Raises `UnsupportedError` if the model needs more than our attention can do, or comes out different with it.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedError("transformers can't replace its attention")
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []
    if strange := sorted(set(kinds) - _LAYER_TYPES):
        raise UnsupportedError(f"it has layers of type {', '.join(strange)}")
    tokens = [(i * 7919 + 11) % vocabulary for i in range(_TOKENS)]
    input_ids, position_ids = torch.tensor([tokens], device=device), torch.arange(_TOKENS, device=device)[None]
    with torch.inference_mode():
        expected = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[0, -1].float()
        model.set_attn_implementation(NAME)
        probe = Probe()
        model(input_ids=input_ids, position_ids=position_ids, use_cache=False, asynclm=probe)
    if not probe.layers:
        raise UnsupportedError("it has no attention that transformers can replace")
    for layer, kind in enumerate(kinds):
        if layer in probe.layers and (kind == "sliding_attention") != (layer in probe.windows):
            raise UnsupportedError(f"layer {layer} is of type {kind}, but doesn't say so to its attention")
    arena = Arena(probe.layers, tokens=2 * _PAGE, page=_PAGE, dtype=dtype, device=device)
    engine = TransformersEngine(model, arena, context=_TOKENS, vocabulary=vocabulary, description="")
    if not alike(_last_logits(engine, tokens), expected, dtype):
        raise UnsupportedError("its output is another one with the attention of this engine")
    return probe.layers


def varlen_works(
    model: Any, layers: dict[int, LayerShape], *, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether FlashAttention on pages (CUDA) is there for this model, and agrees with attention by sequence."""
    tokens = [(i * 7919 + 11) % vocabulary for i in range(_TOKENS)]
    logits = []
    try:
        for varlen in (False, True):
            arena = Arena(layers, tokens=2 * _PAGE, page=_PAGE, dtype=dtype, device=device)
            engine = TransformersEngine(
                model, arena, context=_TOKENS, vocabulary=vocabulary, description="", varlen=varlen
            )
            logits.append(_last_logits(engine, tokens))
    except (ImportError, RuntimeError, TypeError, ValueError):  # not built in, not for this GPU, dtype or width
        return False
    return alike(logits[1], logits[0], dtype)


def decoding_works(
    model: Any,
    layers: dict[int, LayerShape],
    capture: Capture,
    *,
    vocabulary: int,
    dtype: torch.dtype,
    device: torch.device,
) -> bool:
    """Whether captured decoding is possible here, and agrees with passes that aren't captured. If not, the log says so.

    FlashAttention on pages works.
    """
    arenas = [Arena(layers, tokens=4 * _PAGE, page=_PAGE, dtype=dtype, device=device) for _ in range(2)]
    decoder = Decoder(model, arenas[1], capture, context=_PAGE, vocabulary=vocabulary, dtype=dtype, most_rows=4)
    results = []
    try:
        for arena, each in zip(arenas, (None, decoder), strict=True):
            engine = TransformersEngine(
                model, arena, context=_PAGE, vocabulary=vocabulary, description="", varlen=True, decoder=each
            )
            results.append(_decoded_logits(engine, vocabulary))
        if not all(alike(logits, expected, dtype) for expected, logits in zip(*results, strict=True)):
            decoder.give_up("the model's output is another one with them")
    except Exception as error:  # whatever it is, the engine can do without
        decoder.give_up(f"{type(error).__name__}: {error}")
    return decoder.works


def _decoded_logits(engine: TransformersEngine, vocabulary: int) -> list[Tensor]:
    sequences = [engine.open(Sampling()) for _ in range(max(_DECODED))]
    for sequence in sequences:
        engine.forward([Feed(sequence, [(i * 7919 + sequence) % vocabulary for i in range(sequence * 4)])])
    logits: list[Tensor] = []
    for step, count in enumerate(_DECODED):
        fed = sequences[:count]
        engine.forward([Feed(sequence, [(step * 104729 + sequence) % vocabulary]) for sequence in fed])
        logits.extend(engine.logits(sequence) for sequence in fed)
    return logits


def linears_packed(model: Any, layers: dict[int, LayerShape], *, vocabulary: int, dtype: torch.dtype) -> bool:
    """Put oneDNN's linear layers into a model on the CPU; False if that can't be had here, and all is as it was."""
    device = torch.device("cpu")
    tokens = [(i * 7919 + 11) % vocabulary for i in range(_TOKENS)]

    def compute() -> Tensor:
        arena = Arena(layers, tokens=2 * _PAGE, page=_PAGE, dtype=dtype, device=device)
        engine = TransformersEngine(model, arena, context=_TOKENS, vocabulary=vocabulary, description="")
        return _last_logits(engine, tokens)

    expected = compute()
    for fuse in (True, False):
        try:
            packed = PackedLinears(model, lambda: _pass(model), fuse=fuse)
        except (AttributeError, RuntimeError, TypeError):  # no such operator, not for this CPU or dtype
            return False
        try:
            if alike(compute(), expected, dtype):
                return True
        except (AttributeError, RuntimeError, TypeError):  # it uses its layers otherwise than by calling them
            pass
        packed.undo()
    return False


def _pass(model: Any) -> None:
    """Let the model compute two tokens."""
    tokens = torch.tensor([[1, 2]])
    with torch.inference_mode():
        model(input_ids=tokens, position_ids=torch.arange(2)[None], use_cache=False, asynclm=Probe())


def _last_logits(engine: TransformersEngine, tokens: list[int]) -> Tensor:
    """Behind the last of `tokens`, fed in pieces, beside another sequence."""
    sequence, other = engine.open(Sampling()), engine.open(Sampling())
    done = 0
    for piece in _PIECES:
        engine.forward([Feed(other, tokens[: piece % 4 + 1]), Feed(sequence, tokens[done : done + piece])])
        done += piece
    return engine.logits(sequence)
