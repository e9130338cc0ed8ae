"""Tools of the client's own: read from its request, checked, and put beside the proxy's for one run."""

from __future__ import annotations

import keyword
import unicodedata
from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from typing import Any, Final

import msgspec

from asynclm.adapters.tools.identifiers import identifier_characters
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.prompt import instructions
from asynclm.cml.tools import Owner, ToolSpec
from asynclm.proxy.errors import INVALID_REQUEST, APIError, invalid

_MAX_KITS: Final = 64
_MAX_KEPT: Final = 2**18  # bytes of JSON: what is larger is read anew for each request


class Function(msgspec.Struct, frozen=True):
    """A function as OpenAI's API describes it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    type: str
    function: Function | None = None


class ClientTool:
    """A tool that only the client can run."""

    def __init__(self, spec: ToolSpec) -> None:
        self.spec = spec

    async def run(self, arguments: dict[str, Any]) -> object:
        """Never called: the run machine sends such calls to the client. Raises RuntimeError."""
        raise RuntimeError(f"{self.spec.name} is run by the client")


class Kit(msgspec.Struct, frozen=True):
    """What one run works with: the tools, what the model is told of them, and the client's names for its own.

    `names` leads from a name as the model writes it to the client's. Two kits with the same `key` are the same.
    """

    key: tuple[int, bytes]
    toolbox: Toolbox
    specs: Sequence[ToolSpec]
    instructions: str
    names: Mapping[str, str]


class Kits:
    """Kits by the tools in a request. Those used last are kept: checking schemas takes a millisecond a tool."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox
        self._kits: OrderedDict[tuple[int, bytes], Kit] = OrderedDict()

    def of(self, functions: Sequence[Function]) -> Kit:
        """The kit of the proxy's tools and these. Raises `APIError` (400) for tools that can't be used."""
        key = (self._toolbox.version, msgspec.json.encode(functions) if functions else b"")
        kit = self._kits.get(key)
        if kit is None:
            kit = self._new(key, functions)
            if len(key[1]) <= _MAX_KEPT:
                self._kits[key] = kit
                if len(self._kits) > _MAX_KITS:
                    self._kits.popitem(last=False)
        else:
            self._kits.move_to_end(key)
        return kit

    def _new(self, key: tuple[int, bytes], functions: Sequence[Function]) -> Kit:
        if not functions:
            specs = self._toolbox.specs()
            return Kit(key, self._toolbox, specs, instructions(specs), {})
        names: dict[str, str] = {}
        tools: list[ClientTool] = []
        for function in functions:
            if function.name in self._toolbox:
                raise invalid(
                    f"tools: {function.name!r} is the name of a tool of the proxy's: use another one.", "tools"
                )
            if function.name in names.values():
                raise invalid(f"tools: two of them are named {function.name!r}.", "tools")
            name = _free(python_name(function.name), names, self._toolbox)
            names[name] = function.name
            schema = function.parameters or {"properties": {}}
            spec = ToolSpec(
                name=name,
                description=function.description or "",
                parameters={"type": "object", **schema},
                owner=Owner.CLIENT,
            )
            tools.append(ClientTool(spec))
        try:
            toolbox = self._toolbox.beside(tools)
            specs = toolbox.specs()
            return Kit(key, toolbox, specs, instructions(specs), names)
        except ValueError as error:
            raise invalid(f"tools: {error}.", "tools") from None
        except Exception as error:  # a schema can break its checker in more ways than one
            raise invalid(f"tools: a schema can't be used ({type(error).__name__}).", "tools") from None


def read_tools(request: Mapping[str, Any]) -> tuple[Function, ...]:
    """The functions that a chat request offers. Raises `APIError` (400) for what is no function, or can't be kept."""
    given = request.get("tools")
    if not given:
        return ()
    choice = request.get("tool_choice")
    if choice not in (None, "auto", "none"):
        message = (
            "tool_choice must be auto or none when the proxy runs tools: a model that writes can't be forced to call"
        )
        raise APIError(400, f"{message}.", type=INVALID_REQUEST, param="tool_choice", code="unsupported_parameter")
    if not isinstance(given, list):
        raise invalid("tools must be an array.", "tools")
    functions = [_function(tool, f"tools[{n}]") for n, tool in enumerate(given)]
    return () if choice == "none" else tuple(functions)


def _function(given: Any, where: str) -> Function:
    try:
        tool = msgspec.convert(given, _Tool)
    except msgspec.ValidationError as error:
        raise invalid(f"{where} is not a tool: {error}.", where) from None
    if tool.type != "function" or tool.function is None:
        message = f"{where} must be of type function when the proxy runs tools"
        raise APIError(400, f"{message}.", type=INVALID_REQUEST, param=where, code="unsupported_parameter")
    if not tool.function.name:
        raise invalid(f"{where} needs a name.", where)
    return tool.function


def python_name(name: str) -> str:
    """A name that a model can write a Python call with: what can't stand in one becomes `_`."""
    parts = unicodedata.normalize("NFKC", name).split(".")
    return ".".join(map(_identifier, parts))


def _identifier(part: str) -> str:
    part = identifier_characters(part)
    return part if part.isidentifier() and not keyword.iskeyword(part) else f"_{part}"


def _free(name: str, *taken: Container[str]) -> str:
    new, n = name, 1
    while any(new in names for names in taken):
        n += 1
        new = f"{name}_{n}"
    return new
