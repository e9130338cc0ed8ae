"""What a chat request says of sampling, as a local engine takes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from asynclm.adapters.models.protocol import ModelError

from .engine import Sampling

_MAX_SEED: Final = 2**63 - 1
# What would change the answer, if it could be honoured; with the values that ask for nothing.
_REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
}


def sampling(parameters: Mapping[str, Any]) -> Sampling:
    """Read `temperature` (0 to 2), `top_p` (above 0, to 1), `top_k` and `seed`.

    Raises `ModelError` (400) for values out of range and for parameters that can't be honoured; what has no bearing on
    the answer's text is ignored.
    """
    for name, harmless in _REFUSED.items():
        value = parameters.get(name)
        if value is not None and value not in harmless:
            _refuse(name, f"{name} is not available with a local model", "unsupported_parameter")
    return Sampling(
        temperature=_number(parameters, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(parameters, "top_p", 1.0, 1e-6, 1.0),
        top_k=int(_whole(parameters, "top_k", 0, 2**31) or 0),
        seed=_whole(parameters, "seed", -_MAX_SEED, _MAX_SEED),
    )


def _number(parameters: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = parameters.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(name, f"{name} must be a number")
    if not low <= value <= high:
        _refuse(name, f"{name} must be between {low:g} and {high:g}")
    return float(value)


def _whole(parameters: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        _refuse(name, f"{name} must be a whole number between {low} and {high}")
    return value


def _refuse(name: str, message: str, code: str | None = None) -> NoReturn:
    raise ModelError(f"{message}.", status=400, type="invalid_request_error", code=code, param=name)
