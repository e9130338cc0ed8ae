"""What streams have written, as tokens: so that a resume hands a server the very tokens that it has in its cache.

Text alone is not enough for that. It may tokenize otherwise than it was generated, and where a stream was cut, the last
token may reach beyond the cut. So the tokens are kept as they came, and only the end of them is given as text again.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec

from asynclm.cml.transcript import Segment, as_continued

_MAX_TOKENS: Final = 4_000_000  # of all that is kept; four bytes each
_MAX_STREAMS: Final = 2048


class Written:
    """One stream: the tokens of its prompt, and piece by piece what the model wrote behind it.

    `opened_thinking`: the prompt ends in an opened `<think>`. `ended`: the model has stopped; `closed`: nobody reads
    the stream any more. A piece is some tokens, the text they make (`raw`), and how much of it is the answer's own
    (`shown`), not reasoning.
    """

    __slots__ = ("_ends", "_lost", "_raw", "_shown", "_tokens", "closed", "ended", "opened_thinking", "prompt")

    def __init__(self, prompt: Iterable[int], *, opened_thinking: bool = False) -> None:
        self.prompt = array("I", prompt)
        self.opened_thinking = opened_thinking
        self.ended = False
        self.closed = False
        self._tokens = array("I")
        self._ends: list[int] = []  # by piece: how many tokens there are then
        self._raw: list[str] = []
        self._shown: list[str] = []
        self._lost = False

    def __len__(self) -> int:
        return len(self.prompt) + len(self._tokens)

    def add(self, tokens: Sequence[int], raw: str, shown: str) -> None:
        """The model wrote a piece."""
        if self._lost:
            return
        self._tokens.extend(tokens)
        self._ends.append(len(self._tokens))
        self._raw.append(raw)
        self._shown.append(shown)

    def lose(self) -> None:
        """The tokens of the next piece are not known: what comes from here on is only text."""
        self._lost = True

    def known(self, text: str) -> Known:
        """What is known of the prompt that goes on behind `text`, which is what of the answer counts.

        The last piece that fits is given as text all the same: servers hold text back that may become a stop string or
        whose last character is incomplete, so that its tokens may reach further than it does.
        """
        same = _common(text, "".join(self._shown))
        ends = [0, *accumulate(map(len, self._shown))]
        pieces = bisect_right(ends, same) - 1
        before = pieces
        if pieces and self._shown[pieces - 1]:
            pieces -= 1
        rest = "".join(self._raw[pieces:before]) + text[ends[before] :]
        tokens = self.prompt + self._tokens[: self._ends[pieces - 1] if pieces else 0]
        return Known(tokens, rest, self._thinking_behind(before), self.cut)

    @property
    def cut(self) -> int:
        """The tokens of its prompt, if the model was still writing when the stream was closed; else 0."""
        return len(self.prompt) if self.closed and not self.ended else 0

    def _thinking_behind(self, pieces: int) -> bool:
        """Whether a `<think>` is open behind so many pieces."""
        if any(self._shown[:pieces]):
            return False
        raw = "".join(self._raw[:pieces])
        return "</think>" not in raw and (self.opened_thinking or raw.lstrip().startswith("<think>"))


class Known(NamedTuple):
    """The beginning of a prompt, as tokens, and what of it is only known as text.

    `thinking`: a `<think>` is open where the tokens and the text that was written end. `cut`: see `Written`.
    """

    tokens: array[int]
    rest: str
    thinking: bool
    cut: int


class Memory:
    """The streams of the last runs, by what they were opened on: messages and transcript, as hashes."""

    def __init__(self, max_tokens: int = _MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._streams: OrderedDict[bytes, Written] = OrderedDict()

    def __len__(self) -> int:
        return len(self._streams)

    def find(self, keys: Sequence[bytes], transcript: Sequence[Segment]) -> Known | None:
        """What is known of the prompt that `transcript` makes; `keys` are its `keys_of`. None: nothing."""
        found = self._streams.get(keys[-1])
        if found is not None:  # the very same request again
            return Known(found.prompt, "", found.opened_thinking, found.cut)
        for at in range(len(transcript) - 1, -1, -1):
            found = self._streams.get(keys[at])
            if found is None:
                continue
            self._streams.move_to_end(keys[at])
            if transcript[at].author == "model":
                known = found.known(transcript[at].text)
                return known._replace(rest=known.rest + as_continued(transcript[at + 1 :]))
            return Known(found.prompt, as_continued(transcript[at:]), found.opened_thinking, found.cut)
        return None

    def keep(self, key: bytes, written: Written) -> None:
        """Remember a stream that begins; it goes on growing."""
        self._streams[key] = written
        self._streams.move_to_end(key)
        size = sum(map(len, self._streams.values()))
        while len(self._streams) > 1 and (size > self._max_tokens or len(self._streams) > _MAX_STREAMS):
            size -= len(self._streams.popitem(last=False)[1])


def keys_of(prompt: object, transcript: Sequence[Segment]) -> list[bytes]:
    """The hash of `prompt` (whatever makes it, as JSON), and of it with each beginning of the transcript behind it."""
    keys = [hashlib.blake2b(msgspec.json.encode(prompt), digest_size=20).digest()]
    for segment in transcript:
        said = f"{segment.author}:{segment.text}".encode("utf-8", "surrogatepass")
        keys.append(hashlib.blake2b(keys[-1] + said, digest_size=20).digest())
    return keys


def _common(one: str, other: str) -> int:
    """The length of the beginning that both have."""
    if other.startswith(one):
        return len(one)
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
