"""The client's chat request: read, checked, and prepared for a model that writes CML. Pure.

What each parameter means for a run, which may take several upstream requests:

- `max_tokens`, `max_completion_tokens` and `stop` bound the visible answer, over the whole run. Upstream, each stream
  gets that bound plus room for blocks; `stop` is not sent, because it could match inside a block.
- sampling parameters and everything else that is not named here go along with every upstream request, as they are.
- what can't be kept is refused: `n` > 1 and `logprobs` (an answer of several streams has no single choice or
  probability), `response_format` and audio output (a constrained model can't write blocks).
- `tools` of the client's own join the proxy's (`client_tools`); native calls in the messages become CML (`history`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from asynclm.cml.tokens import escape
from asynclm.proxy.client_tools import Function, read_tools
from asynclm.proxy.errors import INVALID_REQUEST, APIError, invalid
from asynclm.proxy.history import Round, read_rounds

# Keys that the proxy answers for itself; all others go upstream untouched.
_OURS: Final = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "stop",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "functions",
        "function_call",
        "response_format",
        "modalities",
        "audio",
    }
)
_MAX_STOPS: Final = 4
_MAX_STOP_CHARS: Final = 1000
_WITH_TOOLS: Final = "when the proxy runs tools (x-asynclm-policy: off passes a request through without them)"
_TRANSLATED: Final = "from this upstream"


class ChatRequest(msgspec.Struct, frozen=True):
    """A chat request whose shape was checked. `max_tokens_key` is the name the client used for the bound.

    `functions` are tools of the client's own, `rounds` the native calls in the messages; both are left to the upstream
    where a request is only translated. `single`: an answer may hold one call to the client's tools (OpenAI's
    `parallel_tool_calls: false`).
    """

    model: str
    messages: list[dict[str, Any]]
    stream: bool
    include_usage: bool
    stop: tuple[str, ...]
    max_tokens: int | None
    max_tokens_key: str
    parameters: dict[str, Any]
    functions: tuple[Function, ...] = ()
    rounds: tuple[Round, ...] = ()
    single: bool = False


class Routing(msgspec.Struct):
    """What must be known of a body to send it on: cheap to read, whatever else it holds."""

    model: str | None = None


_routing = msgspec.json.Decoder(Routing)


def model_of(body: bytes) -> str | None:
    """The `model` of a JSON body; None if it has none. Raises `APIError` for what is no JSON object."""
    try:
        return _routing.decode(body).model
    except msgspec.ValidationError:
        raise invalid("The request body must be a JSON object, and its model a string.", "model") from None
    except (ValueError, RecursionError):
        request = _decoded(body)
        model = request.get("model") if isinstance(request, dict) else None
        return model if isinstance(model, str) else None


def parse(body: bytes, *, with_tools: bool = True) -> ChatRequest:
    """Read a chat request that is to run here, with the proxy's tools or only translated for another API.

    Raises `APIError` (400) naming the parameter.
    """
    request = _decoded(body)
    if not isinstance(request, dict):
        raise invalid("The request body must be a JSON object.")
    _refuse(request, with_tools)
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("model must be a string: the name of the model to use.", "model")
    max_tokens_key = "max_tokens" if request.get("max_completion_tokens") is None else "max_completion_tokens"
    options = request.get("stream_options")
    messages = _messages(request.get("messages"))
    functions = read_tools(request) if with_tools else ()
    return ChatRequest(
        model=model,
        messages=messages,
        stream=_flag(request, "stream"),
        include_usage=bool(options.get("include_usage")) if isinstance(options, dict) else False,
        stop=_stop(request.get("stop")),
        max_tokens=_count(request, max_tokens_key),
        max_tokens_key=max_tokens_key,
        parameters={key: value for key, value in request.items() if key not in _OURS},
        functions=functions,
        rounds=tuple(read_rounds(messages)) if with_tools else (),
        single=bool(functions) and request.get("parallel_tool_calls") is False,
    )


def _decoded(body: bytes) -> Any:
    """Decode JSON. Half a surrogate pair, which some clients send of an emoji cut in two, becomes U+FFFD."""
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        problem = error
    try:
        return msgspec.json.decode(json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise invalid(f"The request body is not valid JSON: {problem}", code="invalid_json") from None


def escaped(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The client's messages, with control tokens escaped."""
    return [_escaped(message) for message in messages]


