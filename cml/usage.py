"""Token counts of one upstream request, and their sum over a run."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of one upstream request (or of several, added up). `estimated`: a part was reckoned, not reported."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.estimated or other.estimated,
        )


class Meter:
    """Adds up what the streams of one run cost; estimates those whose own count was lost (they were cut)."""

    def __init__(self, prompt_chars: int) -> None:
        self._prompt_chars = prompt_chars
        self._pieces: dict[int, int] = {}  # text deltas by stream: about a token each
        self._chars: dict[int, int] = {}  # characters of each stream's prompt
        self._reported: dict[int, Usage] = {}

    def opened(self, stream: int, transcript_chars: int) -> None:
        """A stream was opened on a transcript of that many characters."""
        self._chars[stream] = self._prompt_chars + transcript_chars
        self._pieces[stream] = 0

    def wrote(self, stream: int) -> None:
        """A stream yielded a piece of text."""
        self._pieces[stream] += 1

    def pieces(self, stream: int) -> int:
        """How many pieces of text, about a token each, a stream has yielded."""
        return self._pieces[stream]

    def prompt_tokens(self, transcript_chars: int) -> int:
        """What a prompt with a transcript of that many characters comes to, by what was reported so far."""
        return round((self._prompt_chars + transcript_chars) * self._ratio())

    def tokens(self, stream: int) -> int:
        """What one stream has cost so far, prompt and answer, by estimate until the upstream has counted."""
        usage = self._reported.get(stream)
        if usage is not None:
            return usage.prompt_tokens + usage.completion_tokens
        return round(self._chars[stream] * self._ratio()) + self._pieces[stream]

    def report(self, stream: int, usage: Usage) -> None:
        """The upstream counted. The last report of a stream is the one that counts."""
        self._reported[stream] = usage

    def total(self, first: int = 0) -> Usage:
        """The sum over all streams from that number on."""
        ratio = self._ratio()
        total = Usage()
        for stream, length in self._chars.items():
            if stream < first:
                continue
            usage = self._reported.get(stream)
            total += usage or Usage(round(length * ratio), self._pieces[stream], estimated=True)
        return total

    def _ratio(self) -> float:
        """Tokens a character of prompt: about a quarter, until a stream says better."""
        known = [stream for stream in self._chars if stream in self._reported]
        tokens = sum(self._reported[stream].prompt_tokens for stream in known)
        chars = sum(self._chars[stream] for stream in known)
        return tokens / chars if tokens and chars else 0.25
