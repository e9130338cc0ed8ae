"""From a model's files to a running engine."""

from __future__ import annotations

import json
import logging
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from asynclm.adapters.models.local.engine import OutOfMemoryError
from asynclm.adapters.models.protocol import LoadError
from asynclm.adapters.models.transformers.arena import Arena, LayerShape, bytes_per_token
from asynclm.adapters.models.transformers.attention import UnsupportedError
from asynclm.adapters.models.transformers.check import (
    decoding_works,
    linears_packed,
    replace_attention,
    varlen_works,
)
from asynclm.adapters.models.transformers.convert import convert_again, converted
from asynclm.adapters.models.transformers.cores import cores
from asynclm.adapters.models.transformers.decoding import CudaGraphs, Decoder
from asynclm.adapters.models.transformers.engine import TransformersEngine
from asynclm.adapters.models.transformers.load import Loaded, LoadOptions, cache_folder
from asynclm.adapters.models.transformers.memory import free_bytes
from asynclm.adapters.models.transformers.pieces import UnknownTokenizerError
from asynclm.adapters.models.transformers.source import Source, find, one_line
from asynclm.adapters.models.transformers.vocabulary import TransformersVocabulary

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Shares of the memory that is free once the model is loaded. On the CPU others need some, too.
_KV_SHARE: Final = {"cpu": 0.25, "cuda": 0.8}
# A page of FlashAttention's paged mode; on the CPU less is lost to pages that aren't full.
_PAGE: Final = {"cpu": 32, "cuda": 256}
_DEFAULT_CONTEXT: Final = 2048

logger = logging.getLogger(__name__)


class _BrokenFilesError(LoadError):
    """What should be a model's files can't be read as such."""


def build(options: LoadOptions, progress: Callable[[str], None]) -> Loaded:
    """See `load.load`."""
    device = _device(options.device)
    dtype = _dtype(options.dtype, device)
    threads = options.threads or cores()
    torch.set_num_threads(threads)
    with suppress(RuntimeError):  # torch has begun to work in this process: too late, and no matter
        torch.set_num_interop_threads(1)
    source = find(options.model, progress)
    cache = options.cache or cache_folder()
    with _quiet():
        is_gguf = source.path.is_file()
        folder = converted(source.path, cache, progress) if is_gguf else source.path
        try:
            model, tokenizer = _read(folder, dtype, device)
        except _BrokenFilesError:
            if not is_gguf:
                raise
            # What the cache of converted files holds is broken: it is made anew, once.
            model, tokenizer = _read(convert_again(source.path, cache, progress), dtype, device)
        vocabulary_size = _vocabulary_size(model)
        layers = _replace_attention(model, source, vocabulary_size, dtype, device)
        try:
            vocabulary = TransformersVocabulary(tokenizer, vocabulary_size, _ends(model))
        except UnknownTokenizerError as error:
            raise LoadError(f"the tokenizer of {source.name} can't be used: {error}") from None
        if device.type == "cpu" and not linears_packed(model, layers, vocabulary=vocabulary_size, dtype=dtype):
            logger.info("oneDNN's linear layers can't be had here: torch's own are used")
        varlen = device.type == "cuda" and _try_varlen(model, layers, vocabulary_size, dtype, device)
        decodes = varlen and _try_decoding(model, layers, vocabulary_size, dtype, device)
        arena = _arena(options.kv_tokens, layers, dtype, device)
        decoder = _decoder(model, arena, vocabulary_size, dtype, device) if decodes else None
    engine = TransformersEngine(
        model,
        arena,
        context=_context(model),
        vocabulary=vocabulary_size,
        description=f"{source.name} in {dtype_name(dtype)} on {_device_name(device, threads)}",
        varlen=varlen,
        decoder=decoder,
    )
    return Loaded(source.name, engine, vocabulary)


