"""Read the body of a call: a Python call expression with literal arguments, or `{"name": ..., "arguments": {...}}`.

Read with `ast` or a JSON decoder, never evaluated. Values come out as JSON knows them (tuples become lists).
"""

from __future__ import annotations

import ast
import warnings
from typing import Any, Final

import msgspec

from .tools import CallError, Invocation

MAX_BODY_CHARS: Final = 65_536  # reading more would hold up everybody else: about 2 ms for each 1,000 characters
_MAX_INT_BITS: Final = 1024  # Python itself refuses to print integers not much larger
_NAMES = {"true": True, "false": False, "null": None}  # JSON's words, which models mix into Python calls


def parse_body(body: str) -> Invocation:
    """Read a call body. Raises `CallError` of type `syntax_error`."""
    if len(body) > MAX_BODY_CHARS:
        raise _syntax(f"it is longer than {MAX_BODY_CHARS} characters")
    return _from_json(body) if body.startswith("{") else _from_python(body)


def _from_json(body: str) -> Invocation:
    try:
        call = msgspec.json.decode(body.encode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise _syntax(f"not valid JSON: {error}") from None
    name, arguments = call.get("name"), call.get("arguments", {})
    if not isinstance(name, str) or not name:
        raise _syntax('the JSON form is {"name": ..., "arguments": {...}}; "name" is missing')
    if isinstance(arguments, str):  # as OpenAI's own tool calls carry them
        try:
            arguments = msgspec.json.decode(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise _syntax(f'"arguments" is not valid JSON: {error}') from None
    if not isinstance(arguments, dict):
        raise _syntax('"arguments" must be an object')
    _refuse_huge(arguments)
    return Invocation(name, (), arguments)


def _from_python(body: str) -> Invocation:
    if not body:
        raise _syntax("the call is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a literal is the model's business
            tree = ast.parse(body, mode="eval").body
    except SyntaxError as error:
        raise _syntax(f"{error.msg} (line {error.lineno}, column {error.offset})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _syntax(str(error) or "too deeply nested") from None
    if not isinstance(tree, ast.Call):
        raise _syntax("a call looks like f(x=1)")
    name = _dotted(tree.func)
    if name is None:
        raise _syntax("what is called must be a plain name, as in f(x=1)")
    try:
        positional = tuple(_value(arg) for arg in tree.args)
        named: dict[str, Any] = {}
        for keyword in tree.keywords:
            if keyword.arg is None:
                raise _syntax("** is not supported: write each argument as name=value")
            if keyword.arg in named:
                raise _syntax(f"{keyword.arg} is given twice")
            named[keyword.arg] = _value(keyword.value)
    except RecursionError:
        raise _syntax("too deeply nested") from None
    return Invocation(name, positional, named)


def _dotted(node: ast.expr) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(parts)])


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            _refuse_huge(value)
            return value
        case ast.Name(id=word) if word in _NAMES:
            return _NAMES[word]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as number)):
            return -number if isinstance(sign, ast.USub) else number
    if isinstance(node, ast.Starred):
        raise _syntax("* is not supported: write each argument out")
    raise _syntax(f"arguments must be literals (numbers, strings, lists, dicts, True, False, None), not {_shown(node)}")


def _refuse_huge(value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS:
        raise _syntax("an integer is too large")
    if isinstance(value, dict):
        for each in value.values():
            _refuse_huge(each)
    elif isinstance(value, list):
        for each in value:
            _refuse_huge(each)


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise _syntax("keys of a dict must be strings")


def _shown(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else text[:57] + "..."


def _syntax(message: str) -> CallError:
    return CallError("syntax_error", f"the call could not be read: {message}")
