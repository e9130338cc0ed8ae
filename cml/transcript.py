"""What a model has written and been told in one run: append-only, and rendered into the prompt of each resume.

Three renderings, by what the model's API can do (see `adapters/models/protocol.py`):

- *interleave*: the assistant's text so far, then the interrupts as the next user turn, and so on.
- *prefill*: one assistant turn that holds everything, for the model to continue.
- *continued*: the same, byte for byte as it was written, where the server keeps the very text in its cache.

Segments are never changed once appended, so each prompt is a byte-identical prefix of the next one and provider prompt
caches hit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec


class Segment(msgspec.Struct, frozen=True):
    """A stretch of the transcript: text the model wrote, or interrupt blocks that the runtime put there."""

    author: Literal["model", "runtime"]
    text: str


def as_turns(segments: Sequence[Segment]) -> list[dict[str, str]]:
    """Render for *interleave*: OpenAI-shaped messages to follow the client's own.

    Blank model segments are left out (several APIs refuse an empty assistant turn).
    """
    return [
        {"role": "assistant" if segment.author == "model" else "user", "content": segment.text}
        for segment in segments
        if segment.author == "runtime" or segment.text.strip()
    ]


def as_continued(segments: Sequence[Segment]) -> str:
    """Render one text to be continued, in which the model's own stands exactly as it was written."""
    return "".join(segment.text if segment.author == "model" else f"\n{segment.text}\n" for segment in segments)


def as_prefill(segments: Sequence[Segment]) -> str:
    """Render for *prefill*: one assistant text to be continued. No white space at its end (Anthropic refuses that)."""
    return "".join(as_prefill_parts(segments))


def as_prefill_parts(segments: Sequence[Segment]) -> list[str]:
    """The same text in parts, as they are cached: those of an earlier prompt are the first of a later one.

    About one a segment. None ends in white space, which goes in front of the next one; none is blank.
    """
    parts: list[str] = []
    held = ""
    for segment in segments:
        text = held + (segment.text if segment.author == "model" else f"\n{segment.text}\n")
        part = text.rstrip()
        held = text[len(part) :]
        if part:
            parts.append(part)
    return parts
