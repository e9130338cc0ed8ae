"""OpenAI-shaped requests, written as Anthropic's Messages API takes them. Pure.

- System and developer messages, wherever they stand, become `system`.
- Consecutive turns of one role become one turn of several blocks: interrupts are user turns like any other.
- Images go along, as data or as URLs. Audio and files have no place here: a clear 400.
- Native tool calls of the history, and their results, become readable text: Anthropic refuses tool blocks in requests
  that define no tools. Control tokens in their arguments are escaped.
- Blank text is left out (Anthropic refuses it). A conversation that does not begin with the user gets a turn that
  says "." before it, and one that does not end with the user one that says "Continue.", unless the model takes a
  prefill.
- What was sent once stays as it is in all further prompts of the run, block by block: the provider's cache knows a
  prompt by that.

Parameters: `temperature` (at most 1), `top_p` (only without a temperature: recent models refuse both at once),
`top_k`, `stop`, `max_tokens`, `user` or `safety_identifier` (metadata.user_id), `service_tier` (default is
standard_only), `reasoning_effort` (output_config.effort), `response_format` with a JSON schema
(output_config.format), and `thinking` as it is. Everything else has no equivalent and is dropped:
`frequency_penalty`, `presence_penalty`, `logit_bias`, `logprobs`, `top_logprobs`, `n`, `seed`, `metadata`, `store`,
`modalities`, `prediction`, `verbosity`, `parallel_tool_calls`, the JSON mode without a schema, and what other vendors
add. Only `tools` is an error: dropping them would change what is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from asynclm.adapters.models.protocol import ModelError, Request
from asynclm.cml.tokens import escape_json
from asynclm.cml.transcript import as_prefill_parts, as_turns

Block = dict[str, Any]

_VERSION: Final = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")
_NEWEST: Final = (99, 0)
_CACHED: Final = {"cache_control": {"type": "ephemeral"}}
# How many blocks back from a breakpoint, itself included, the provider looks for what it has cached.
_LOOKBACK: Final = 20


def generation(model: str) -> tuple[int, int] | None:
    """A Claude's version by its name: (4, 5) for claude-sonnet-4-5, the newest where it has none; None for others."""
    if "claude" not in model:
        return None
    found = _VERSION.search(model)
    return (int(found[1]), int(found[2] or 0)) if found else _NEWEST


def takes_prefill(model: str) -> bool:
    """Claude up to 4.5 continues an assistant turn; newer ones answer 400. Nothing is assumed of others."""
    version = generation(model)
    return version is not None and version <= (4, 5)


def takes_sampling(model: str) -> bool:
    """Whether `temperature` and its like are taken, by an API version before 2026-10-21: not by Claude from 4.7 on."""
    version = generation(model)
    return version is None or version <= (4, 6)


def body_of(request: Request, *, prefill: bool, sampling: bool, cache: bool, max_tokens: int) -> dict[str, Any]:
    """The request's body. `max_tokens` is used where the client gave none, since the API asks for it.

    `cache` marks what the provider may cache (`_mark`). Raises `ModelError` (400) for what can't be said to this API.
    """
    system, turns = _turns(request.messages)
    thinking = request.parameters.get("thinking")
    prefill = prefill and not (isinstance(thinking, dict) and thinking.get("type") != "disabled")
    _hand_over(turns, prefill)
    if prefill:
        _add(turns, "assistant", [{"type": "text", "text": part} for part in as_prefill_parts(request.transcript)])
    else:
        for turn in as_turns(request.transcript):
            _add(turns, turn["role"], _text(turn["content"]))
        _hand_over(turns, prefill)
    if cache:
        _mark(system, turns)
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": max_tokens if request.max_tokens is None else request.max_tokens,
        "messages": turns,
        "stream": True,
        **_parameters(request.parameters, sampling=sampling),
    }
    if system:
        body["system"] = system
    # Blank stop sequences are refused; the run machine finds the client's own in the text anyway.
    stop = [sequence for sequence in request.stop if sequence.strip()]
    if stop:
        body["stop_sequences"] = stop
    return body


# ---------------------------------------------------------------------------------------------------- messages


def _turns(messages: Sequence[Any]) -> tuple[list[Block], list[dict[str, Any]]]:
    system: list[Block] = []
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise _refused(f"{where} is not an object.", where)
        role = message.get("role")
        blocks = _blocks(message.get("content"), where)
        if role in ("system", "developer"):
            if any(block["type"] != "text" for block in blocks):
                raise _refused(f"{where}: a system message can only hold text.", where)
            system += blocks
        elif role == "user":
            _add(turns, "user", blocks)
        elif role == "assistant":
            _add(turns, "assistant", [*blocks, *_calls(message)])
        elif role in ("tool", "function"):
            name = message.get("tool_call_id") or message.get("name") or "unknown"
            _add(turns, "user", [*_text(f"Result of tool call {name}:"), *blocks])
        else:
            raise _refused(f"{where}.role: {role!r} is not a role.", where)
    return system, turns


