"""The `Vocabulary` of a Hugging Face tokenizer.

No text can forge a chat role: tokens that the chat template writes, and all special ones, are recognised only where the
template itself wrote them. In the strings of the messages they are marked before the template is rendered, and what is
marked is encoded as plain text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from asynclm.adapters.models.transformers.pieces import token_pieces
from asynclm.cml.tokens import CONTROL_TOKENS

# OpenAI's roles and what chat templates call them. Others are refused: a role is written next to its control tokens.
_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_THINKING: Final = re.compile("</?think>")
# For base models, which have no chat template.
_PLAIN_ROLES: Final = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


class TransformersVocabulary:
    """A tokenizer's `Vocabulary`, for a model with `size` token ids, of which `ends` end an answer as far as the
    model's generation settings say; the tokenizer's end of sequence and the chat template's end of a turn come to them.

    Raises `UnknownTokenizerError`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, ends: Sequence[int] = ()) -> None:
        self._tokenizer: Any = tokenizer
        description = json.loads(self._tokenizer.backend_tokenizer.to_str())
        self._template: str | None = tokenizer.chat_template and self._tokenizer.get_chat_template()
        added = self._tokenizer.added_tokens_decoder
        self._controls = {t.content: i for i, t in added.items() if t.content in CONTROL_TOKENS}
        self._roles = {
            t.content: i
            for i, t in added.items()
            if t.content not in self._controls and self._is_role(t.content, t.special)
        }
        self._pieces = token_pieces(
            description,
            self._tokenizer.get_vocab(),
            {i: b"" if t.special and t.content not in self._controls else t.content.encode() for i, t in added.items()},
            size,
        )
        # The tokenizer as it is, for what the template writes, but with nothing put before or behind.
        description |= {"truncation": None, "padding": None, "post_processor": None}
        self._whole = Tokenizer.from_str(json.dumps(description))
        # And for plain text, that may stand anywhere: no space put before it, no token in it.
        for token in description["added_tokens"]:
            token["special"] |= token["content"] in self._roles or token["content"] in self._controls
        bare = {key: _without_prefix(description[key]) for key in ("normalizer", "pre_tokenizer")}
        self._plain = Tokenizer.from_str(json.dumps(description | bare))
        self._plain.encode_special_tokens = True
        # The same with its tokens, for what the template writes behind plain text.
        self._inner = self._whole
        if any(bare[key] != description[key] for key in bare):
            self._inner = Tokenizer.from_str(json.dumps(description | bare))
        self._control_pattern = _any_of(self._controls)
        self._role_pattern = _any_of(self._roles)
        # Unigram models find the names of bytes, too, among their ordinary words.
        named = description["model"].get("type") == "Unigram"
        self._byte_names = re.compile("<0x[0-9A-Fa-f]{2}>" if named else "(?!)")
        self._apart = re.compile(f"{self._role_pattern.pattern}|{self._byte_names.pattern}")
        self._forbidden = frozenset(self._roles.values())
        self._ends = frozenset((*ends, *self._end_of_turn()))

    @property
    def pieces(self) -> Sequence[bytes]:
        """The bytes that each token stands for, by id; b"" for special tokens, but CML's own are their text."""
        return self._pieces

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer."""
        return self._ends

    def encode(self, text: str) -> list[int]:
        """The tokens of plain text; CML's control tokens are single tokens where the tokenizer has them."""
        tokens: list[int] = []
        for i, part in enumerate(self._control_pattern.split(text)):
            if i % 2:
                tokens.append(self._controls[part])
            elif part:
                tokens += self._encode_plain(part)
        return tokens

    def chat(self, messages: Sequence[dict[str, Any]], answer: str) -> list[int]:
        """The tokens of a conversation in the model's chat template, up to where the assistant's next turn begins, and
        of `answer`. Parts of a message's text are joined. A developer's message is the system's.

        Without a template: `User: ...`, each turn a paragraph, after the tokenizer's begin of sequence.

        Raises ValueError with the template's own message for a conversation that it can't take.
        """
        mark = _Mark(self._role_pattern, _THINKING)
        text = self._render([mark.message(_plain_message(message)) for message in messages], generate=True)
        tokens: list[int] = []
        for i, part in enumerate(mark.split(text)):
            if i % 2:
                tokens += self._encode_plain(part)
            elif part:
                tokens += self._encode_template(part, begins=not i)
        return tokens + self.encode(answer)

    def _is_role(self, content: str, special: bool) -> bool:
        return special or (not content.isspace() and content in (self._template or ""))

    def _encode_plain(self, text: str) -> list[int]:
        tokens: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if self._forbidden.isdisjoint(tokens) and not self._byte_names.search(text):
            return tokens
        # What is no text stands among the tokenizer's ordinary words: cut behind its first character, it isn't found.
        cuts = [0, *(match.start() + 1 for match in self._apart.finditer(text)), len(text)]
        parts = [text[i:j] for i, j in pairwise(cuts) if i < j]
        if len(parts) > 1:
            return [token for part in parts for token in self._encode_plain(part)]
        return [token for token in tokens if token not in self._forbidden or token == self._tokenizer.unk_token_id]

    def _encode_template(self, text: str, *, begins: bool) -> list[int]:
        tokenizer = self._whole if begins else self._inner
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def _render(self, messages: list[dict[str, Any]], *, generate: bool) -> str:
        if self._template is None:
            turns = [f"{_PLAIN_ROLES[m['role']]}: {m.get('content') or ''}" for m in messages]
            begin: str = self._tokenizer.bos_token or ""
            return begin + "\n\n".join([*turns, "Assistant:"] if generate else turns)
        if not messages:
            raise ValueError("a conversation needs at least one message")
        try:
            text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the model's chat template can't take this conversation: {error}") from None
        return text

    def _end_of_turn(self) -> Iterator[int]:
        """The tokenizer's end of a sequence, and the special token that the chat template writes behind an answer."""
        if self._tokenizer.eos_token_id is not None:
            yield self._tokenizer.eos_token_id
        if self._template is None:
            return
        answer = "answer" + secrets.token_hex(8)
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
        try:
            text = self._render(turns, generate=False)
        except ValueError:
            return
        match = self._role_pattern.match(text.partition(answer)[2].lstrip())
        if match:
            yield self._roles[match[0]]


