"""What a parked run waits for: the request that goes on with it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from asynclm.proxy.chat import ChatRequest
from asynclm.proxy.conversations.said import digest
from asynclm.proxy.handed import Handed
from asynclm.proxy.upstreams import Route


class Waiting(msgspec.Struct, frozen=True):
    """The conversation so far, as a hash; the answer's visible text and its calls; where the run goes, and how."""

    said: bytes
    text: str
    handed: dict[str, Handed]
    upstream: str
    model: str
    policy: str

    def fits(self, key: str | None, chat: ChatRequest, route: Route, policy: str) -> bool:
        """Whether the request goes on from there: it may leave calls out, and their answer's text, but change none."""
        last = chat.rounds[-1]
        text = last.text.strip()
        return (
            (self.upstream, self.model, self.policy) == (route.upstream, route.upstream_model, policy)
            and (not text or text == self.text.strip())
            and all(self._handed(call.id, call.name, call.arguments) for call in last.calls)
            and self.said == digest(key, chat.messages[: last.start])
        )

    def _handed(self, id: str, name: str, arguments: str) -> bool:
        handed = self.handed.get(id)
        return handed is not None and handed.name == name and _json(handed.arguments) == _json(arguments)


def words_behind(chat: ChatRequest) -> list[str] | None:
    """What the user says behind the last results; None where something else stands there."""
    words: list[str] = []
    for message in chat.messages[chat.rounds[-1].end :]:
        text = _text(message.get("content"))
        if message["role"] != "user" or text is None:
            return None
        words.append(text)
    return words


def _text(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    return None


def _json(text: str) -> Any:
    """Arguments are compared by their values: clients read them, and write them down anew."""
    try:
        return msgspec.json.decode(text or "{}")
    except (ValueError, RecursionError):
        return text