def _add(turns: list[dict[str, Any]], role: str, blocks: list[Block]) -> None:
    if not blocks:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    else:
        turns.append({"role": role, "content": blocks})


def _hand_over(turns: list[dict[str, Any]], prefill: bool) -> None:
    """Let the turns be such that it is the model's turn to write."""
    if not turns or turns[0]["role"] != "user":
        turns.insert(0, {"role": "user", "content": _text(".")})
    if turns[-1]["role"] == "user":
        return
    if not prefill:
        _add(turns, "user", _text("Continue."))
        return
    block = turns[-1]["content"][-1]
    if block["type"] == "text":
        block["text"] = block["text"].rstrip()  # Anthropic refuses a prefill that ends in white space


def _mark(system: list[Block], turns: list[dict[str, Any]]) -> None:
    """Put in the cache breakpoints, of which there may be 4.

    A prompt is written to the cache as far as each breakpoint, and read as far as the longest prefix that was written
    before, where that ends within 20 blocks of a breakpoint
    (https://platform.claude.com/docs/en/build-with-claude/prompt-caching):

    - behind the system prompt, which all conversations with the same tools share;
    - behind the last block, so that the next resume reads all that this request sends;
    - before the last block, which is what this stream alone is told, so that branches that open on the same transcript
      read all of it, what the model wrote last included, once the first of them is being answered;
    - 20 blocks before that, to look back further: where many branches were folded, two blocks each, a prompt is longer
      than any before it by more than 20.
    """
    blocks = [block for turn in turns for block in turn["content"]]
    last = len(blocks) - 1
    for at in (last, last - 1, last - 1 - _LOOKBACK):
        if at >= 0:
            blocks[at].update(_CACHED)
    if system:
        system[-1].update(_CACHED)


def _text(text: str) -> list[Block]:
    return [{"type": "text", "text": text}] if text and not text.isspace() else []


def _blocks(content: Any, where: str) -> list[Block]:
    if content is None:
        return []
    if isinstance(content, str):
        return _text(content)
    if not isinstance(content, list):
        raise _refused(f"{where}.content: text or a list of parts is expected.", where)
    blocks: list[Block] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "refusal") and isinstance(part.get(kind), str):
            blocks += _text(part[kind])
        elif kind == "image_url":
            blocks.append({"type": "image", "source": _image(part.get("image_url"), where)})
        else:
            raise _refused(f"{where}.content: this upstream takes text and images, not {kind!r} parts.", where)
    return blocks


def _image(image: Any, where: str) -> dict[str, str]:
    url = image.get("url") if isinstance(image, dict) else image
    if isinstance(url, str):
        if url.startswith(("https://", "http://")):
            return {"type": "url", "url": url}
        head, comma, data = url.partition(",")
        if comma and head.startswith("data:") and head.endswith(";base64"):
            return {"type": "base64", "media_type": head[5:].partition(";")[0], "data": data}
    raise _refused(f"{where}.content: an image must be an http(s) address or base64 data (data:image/...).", where)


def _calls(message: Mapping[str, Any]) -> Iterable[Block]:
    calls = message.get("tool_calls") or []
    if message.get("function_call"):
        calls = [{"id": "", "function": message["function_call"]}, *calls]
    for call in calls:
        function = call.get("function") or call.get("custom") or {}
        name = f"{call['id']}: {function.get('name')}" if call.get("id") else function.get("name")
        written = function.get("arguments", function.get("input", ""))
        yield from _text(f"Tool call {name} {escape_json(written if isinstance(written, str) else repr(written))}")


# -------------------------------------------------------------------------------------------------- parameters


def _parameters(given: Mapping[str, Any], *, sampling: bool) -> dict[str, Any]:
    if given.get("tools") or given.get("functions"):
        raise _refused("Tools of the client's own are not supported with an Anthropic upstream.", "tools")
    body: dict[str, Any] = {}
    if sampling:
        temperature = given.get("temperature")
        if temperature is not None:
            body["temperature"] = min(temperature, 1) if isinstance(temperature, int | float) else temperature
        elif given.get("top_p") is not None:
            body["top_p"] = given["top_p"]
        if given.get("top_k") is not None:
            body["top_k"] = given["top_k"]
    user = given.get("user") or given.get("safety_identifier")
    if user:
        body["metadata"] = {"user_id": user}
    tier = {"auto": "auto", "default": "standard_only"}.get(given.get("service_tier") or "")
    if tier:
        body["service_tier"] = tier
    if given.get("thinking"):
        body["thinking"] = given["thinking"]
    output: dict[str, Any] = {}
    effort = given.get("reasoning_effort")
    if effort and effort != "none":
        output["effort"] = "low" if effort == "minimal" else effort
    wanted = given.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        output["format"] = {"type": "json_schema", "schema": (wanted.get("json_schema") or {}).get("schema")}
    if output:
        body["output_config"] = output
    return body


def _refused(message: str, param: str) -> ModelError:
    return ModelError(message, status=400, type="invalid_request_error", param=param)
