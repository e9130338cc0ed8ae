"""The key that brings the requests of one conversation to where its prompts are cached (`prompt_cache_key`). Pure.

OpenAI chooses a machine by a hash of the prompt's beginning (some 256 tokens), combined with the key; GPT-5.6 and later
also need a key for their more reliable matching, and find a cached prefix only under the key it was written with. A key
takes about 15 requests a minute: above that, some go where nothing is cached.
(https://developers.openai.com/api/docs/guides/prompt-caching)

So what should share a key? All our prompts begin with the same instructions: without a key, or with one that all runs
have, a few runs a minute would fill it, and a resume would often miss the transcript that it is about. A key for each
run would keep the run together, but part it from the conversation's earlier turns, which may be most of the prompt. So
the key is made of what a conversation never changes: the client's messages up to the user's first, and the end user if
the client names one. All streams of a run have it, branches too, and so have the conversation's later runs. The price
is that conversations don't share the instructions, which are short beside what a run adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec

# Whose API knows the parameter. Azure's hosts serve models besides OpenAI's, too: those refuse it.
_KNOWING: Final = (
    "openai.com",
    "openai.azure.com",
    "cognitiveservices.azure.com",
    "services.ai.azure.com",
    "mistral.ai",
)
_encode: Final = msgspec.json.Encoder(order="sorted").encode


def knows_cache_key(host: str) -> bool:
    """Whether the API at that host is known to take `prompt_cache_key`. Others may refuse what they don't know."""
    return any(host == name or host.endswith(f".{name}") for name in _KNOWING)


def cache_key_for(messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> str:
    """The key of the conversation that `messages` are of: the same for all that begin alike. 40 characters (of 64).

    `parameters` are the request's others, under OpenAI's names.
    """
    end = next((n for n, message in enumerate(messages, 1) if message.get("role") == "user"), len(messages))
    who = [parameters.get("user"), parameters.get("safety_identifier")]
    return f"asynclm-{blake2b(_encode([who, messages[:end]]), digest_size=16).hexdigest()}"