def dtype_name(dtype: torch.dtype) -> str:
    """As users write it: "float32"."""
    return str(dtype).removeprefix("torch.")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in _PAGE:
        raise LoadError(f"there is no device {name!r}: give auto, cpu, cuda, or cuda with a number")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise LoadError("there is no CUDA device that this torch can use: give the device auto or cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise LoadError(f"there is no device {name!r}: there are {torch.cuda.device_count()}, counted from cuda:0")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise LoadError(f"there is no dtype {name!r}: give auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _read(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """The stock model and its tokenizer. Each way in which a user's files can be wrong gets its own line."""
    where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
        config = AutoConfig.from_pretrained(folder, **where)
    except OSError as error:
        raise _BrokenFilesError(f"{folder} can't be read: {one_line(error)}") from None
    except (ValueError, KeyError, AttributeError) as error:
        raise _BrokenFilesError(
            f"{folder} holds no model that transformers {transformers.__version__} knows: {one_line(error)}"
        ) from None
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise LoadError(f"{folder} holds a model of the kind {kind}, which isn't a causal language model")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **where)
    except Exception as error:  # tokenizers raises Exception itself
        raise _BrokenFilesError(f"the tokenizer in {folder} can't be read: {one_line(error)}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise LoadError(f"the tokenizer in {folder} has no tokenizer.json, which the engine needs")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, **where, config=config, dtype=dtype, use_safetensors=True
        )
        model.to(device)
    except (MemoryError, torch.OutOfMemoryError):
        raise LoadError(_no_memory(device, dtype)) from None
    except (SafetensorError, OSError) as error:
        raise _BrokenFilesError(f"the weights in {folder} can't be read (truncated?): {one_line(error)}") from None
    except (RuntimeError, ValueError, ImportError, KeyError) as error:
        if "can't allocate memory" in str(error):
            raise LoadError(_no_memory(device, dtype)) from None
        raise LoadError(f"the model in {folder} can't be loaded: {one_line(error)}") from None
    model.eval()
    model.requires_grad_(False)
    return model, tokenizer


def _no_memory(device: torch.device, dtype: torch.dtype) -> str:
    return (
        f"there is no memory for the model on {device} in {dtype_name(dtype)}: take a smaller one, or a shorter dtype"
    )


def _replace_attention(
    model: Any, source: Source, vocabulary: int, dtype: torch.dtype, device: torch.device
) -> dict[int, LayerShape]:
    try:
        return replace_attention(model, vocabulary=vocabulary, dtype=dtype, device=device)
    except UnsupportedError as error:
        name = type(model).__name__
        raise LoadError(f"{source.name} ({name}) can't run on the local engine: {error}") from None
    except (OutOfMemoryError, torch.OutOfMemoryError):
        raise LoadError(_no_memory(device, dtype)) from None


def _try_varlen(
    model: Any, layers: dict[int, LayerShape], vocabulary: int, dtype: torch.dtype, device: torch.device
) -> bool:
    works = varlen_works(model, layers, vocabulary=vocabulary, dtype=dtype, device=device)
    if not works:
        logger.warning(
            "FlashAttention on pages doesn't work here: attention runs sequence by sequence, which is slower"
        )
    return works


def _try_decoding(
    model: Any, layers: dict[int, LayerShape], vocabulary: int, dtype: torch.dtype, device: torch.device
) -> bool:
    return decoding_works(model, layers, CudaGraphs(device), vocabulary=vocabulary, dtype=dtype, device=device)


def _decoder(model: Any, arena: Arena, vocabulary: int, dtype: torch.dtype, device: torch.device) -> Decoder:
    context = _context(model)
    decoder = Decoder(model, arena, CudaGraphs(device), context=context, vocabulary=vocabulary, dtype=dtype)
    decoder.prepare()
    return decoder


def _arena(tokens: int | None, layers: dict[int, LayerShape], dtype: torch.dtype, device: torch.device) -> Arena:
    page = _PAGE[device.type]
    if tokens is None:
        tokens = int(free_bytes(device) * _KV_SHARE[device.type]) // bytes_per_token(layers.values(), dtype)
    if tokens < page:
        raise LoadError(f"there is no room for a KV cache: {tokens} tokens is less than a page of {page}")
    try:
        return Arena(layers, tokens=tokens, page=page, dtype=dtype, device=device)
    except OutOfMemoryError as error:
        raise LoadError(f"{one_line(error)}: give kv_tokens a smaller number") from None


def _vocabulary_size(model: Any) -> int:
    head = model.get_output_embeddings()
    size: int = head.out_features if hasattr(head, "out_features") else model.config.get_text_config().vocab_size
    return size


def _context(model: Any) -> int:
    """What the model was made for. Two kinds of rotary embedding change with the longest sequence of a batch, once it
    is longer than the original context: sequences stay below, where each is computed as if it were alone.
    """
    config = model.config.get_text_config()
    context: int = getattr(config, "max_position_embeddings", None) or _DEFAULT_CONTEXT
    for rope in _ropes(getattr(config, "rope_parameters", None)):
        if rope["rope_type"] == "longrope":
            context = min(context, rope.get("original_max_position_embeddings") or context)
    return context


def _ropes(parameters: Any) -> Iterator[dict[str, Any]]:
    """One for the model, or one for each type of layer."""
    if isinstance(parameters, dict):
        if "rope_type" in parameters:
            yield parameters
        else:
            for value in parameters.values():
                yield from _ropes(value)


def _ends(model: Any) -> list[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = model.config.get_text_config().eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _device_name(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()} ({threads} {'thread' if threads == 1 else 'threads'})"


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars and advice of transformers aren't for the users of a proxy."""
    log: Any = transformers.logging
    bars, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
