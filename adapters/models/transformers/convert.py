"""GGUF files are converted to safetensors once: reading them takes longer than all else at a start.

The cache holds a folder for each file, named by the file's name, size, time of change and the version of transformers.
It is written under another name and renamed, so that what has its name is whole, and two processes may convert at once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from asynclm.adapters.models.protocol import LoadError
from asynclm.adapters.models.transformers.source import one_line

_MAGIC: Final = b"GGUF"
_DONE: Final = "asynclm-converted"  # written last


def converted(file: Path, cache: Path, progress: Callable[[str], None]) -> Path:
    """The folder with the model of a GGUF file; converts it if that isn't done yet. Raises `LoadError`."""
    folder = cache / "gguf" / _key(file)
    if not (folder / _DONE).is_file():
        _into(folder, file, progress)
    return folder


def convert_again(file: Path, cache: Path, progress: Callable[[str], None]) -> Path:
    """Convert though it seems to be done: what the cache holds is broken."""
    folder = cache / "gguf" / _key(file)
    _remove(folder)
    _into(folder, file, progress)
    return folder


def _into(folder: Path, file: Path, progress: Callable[[str], None]) -> None:
    progress(f"converting {file.name} ({file.stat().st_size / 1e6:.0f} MB), once ...")
    with file.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise LoadError(f"{file} isn't a GGUF file")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise LoadError(f"the converted model can't be written to {folder.parent}: {one_line(error)}") from None
    try:
        _convert(file, work)
        (work / _DONE).touch()
        _put(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _convert(file: Path, target: Path) -> None:
    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **where)
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            **where,
            dtype=torch.float32 if _is_small(file) else torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            attn_implementation="eager",
        )
    except OSError as error:
        raise LoadError(f"{file} can't be read: {one_line(error)}") from None
    except MemoryError:
        raise LoadError(f"there is no memory to convert {file}") from None
    except (
        Exception
    ) as error:  # the readers of transformers and gguf raise what comes: struct, key, value, index errors
        raise LoadError(
            f"{file} can't be read as a model (truncated, or of an unknown kind?): {one_line(error)}"
        ) from None
    # What is saved is no longer quantized: transformers refuses to save a model that says it is.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    try:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    except OSError as error:
        raise LoadError(f"the converted model can't be written to {target.parent}: {one_line(error)}") from None


def _is_small(file: Path) -> bool:
    """Weights of a few bits have no more digits than bfloat16 holds, but scales do: while it costs little, keep all."""
    return file.stat().st_size < 2**30


def _put(work: Path, folder: Path) -> None:
    """Give it its name. Where another process was faster, its work is as good; what is there but isn't whole goes."""
    try:
        work.rename(folder)
    except OSError:
        if (folder / _DONE).is_file():
            return
        _remove(folder)
        try:
            work.rename(folder)
        except OSError as error:
            raise LoadError(f"the converted model can't be put at {folder}: {one_line(error)}") from None


def _remove(folder: Path) -> None:
    """Take it away under another name first, so that nobody finds half of it."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        folder.rename(aside / "broken")
    except FileNotFoundError:
        pass
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _key(file: Path) -> str:
    stat = file.stat()
    what = f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{transformers.__version__}"
    return f"{file.stem}-{hashlib.sha256(os.fsencode(what)).hexdigest()[:16]}"