class _Mark:
    """Takes control tokens out of messages, and leaves marks in their place that nobody can guess. A mark is made of
    letters and digits, so that a template that writes JSON leaves it alone.
    """

    def __init__(self, roles: re.Pattern[str], thinking: re.Pattern[str]) -> None:
        self._roles = roles
        self._thinking = thinking
        self._secret = f"mark{secrets.token_hex(8)}n"
        self._finder = re.compile(self._secret + "([0-9]+)e")
        self._taken: list[str] = []

    def message(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message with marks. Templates look for the tags of thinking in what an assistant wrote: they stay."""
        keep = self._thinking if message["role"] == "assistant" else None
        return {key: value if key == "role" else self._value(value, keep) for key, value in message.items()}

    def split(self, text: str) -> list[str]:
        """What the template wrote, and in between (at odd places) what was taken out."""
        parts = self._finder.split(text)
        return [self._taken[int(part)] if i % 2 else part for i, part in enumerate(parts)]

    def _value(self, value: Any, keep: re.Pattern[str] | None) -> Any:
        if isinstance(value, str):
            return self._roles.sub(lambda match: self._take(match[0], keep), value)
        if isinstance(value, dict):
            return {key: self._value(item, keep) for key, item in value.items()}
        return [self._value(item, keep) for item in value] if isinstance(value, (list, tuple)) else value

    def _take(self, token: str, keep: re.Pattern[str] | None) -> str:
        if keep is not None and keep.fullmatch(token):
            return token
        self._taken.append(token)
        return f"{self._secret}{len(self._taken) - 1}e"


def _plain_message(message: dict[str, Any]) -> dict[str, Any]:
    """With the role by its template's name, and content that is one text."""
    role = _ROLES.get(message.get("role", ""))
    if role is None:
        raise ValueError(f"a message has the role {message.get('role')!r}: expected one of {', '.join(_ROLES)}")
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        if strange := sorted({part.get("type", "?") for part in content} - {"text"}):
            raise ValueError(f"a message has content of type {', '.join(strange)}: this model reads text only")
        content = "".join(part["text"] for part in content)
    return {**message, "role": role, "content": content or ""}


def _any_of(tokens: Any) -> re.Pattern[str]:
    """Matches any of them, the longest first, as a group of its own; nothing, where there are none."""
    longest = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest)) or '(?!)'})")


def _without_prefix(component: Any) -> Any:
    """A normalizer or pre-tokenizer that puts no space before a text."""
    if not isinstance(component, dict):
        return component
    if component.get("type") == "Sequence":
        key = "normalizers" if "normalizers" in component else "pretokenizers"
        kept = [_without_prefix(part) for part in component[key]]
        return component | {key: [part for part in kept if part is not None]}
    if component.get("type") == "Prepend":
        return None
    if component.get("type") == "Metaspace":
        return component | {"prepend_scheme": "never"}
    return component | {"add_prefix_space": False} if "add_prefix_space" in component else component
