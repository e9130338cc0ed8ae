from typing import Any

import pytest
import torch
from tiny_models import CPU, VOCABULARY, Fresh, stock
from torch import nn

from asynclm.adapters.models.local.engine import Feed, Sampling
from asynclm.adapters.models.transformers.arena import Arena
from asynclm.adapters.models.transformers.check import linears_packed, replace_attention
from asynclm.adapters.models.transformers.engine import TransformersEngine
from asynclm.adapters.models.transformers.linears import PackedLinears

KINDS = ("llama", "qwen2", "qwen3", "mistral", "gpt2")


def packed(kind: str, **changes: Any) -> tuple[Any, TransformersEngine, bool]:
    model = stock(kind, **changes)
    layers = replace_attention(model, vocabulary=VOCABULARY, dtype=torch.float32, device=CPU)
    done = linears_packed(model, layers, vocabulary=VOCABULARY, dtype=torch.float32)
    arena = Arena(layers, tokens=2048, page=16, dtype=torch.float32, device=CPU)
    return model, TransformersEngine(model, arena, context=512, vocabulary=VOCABULARY, description=kind), done


def linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is nn.Linear]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_model_computes_what_the_stock_one_does(kind: str, tied: bool) -> None:
    model, engine, done = packed(kind, tie_word_embeddings=tied)
    assert done
    assert linears(model) == []
    fresh = Fresh(kind, tie_word_embeddings=tied)
    texts = {engine.open(Sampling(temperature=0)): [(7 * i + s) % VOCABULARY for i in range(60)] for s in range(3)}
    begin = 0
    for size in (1, 8, 1, 20, 30):
        engine.forward([Feed(s, text[begin : begin + size]) for s, text in texts.items()])
        begin += size
        for sequence, text in texts.items():
            torch.testing.assert_close(engine.logits(sequence), fresh.logits(text[:begin]), atol=1e-4, rtol=0)


def test_layers_of_the_same_input_are_computed_as_one() -> None:
    model, _, _ = packed("qwen2")  # (with biases on queries, keys and values)
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    assert attention.q_proj._packed is attention.k_proj._packed is attention.v_proj._packed
    assert mlp.gate_proj._packed is mlp.up_proj._packed
    assert attention.o_proj._packed is not attention.q_proj._packed
    assert mlp.down_proj._packed is not mlp.up_proj._packed


def test_a_part_that_is_given_something_else_computes_that() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 4), nn.Linear(8, 6)

        def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.one(rows), self.two(rows)

    pair, rows, others = Pair().requires_grad_(False), torch.randn(3, 8), torch.randn(3, 8)
    expected = [pair.one(rows), pair.two(others), pair.two(rows), pair.one(others)]
    PackedLinears(pair, lambda: pair(rows))
    assert pair.one._packed is pair.two._packed
    for got, wanted in zip([pair.one(rows), pair.two(others), pair.two(rows), pair.one(others)], expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_undoing_gives_the_weights_back_to_the_last_bit(tied: bool) -> None:
    model = stock("llama", tie_word_embeddings=tied).requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    packing = PackedLinears(model, lambda: model(torch.tensor([[1, 2]])))
    assert linears(model) == []
    packing.undo()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_a_tied_output_layer_costs_no_memory() -> None:
    model, _, _ = packed("llama", tie_word_embeddings=True)
    weight = model.lm_head._packed.weight
    assert weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_model_that_reads_the_weights_itself_is_left_as_it_is() -> None:
    model = stock("llama").requires_grad_(False)
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda rows: nn.functional.linear(mlp.act_fn(mlp.gate_proj(rows)), mlp.down_proj.weight)
    layers = replace_attention(model, vocabulary=VOCABULARY, dtype=torch.float32, device=CPU)
    before = linears(model)
    assert not linears_packed(model, layers, vocabulary=VOCABULARY, dtype=torch.float32)
    assert linears(model) == before


def test_without_the_operators_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise RuntimeError("not for this CPU")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", missing)
    model, engine, done = packed("llama")
    assert not done
    assert len(linears(model)) == 15
    sequence = engine.open(Sampling(temperature=0))
    engine.forward([Feed(sequence, [5, 6, 7])])
    torch.testing.assert_close(engine.logits(sequence), Fresh("llama").logits([5, 6, 7]), atol=1e-4, rtol=0)
