"""Anthropic's prompt cache, by its documented rules, for tests: what a request finds in it and leaves there.

https://platform.claude.com/docs/en/build-with-claude/prompt-caching. Left out are times and the least length: an entry
is there at once, for good, however short.
"""

from __future__ import annotations

import json
from typing import Any

_LOOKBACK = 20
_MOST_BREAKPOINTS = 4


def blocks_of(body: dict[str, Any]) -> list[str]:
    """The prompt's blocks in order, each as one string; breakpoints are no part of them."""
    return [block for block, _ in _read(body)]


class AnthropicCache:
    """One provider's cache, for one model."""

    def __init__(self) -> None:
        self._prefixes: set[tuple[str, ...]] = set()

    def request(self, body: dict[str, Any]) -> int:
        """Take a request: how many of its blocks are read from the cache. Writes what it marks."""
        found = _read(body)
        blocks = tuple(block for block, _ in found)
        marked = [at for at, (_, marks) in enumerate(found, 1) if marks]
        assert len(marked) <= _MOST_BREAKPOINTS, "the API refuses more than 4 breakpoints"
        seen = {
            length
            for end in marked
            for length in range(max(1, end - _LOOKBACK + 1), end + 1)
            if blocks[:length] in self._prefixes
        }
        self._prefixes.update(blocks[:end] for end in marked)
        return max(seen, default=0)


def _read(body: dict[str, Any]) -> list[tuple[str, bool]]:
    found = []
    system = [("system", block) for block in body.get("system", [])]
    for role, block in system + [(turn["role"], block) for turn in body["messages"] for block in turn["content"]]:
        content = {key: value for key, value in block.items() if key != "cache_control"}
        found.append((f"{role} {json.dumps(content)}", "cache_control" in block))
    return found
