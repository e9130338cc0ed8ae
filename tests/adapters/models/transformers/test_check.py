import pytest
import torch
from tiny_models import CPU, VOCABULARY, stock
from transformers import AutoModelForCausalLM, GptOssConfig, Llama4TextConfig, MambaConfig, PreTrainedConfig

from asynclm.adapters.models.transformers.arena import LayerShape
from asynclm.adapters.models.transformers.attention import UnsupportedError
from asynclm.adapters.models.transformers.check import replace_attention


def check(model: object, dtype: torch.dtype = torch.float32) -> dict[int, LayerShape]:
    return replace_attention(model, vocabulary=VOCABULARY, dtype=dtype, device=CPU)


def of(config: PreTrainedConfig) -> object:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config).eval()


def test_what_a_layer_keeps_is_read_from_a_trial_pass() -> None:
    assert check(stock("llama")) == {0: LayerShape(2, 16, 16), 1: LayerShape(2, 16, 16)}
    assert check(stock("gpt2")) == {0: LayerShape(4, 16, 16), 1: LayerShape(4, 16, 16)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_short_dtype_is_no_difference(dtype: torch.dtype) -> None:
    assert check(stock("llama").to(dtype), dtype)


def test_capped_scores_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="soft-capped attention scores"):
        check(stock("gemma2", num_hidden_layers=2))


def test_sinks_are_refused() -> None:
    config = GptOssConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    with pytest.raises(UnsupportedError, match="attention sinks"):
        check(of(config))


def test_layers_without_keys_and_values_are_refused() -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(UnsupportedError, match="can't replace its attention"):
        check(of(config))


def test_layers_of_another_type_are_refused() -> None:
    config = Llama4TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=32,
        intermediate_size_mlp=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=2,
        attention_chunk_size=8,
    )
    with pytest.raises(UnsupportedError, match="chunked_attention"):
        check(of(config))


def test_a_model_that_comes_out_different_is_refused() -> None:
    """Attention that also looks at something that no keyword tells of."""
    model = stock("llama")
    attention = model.model.layers[1].self_attn
    plain, seen = attention.forward, []

    def with_memory(hidden_states: torch.Tensor, **others: object) -> object:
        seen.append(hidden_states.shape[1])
        output, weights = plain(hidden_states=hidden_states, **others)
        return output + hidden_states.cumsum(1), weights

    attention.forward = with_memory
    with pytest.raises(UnsupportedError, match="another one"):
        check(model)
    assert len(seen) > 2
