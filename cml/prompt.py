"""The instructions that teach a model CML: rules, the tools with their estimated times, two worked examples.

Kept short, since it is paid for with every request; and the same for every request with the same tools, so that
provider prompt caches hit. Tool texts are escaped: none can forge a block.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from .tokens import escape
from .tools import ToolSpec

RULES: Final = """\
# Calling tools
You call tools by writing blocks into your text. A call runs at once, while you go on writing. Its result comes later,
as an interrupt, in your text or as the next message.

[CALL] id [HEAD] tool(arg=value) [END]
  You call a tool: one Python call with literal arguments. id is a new name for each call: a, b, c1.
[INTR] id [HEAD] value [END]
  The result of that call, as JSON, or {"error": ...}; with the id user or agent_NAME: what they tell you meanwhile.
  The system writes these. Never write [INTR] yourself.
[TRAP][END]
  You wait for the next result. Write it and stop.

- Write each call as soon as you know its arguments, several in a row if they don't need each other; the slowest first.
- Never guess a result. If you need one that is not there yet, write [TRAP][END] and stop.
- After an interrupt go on where you stopped, without repeating yourself. On an error mend the call, or tell the user.
- The user sees your text without the blocks, and no interrupts: put what matters into your answer.
- If no tool is needed, just answer.
"""

EXAMPLES: Final = """\
# Examples, with tools that are not yours
User: Is it warmer in Oslo or in Rome? And mail the answer to Ann.
You: [CALL] a [HEAD] temperature(city="Oslo") [END]
[CALL] b [HEAD] temperature(city="Rome") [END]
[CALL] c [HEAD] find_address(name="Ann") [END]
[TRAP][END]
[INTR] c [HEAD] "ann@example.org" [END]
You: [TRAP][END]
[INTR] a [HEAD] 4 [END]
[INTR] b [HEAD] 15 [END]
You: [CALL] d [HEAD] send_mail(to="ann@example.org", text="Rome: 15 degrees, Oslo: 4.") [END]
[TRAP][END]
[INTR] d [HEAD] {"sent":true} [END]
You: It is warmer in Rome (15 degrees; 4 in Oslo). I have mailed that to Ann.

User: What is 3 + 4?
You: 7.
"""

_PYTHON_TYPES: Final = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
    "object": "dict",
}


def instructions(specs: Iterable[ToolSpec]) -> str:
    """What goes into the system message, in front of the client's own."""
    tools = "\n".join(map(describe, specs))
    return f"{RULES}\n# Your tools, with the time they take\n{tools}\n\n{EXAMPLES}"


def describe(spec: ToolSpec) -> str:
    """One tool: `name(city: str, days: int = 1)  ~300 ms`, its description, and those of its arguments."""
    properties: Mapping[str, Any] = spec.parameters.get("properties", {})
    required = spec.parameters.get("required", ())
    arguments = ", ".join(_argument(name, schema, name in required) for name, schema in properties.items())
    time = "" if spec.estimate_ms is None else f"  ~{spec.estimate_ms:g} ms"
    lines = [f"- {spec.name}({escape(arguments)}){time}"]
    if spec.description:
        lines.append(f"  {_one_line(spec.description)}")
    for name, schema in properties.items():
        if isinstance(schema, Mapping) and schema.get("description"):
            lines.append(f"  {_one_line(name)}: {_one_line(str(schema['description']))}")
    return "\n".join(lines)


def _argument(name: str, schema: Any, required: bool) -> str:
    written = f"{' '.join(name.split())}: {_type(schema)}"
    if required:
        return written
    default = schema.get("default", ...) if isinstance(schema, Mapping) else ...
    return f"{written} = {'...' if default is ... else _python(default)}"


def _type(schema: Any) -> str:
    """The Python spelling of a JSON schema, as far as a signature needs it."""
    if not isinstance(schema, Mapping):
        return "Any"
    if "enum" in schema:
        return " | ".join(map(_python, schema["enum"]))
    if "const" in schema:
        return _python(schema["const"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " | ".join(dict.fromkeys(map(_type, schema[union])))
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(_PYTHON_TYPES.get(each, "list") for each in kind)
    if kind == "array":
        return f"list[{_type(schema['items'])}]" if schema.get("items") else "list"
    if kind == "object" and schema.get("properties"):
        inner = ", ".join(f"{json.dumps(key)}: {_type(value)}" for key, value in schema["properties"].items())
        return f"{{{inner}}}"
    return _PYTHON_TYPES.get(kind, "Any") if isinstance(kind, str) else "Any"


def _python(value: Any) -> str:
    return repr(value)


def _one_line(text: str) -> str:
    return escape(" ".join(text.split()))