def prompt(messages: list[dict[str, Any]], instructions: str) -> list[dict[str, Any]]:
    """The messages to send: the client's own, which are `escaped`, behind the instructions.

    The instructions go into the client's first system message, since many chat templates take only one and want it
    first.
    """
    if not instructions:
        return messages
    if not messages or messages[0]["role"] not in ("system", "developer"):
        return [{"role": "system", "content": instructions}, *messages]
    first = messages[0]
    content = first.get("content")
    if isinstance(content, list):
        joined: Any = [{"type": "text", "text": instructions}, *content]
    else:
        joined = f"{instructions}\n\n{content}" if content else instructions
    return [{**first, "content": joined}, *messages[1:]]


def text_size(messages: Sequence[dict[str, Any]]) -> int:
    """Characters of text in the messages, for estimates."""
    size = 0
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            size += len(content)
        elif isinstance(content, list):
            size += sum(len(part["text"]) for part in content if isinstance(part.get("text"), str))
    return size


def _escaped(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        safe: Any = escape(content)
        return message if safe is content else {**message, "content": safe}
    if isinstance(content, list):
        return {**message, "content": [_escaped_part(part) for part in content]}
    return message


def _escaped_part(part: Any) -> Any:
    text = part.get("text")
    return {**part, "text": escape(text)} if isinstance(text, str) else part


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise invalid("messages must be an array with at least one message.", "messages")
    for n, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise invalid(f"messages[{n}] must be an object with a role.", f"messages[{n}]")
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) for part in content):
                raise invalid(f"messages[{n}].content must be an array of objects.", f"messages[{n}].content")
        elif content is not None and not isinstance(content, str):
            raise invalid(f"messages[{n}].content must be a string or an array.", f"messages[{n}].content")
    return messages


def _flag(request: dict[str, Any], key: str) -> bool:
    value = request.get(key)
    if value is not None and not isinstance(value, bool):
        raise invalid(f"{key} must be true or false.", key)
    return bool(value)


def _count(request: dict[str, Any], key: str) -> int | None:
    value = request.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid(f"{key} must be a whole number of at least 1.", key)
    return value


def _stop(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops) or len(stops) > _MAX_STOPS:
        raise invalid(f"stop must be a string or an array of up to {_MAX_STOPS} strings.", "stop")
    if not all(0 < len(each) <= _MAX_STOP_CHARS for each in stops):
        raise invalid(f"each stop must have 1 to {_MAX_STOP_CHARS} characters.", "stop")
    return tuple(stops)


def _refuse(request: dict[str, Any], with_tools: bool) -> None:
    """Raise for what can't be kept over several streams, or together with blocks."""
    when = _WITH_TOOLS if with_tools else _TRANSLATED
    n = request.get("n")
    if n is not None and n != 1:
        raise _unsupported("n", f"n must be 1 {when}: there is one answer")
    if request.get("logprobs") or request.get("top_logprobs"):
        raise _unsupported("logprobs", f"logprobs are not available {when}")
    form = request.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        raise _unsupported("response_format", f"response_format must be text {when}")
    if request.get("audio") or request.get("modalities") not in (None, [], ["text"]):
        raise _unsupported("modalities", f"the answer is text only {when}")
    for key in ("functions",) if with_tools else ("tools", "functions"):
        if request.get(key):
            raise _unsupported(key, f"{key} of the client's own are not available {when}")


def _unsupported(param: str, message: str) -> APIError:
    return APIError(400, f"{message}.", type=INVALID_REQUEST, param=param, code="unsupported_parameter")
