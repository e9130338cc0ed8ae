"""The settings of a model that runs on this machine: `[upstreams.NAME.engine]` in the config."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

EMBEDDED: Final = "embedded"  # the model that comes out of a Python package: no hub is needed

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a local model is loaded, and how its requests share it.

    `device` is torch's name for it ("cpu", "cuda", "cuda:1"), `threads` how many a CPU engine uses (None: one for each
    core). `context` bounds a sequence, `kv_tokens` all of them together (tokens; None: what the model, and the memory,
    allow). `max_running` sequences are written at once, `max_waiting` further ones may queue. A pass computes up to
    `chunk` tokens of prompts, `busy_chunk` while somebody writes. Of sequences that ended, `kept_tokens` tokens are
    kept for those that begin like them.

    `constrain`: calls are held to CML's grammar and the tools' schemas while they are written. `overflow`: what becomes
    of an interrupt that doesn't fit into the context: it is cut down ("shorten"), or ends the run ("error"). `trap`:
    what becomes of a sequence's cache while it waits; "auto" decides by measured costs once memory is short, "paper" in
    any case.
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: _Positive | None = None
    context: _Positive | None = None
    kv_tokens: _Positive | None = None
    max_running: _Positive = 16
    max_waiting: _Count = 64
    chunk: _Positive = 512
    busy_chunk: _Positive = 64
    kept_tokens: _Count = 16_384
    constrain: bool = True
    overflow: Literal["shorten", "error"] = "shorten"
    trap: Literal["auto", "paper", "keep", "swap", "recompute"] = "auto"
