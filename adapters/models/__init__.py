"""Models: hosted ones behind OpenAI's API (`OpenAIModel`) or Anthropic's (`AnthropicModel`), and simulated ones.

Each is used through the protocol in `protocol` alone. The two hosted ones are imported when they are first asked for:
an SDK takes 20 to 40 MiB, and a proxy rarely needs both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asynclm.adapters.models.protocol import (
    Abilities,
    Ended,
    InjectableStream,
    Model,
    ModelError,
    ReasoningDelta,
    Request,
    Stream,
    StreamEvent,
    TextDelta,
)

if TYPE_CHECKING:
    from asynclm.adapters.models.anthropic import AnthropicModel
    from asynclm.adapters.models.openai import OpenAIModel, PrefillStyle

__all__ = [
    "Abilities",
    "AnthropicModel",
    "Ended",
    "InjectableStream",
    "Model",
    "ModelError",
    "OpenAIModel",
    "PrefillStyle",
    "ReasoningDelta",
    "Request",
    "Stream",
    "StreamEvent",
    "TextDelta",
]


def __getattr__(name: str) -> Any:
    if name == "AnthropicModel":
        from asynclm.adapters.models.anthropic import AnthropicModel

        return AnthropicModel
    if name in ("OpenAIModel", "PrefillStyle"):
        from asynclm.adapters.models import openai

        return getattr(openai, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
