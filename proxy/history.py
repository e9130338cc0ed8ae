"""Native tool calls in the client's messages, read and put as CML. Pure.

A *round* is an assistant message with `tool_calls` and the `tool` messages behind it. The model knows no native calls:
it reads a round as what it would have written and been told itself, call blocks, a trap, interrupts. The rounds at the
end of the conversation are the beginning of the run's transcript; earlier ones stand among the messages.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from asynclm.cml.machine.calls import AGENT, RESERVED
from asynclm.cml.machine.parking import NO_RESULT
from asynclm.cml.render import render_body, render_call, render_interrupt, render_trap
from asynclm.cml.tokens import escape, escape_json
from asynclm.cml.transcript import Segment, as_prefill, as_turns
from asynclm.proxy.conversations.turns import Turn
from asynclm.proxy.errors import invalid
from asynclm.proxy.result_json import result_json
from asynclm.proxy.wire_id import model_id


class ToolCall(msgspec.Struct, frozen=True):
    """A call as it stands in an assistant message; `arguments` is JSON text, or should be."""

    id: str
    name: str
    arguments: str


class Round(msgspec.Struct, frozen=True):
    """An assistant message with calls at index `start`, and the results (text, by id) in the messages up to `end`."""

    start: int
    end: int
    text: str
    calls: tuple[ToolCall, ...]
    results: dict[str, str]


class History(msgspec.Struct, frozen=True):
    """Messages without native calls, the transcript to begin with, and the ids of calls that stand in that.

    `start` is the index of the client's message from which on the run stands in the transcript.
    """

    messages: list[dict[str, Any]]
    transcript: list[Segment]
    used: list[str]
    start: int


def read_rounds(messages: Sequence[dict[str, Any]]) -> list[Round]:
    """Every round. Raises `APIError` (400) for calls or results that are malformed or don't belong together."""
    rounds: list[Round] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        if message["role"] == "tool":
            raise invalid(
                f"messages[{at}] is a tool message, but does not follow an assistant message with tool_calls.",
                f"messages[{at}]",
            )
        end = at + 1
        if message["role"] == "assistant" and message.get("tool_calls"):
            calls = _calls(message["tool_calls"], f"messages[{at}].tool_calls")
            results: dict[str, str] = {}
            while end < len(messages) and messages[end]["role"] == "tool":
                id, text = _result(messages[end], f"messages[{end}]")
                if id in results or all(call.id != id for call in calls):
                    problem = "was answered before" if id in results else "is none of the assistant message before it"
                    where = f"messages[{end}].tool_call_id"
                    raise invalid(f"{where}: {id[:60]!r} {problem}.", where)
                results[id] = text
                end += 1
            rounds.append(Round(at, end, _text(message, f"messages[{at}]"), calls, results))
        at = end
    return rounds


def told(text: str, max_bytes: int) -> str:
    """What a client's tool returned, as JSON text for the model: as it is where it is JSON, else as a string."""
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        value = text
    try:
        return result_json(value, max_bytes)
    except Exception:  # JSON that can be read but not written again, whatever that may be
        return result_json(text, max_bytes)


def as_cml(
    messages: Sequence[dict[str, Any]],
    rounds: Sequence[Round],
    turns: Sequence[Turn],
    name_of: Callable[[str], str],
    max_bytes: int,
    *,
    prefill: bool = False,
) -> History:
    """Put the rounds of `messages`, which are escaped already, as CML, and earlier `turns` as they are known.

    `name_of` gives the name that the model knows a client's tool by; results are cut at `max_bytes`. `prefill`: a run
    is one assistant message there.
    """
    tail = len(messages)
    for each in reversed(rounds):
        if each.end != tail:
            break
        tail = each.start
    written: list[dict[str, Any]] = []
    transcript: list[Segment] = []
    known: set[str] = set()
    used: list[str] = []
    at = 0
    unknown = [each for each in rounds if not any(turn.start <= each.start < turn.end for turn in turns)]
    pieces: list[Round | Turn] = [*unknown, *turns]
    for piece in sorted(pieces, key=lambda piece: piece.start):
        written += messages[at : piece.start]
        at = piece.end
        if isinstance(piece, Turn):
            if prefill:
                written.append({"role": "assistant", "content": as_prefill(piece.transcript)})
            else:
                written += as_turns(piece.transcript)
            continue
        ids = {call.id: _id(call.id, known) for call in piece.calls}
        segments = _segments(piece, ids, name_of, max_bytes)
        if piece.start >= tail:
            transcript += segments
            used += ids.values()
        else:
            written += as_turns(segments)
    written += messages[at:]
    return History(written, transcript, used, tail)


def _segments(each: Round, ids: dict[str, str], name_of: Callable[[str], str], max_bytes: int) -> list[Segment]:
    blocks = [render_call(ids[call.id], _body(name_of(call.name), call.arguments)) for call in each.calls]
    lines = [escape(each.text)] if each.text else []
    values = [told(each.results[call.id], max_bytes) if call.id in each.results else NO_RESULT for call in each.calls]
    interrupts = [render_interrupt(ids[call.id], value) for call, value in zip(each.calls, values, strict=True)]
    return [
        Segment("model", "\n".join([*lines, *blocks, render_trap()])),
        Segment("runtime", "\n".join(interrupts)),
    ]


def _body(name: str, arguments: str) -> str:
    try:
        values = msgspec.json.decode(arguments or "{}")
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict) and all(key.isidentifier() and not keyword.iskeyword(key) for key in values):
        return render_body(name, values)
    return escape_json(
        msgspec.json.encode({"name": name, "arguments": arguments if values is None else values}).decode()
    )


def _id(wire: str, known: set[str]) -> str:
    """The model's own id for a call where that can be told, else a new one."""
    id = model_id(wire) or "c1"
    if not id.isidentifier() or keyword.iskeyword(id) or id in RESERVED or id.startswith(AGENT):
        id = "c1"
    n = 1
    new = id
    while new in known:
        n += 1
        new = f"c{n}" if id == "c1" else f"{id}_{n}"
    known.add(new)
    return new


def _calls(given: Any, where: str) -> tuple[ToolCall, ...]:
    if not isinstance(given, list):
        raise invalid(f"{where} must be an array.", where)
    calls: list[ToolCall] = []
    for n, call in enumerate(given):
        function = call.get("function") if isinstance(call, dict) else None
        id, name, arguments = (
            (call.get("id"), function.get("name"), function.get("arguments"))
            if isinstance(function, dict)
            else (None, None, None)
        )
        if not (isinstance(id, str) and isinstance(name, str) and name and isinstance(arguments, str)):
            raise invalid(f"{where}[{n}] must have an id, and a function with a name and arguments.", f"{where}[{n}]")
        if any(id == other.id for other in calls):
            raise invalid(f"{where}[{n}].id is used twice.", f"{where}[{n}].id")
        calls.append(ToolCall(id, name, arguments))
    return tuple(calls)


def _result(message: dict[str, Any], where: str) -> tuple[str, str]:
    id = message.get("tool_call_id")
    if not isinstance(id, str):
        raise invalid(f"{where}.tool_call_id must be a string.", f"{where}.tool_call_id")
    return id, _text(message, where)


def _text(message: dict[str, Any], where: str) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise invalid(f"{where}.content must be text.", f"{where}.content")
    return "".join(texts)
