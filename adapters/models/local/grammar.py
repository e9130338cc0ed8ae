"""The grammar of a call's and of a trap's text behind `[CALL]` or `[TRAP]`, in llguidance's variant of Lark.

A call is `id [HEAD] tool(x=1) [END]`, or without its head, or with `{"name": ..., "arguments": {...}}` for a body: what
`cml.parser` and `cml.body` read, as far as tools and arguments are known (see `values`). Behind `[END]` there may be
white space, for tokens that run over the end.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from asynclm.cml.machine.calls import AGENT, RESERVED
from asynclm.cml.tokens import END
from asynclm.cml.tools import ToolSpec

from .schemas import simplify, types
from .values import PUNCTUATION, Values, argument_name, lark

# Any tokens may make up the text: which ones the model's tokenizer would choose is the model's business.
_OPTIONS: Final = '%llguidance {"no_forcing": true}'
# White space is bounded everywhere: a model that has nothing to say could write it for ever.
_GAP: Final = r"GAP: /[ \t\n]{1,32}/"
_END: Final = rf"CLOSE: {lark(END)} /[ \t\r\n]*/"
_NAME: Final = "/[A-Za-z_][A-Za-z0-9_]{0,63}/"
_NO_ID: Final = "|".join([*keyword.kwlist, *sorted(RESERVED), f"{AGENT}[A-Za-z0-9_]*"])
_NO_ARGUMENT: Final = "|".join(keyword.kwlist)
# A tool whose schema has none of these can be called without arguments.
_DEMANDING: Final = frozenset(["required", "minProperties", "anyOf", "oneOf", "allOf", "$ref"])

TRAP_GRAMMAR: Final = f"""\
{_OPTIONS}
{_GAP}
{chr(10).join(PUNCTUATION)}
start: GAP? (NAME (COMMA NAME)* GAP?)? CLOSE
NAME: {_NAME}
{_END}
"""


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments that a tool doesn't declare are invented, though JSON Schema lets them in where it says nothing."""
    declared = schema.get("properties")
    if not declared or "additionalProperties" in schema or "patternProperties" in schema:
        return schema
    return {**schema, "additionalProperties": False}


def call_grammar(tools: Sequence[ToolSpec], *, loose: Collection[str] = ()) -> str:
    """The grammar of a call to any of `tools`, of which there is at least one.

    The arguments of those named in `loose` may be any literals.
    """
    python, plain = Values("p", python=True), Values("j", python=False)
    calls: list[str] = []
    objects: list[str] = []
    for tool in tools:
        schema = {"type": "object"} if tool.name in loose else _closed(tool.parameters)
        calls += _python_calls(tool.name, schema, python)
        arguments = plain.value(schema, schema)
        if arguments is not None:
            name = f'"\\"name\\"" COLON {lark(json.dumps(tool.name, ensure_ascii=False))}'
            given = f'COMMA "\\"arguments\\"" COLON {arguments}'
            objects.append(f"{name} {given}" if _DEMANDING & schema.keys() else f"{name} ({given})?")
    return "\n".join(
        [
            _OPTIONS,
            _GAP,
            *PUNCTUATION,
            "start: GAP? (ID HEAD)? body CLOSE",
            f"body: {' | '.join([*calls, *(['object'] if objects else [])])}",
            f"object: LBRACE ({' | '.join(objects)}) RBRACE" if objects else "",
            f"ID: {_NAME} & ~/{_NO_ID}/",
            _END,
            *python.rules,
            *plain.rules,
            "",
        ]
    )


def _python_calls(tool: str, schema: Mapping[str, Any], values: Values) -> list[str]:
    """The expressions for Python calls of a tool."""
    alternatives = simplify(schema, schema)
    if alternatives is None:
        alternatives = [{"type": "object"}]
    calls = [_python_call(tool, each, schema, values) for each in alternatives if "object" in types(each)]
    return list(dict.fromkeys(calls))


def _python_call(tool: str, schema: Mapping[str, Any], root: Mapping[str, Any], values: Values) -> str:
    """`schema` is the simplified schema of the arguments, `root` the one that it came from."""
    begin = values.terminal(f"{lark(f'{tool}(')} /[ \\t\\n]{{0,32}}/")
    named, others, required = values.properties(schema, root)
    pairs = {name: f"{lark(name)} EQUALS {value}" if argument_name(name) else None for name, value in named.items()}
    other = None
    if others is not None:
        taken = "|".join([_NO_ARGUMENT, *filter(argument_name, named)])
        other = f"{values.terminal(f'{_NAME} & ~/{taken}/')} EQUALS {others}"
    if not pairs and other is None:
        return f"{begin} RPAREN"
    members = values.in_any_order(pairs, other, required)
    arguments = members.all
    # Arguments without names come first, in the order of the properties.
    positional = [name for name in schema.get("properties", {}) if name in named]
    if list(schema.get("properties", {})) != positional:
        positional = []
    after = ""
    for place in range(len(positional) - 1, -1, -1):
        done = values.bits(pairs, positional[: place + 1], required)
        value = named[positional[place]]
        following = members.after(done)
        after = values.rule(f"{value} {following} | {value} COMMA {after}" if after else f"{value} {following}")
    if after:
        arguments = f"({arguments} | {after})"
    return f"{begin} {arguments} RPAREN"
