"""What was called and told in earlier turns, which the client's history doesn't show: kept, and put back.

A turn is found by a hash of the conversation up to its answer, as the client saw it, and of the client's key: whoever
says the same, with the same key, has had the same conversation. Turns are kept in this process, those used last; one
that is not found is read as the client tells it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from asynclm.cml.parser import Parser
from asynclm.cml.transcript import Segment

_encode = msgspec.json.Encoder(order="deterministic").encode


class Turn(msgspec.Struct, frozen=True):
    """What stands for the messages from index `start` up to `end`."""

    start: int
    end: int
    transcript: tuple[Segment, ...]


class Turns:
    """Turns by conversation, in `max_chars` characters at most."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._chars = 0
        self._kept: OrderedDict[bytes, tuple[int, tuple[Segment, ...]]] = OrderedDict()

    def keep(
        self,
        key: str | None,
        messages: Sequence[dict[str, Any]],
        answer: str,
        start: int,
        transcript: Sequence[Segment],
    ) -> None:
        """`messages` were answered with `answer`; from index `start` on, that was `transcript`."""
        if not any(segment.author == "runtime" for segment in transcript):
            return  # the client's history says it all
        parser = Parser()
        parser.feed(transcript[-1].text)
        if parser.closing:
            return  # the client's bound on the answer cut it within a block
        *_, digest = _digests(key, [*messages, {"role": "assistant", "content": answer}])
        self._drop(digest)
        self._kept[digest] = (start, tuple(transcript))
        self._chars += _size(transcript)
        while self._chars > self._max_chars:
            self._drop(next(iter(self._kept)))

    def recall(self, key: str | None, messages: Sequence[dict[str, Any]]) -> list[Turn]:
        """The turns in a conversation that are known, in order; none overlaps another."""
        if not self._kept:
            return []
        turns: list[Turn] = []
        for end, digest in enumerate(_digests(key, messages), 1):
            if messages[end - 1]["role"] == "assistant" and digest in self._kept:
                self._kept.move_to_end(digest)
                start, transcript = self._kept[digest]
                if not turns or start >= turns[-1].end:
                    turns.append(Turn(start, end, transcript))
        return turns

    def _drop(self, digest: bytes) -> None:
        found = self._kept.pop(digest, None)
        if found is not None:
            self._chars -= _size(found[1])


def _digests(key: str | None, messages: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    """A digest of the conversation up to each message."""
    digest = hashlib.sha256(_encode(key)).digest()
    for message in messages:
        digest = hashlib.sha256(digest + _encode(_said(message))).digest()
        yield digest


def _said(message: dict[str, Any]) -> list[Any]:
    """What counts of a message: not how a client writes it down."""
    content = message.get("content") or ""
    if isinstance(content, list) and all(isinstance(part.get("text"), str) for part in content):
        content = "".join(part["text"] for part in content)
    if isinstance(content, str):
        content = content.strip()
    return [message["role"], content, message.get("tool_calls") or [], message.get("tool_call_id")]


def _size(transcript: Sequence[Segment]) -> int:
    return sum(len(segment.text) for segment in transcript)
