"""What was called and told in earlier turns, which the client's history doesn't show: kept, and put back.

A turn is found by a hash of the conversation up to its answer, as the client saw it, and of the client's key. Turns are
kept in the store, so that they outlive the process and other proxies find them, and those used last in this process,
too: most conversations stay with one proxy, and then nothing has to be fetched. One that is not found is read as the
client tells it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec

from asynclm.cml.parser import Parser
from asynclm.cml.transcript import Segment
from asynclm.proxy.conversations.said import digests
from asynclm.proxy.conversations.stored_turns import Kept, StoredTurns


class Turn(msgspec.Struct, frozen=True):
    """What stands for the messages from index `start` up to `end`."""

    start: int
    end: int
    transcript: tuple[Segment, ...]


class Turns:
    """Turns by conversation: in `max_chars` characters of this process at most, and in the store, if there is one."""

    def __init__(self, max_chars: int, stored: StoredTurns | None = None) -> None:
        self._max_chars = max_chars
        self._stored = stored
        self._chars = 0
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()

    async def keep(
        self,
        key: str | None,
        messages: Sequence[dict[str, Any]],
        answer: str,
        start: int,
        transcript: Sequence[Segment],
        *,
        store: bool = True,
    ) -> None:
        """`messages` were answered with `answer`; from index `start` on, that was `transcript`.

        Known here at once, and in the store, unless that is not wanted, when this returns.
        """
        if not any(segment.author == "runtime" for segment in transcript):
            return  # the client's history says it all
        parser = Parser()
        parser.feed(transcript[-1].text)
        if parser.closing:
            return  # the client's bound on the answer cut it within a block
        said = [*messages, {"role": "assistant", "content": answer}]
        known = list(digests(key, said))
        kept = Kept(start, tuple(transcript))
        self._put(known[-1], kept)
        if store and self._stored is not None:
            await self._stored.keep(known[_first_answer(said)], known[-1], kept)

    async def recall(self, key: str | None, messages: Sequence[dict[str, Any]], *, store: bool = True) -> list[Turn]:
        """The turns in a conversation that are known, in order; none overlaps another."""
        if not any(map(_answers, messages)):
            return []
        known = list(digests(key, messages))
        ends = {end: known[end] for end, message in enumerate(messages, 1) if _answers(message)}
        found = {end: kept for end, digest in ends.items() if (kept := self._get(digest)) is not None}
        missing = {end: digest for end, digest in ends.items() if end not in found}
        if store and self._stored is not None and missing:
            fetched = await self._stored.find(known[_first_answer(messages)], list(missing.values()))
            for end, digest in missing.items():
                if digest in fetched:
                    found[end] = fetched[digest]
                    self._put(digest, fetched[digest])
        turns: list[Turn] = []
        for end, kept in sorted(found.items()):
            if (turns[-1].end if turns else 0) <= kept.start < end:
                turns.append(Turn(kept.start, end, kept.transcript))
        return turns

    def _get(self, digest: bytes) -> Kept | None:
        kept = self._kept.get(digest)
        if kept is not None:
            self._kept.move_to_end(digest)
        return kept

    def _put(self, digest: bytes, kept: Kept) -> None:
        self._drop(digest)
        self._kept[digest] = kept
        self._chars += _size(kept)
        while self._chars > self._max_chars:
            self._drop(next(iter(self._kept)))

    def _drop(self, digest: bytes) -> None:
        found = self._kept.pop(digest, None)
        if found is not None:
            self._chars -= _size(found)


def _answers(message: dict[str, Any]) -> bool:
    """Whether a turn may end with that message."""
    return message["role"] == "assistant" and not message.get("tool_calls")


def _first_answer(messages: Sequence[dict[str, Any]]) -> int:
    """How many messages come before the first of the assistant's: what is common to all forks of the conversation."""
    return next(n for n, message in enumerate(messages) if message["role"] == "assistant")


def _size(kept: Kept) -> int:
    return sum(len(segment.text) for segment in kept.transcript)
