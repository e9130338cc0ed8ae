"""A Python function's parameters: as a JSON schema for the model, and back from JSON to the types it was declared with.

pydantic does both, on a stand-in function whose parameters are all keyword-only: JSON arguments have names, never
positions, and unlike a model class a signature may use any parameter name (`schema`, `_private`, `model_config`).
"""

from __future__ import annotations

import inspect
import types
import typing
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import docstring_parser
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.json_schema import PydanticJsonSchemaWarning
from pydantic_core import ArgsKwargs

from asynclm.adapters.tools.options import ToolDefinitionError
from asynclm.cml.tools import CallError

_Parameter = inspect.Parameter
_VARIADIC = (_Parameter.VAR_POSITIONAL, _Parameter.VAR_KEYWORD)
_SHOWN_ERRORS = 3


class Signature:
    """The parameters of `function`, which is called `name` in error messages.

    `schema` is the JSON schema of the arguments: an object, closed unless the function takes `**kwargs`; no titles;
    references inlined, except where a type contains itself. `description` is the docstring without its sections.
    Raises `ToolDefinitionError` naming function and parameter.
    """

    schema: dict[str, Any]
    description: str

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._name = name
        parameters = _parameters(function, name)
        self._positional_only = [p.name for p in parameters if p.kind is _Parameter.POSITIONAL_ONLY]
        annotations = {p.name: _annotation(p, function, name) for p in parameters}
        self._adapter, schema = _adapter(parameters, annotations, name)
        self.description, described = _docstring(function)
        # Properties come in the order of the parameters (an alias may have renamed them).
        plain = [p for p in parameters if p.kind not in _VARIADIC]
        for parameter, property_schema in zip(plain, schema["properties"].values(), strict=False):
            if parameter.name in described:
                property_schema.setdefault("description", described[parameter.name])
        self.schema = _tidy(schema)

    def convert(self, arguments: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """JSON arguments as the positional and named arguments of a call, defaults included.

        Raises `CallError` for what the JSON schema can't see, such as a date that doesn't exist.
        """
        try:
            named: dict[str, Any] = self._adapter.validate_python(ArgsKwargs((), arguments))
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
            problems = [f"argument {_location(e['loc'])}: {e['msg']}" for e in found[:_SHOWN_ERRORS]]
            raise CallError("invalid_arguments", f"{self._name}() {'; '.join(problems)}") from None
        return [named.pop(name) for name in self._positional_only], named


def _location(path: Iterable[int | str]) -> str:
    return "'" + ".".join(map(str, path)) + "'"


def _parameters(function: Callable[..., Any], name: str) -> list[_Parameter]:
    try:
        found = inspect.signature(function).parameters.values()
    except (ValueError, TypeError) as error:
        raise ToolDefinitionError(f"{name}: its signature can't be read: {_one_line(error)}") from None
    # What a partial has bound by name is settled; `inspect` would still list it, with the value as its default.
    bound = function.keywords if isinstance(function, partial) else {}
    parameters = [parameter for parameter in found if parameter.name not in bound]
    for parameter in parameters:
        if parameter.kind is _Parameter.VAR_POSITIONAL:
            raise ToolDefinitionError(
                f"{name}: parameter *{parameter.name} can't be a tool's: arguments have names; take a list instead"
            )
    return parameters


def _annotation(parameter: _Parameter, function: Callable[..., Any], name: str) -> Any:
    if parameter.annotation is _Parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        hints = typing.get_type_hints(
            holder, getattr(inspect.unwrap(called(function)), "__globals__", {}), include_extras=True
        )
    except Exception as error:
        raise ToolDefinitionError(
            f"{name}: the type of parameter {parameter.name!r} can't be resolved: {_one_line(error)}"
        ) from None
    return hints[parameter.name]


def _adapter(
    parameters: list[_Parameter], annotations: dict[str, Any], name: str
) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    try:
        return _build(parameters, annotations)
    except Exception as error:
        for parameter in parameters:
            try:
                _build([parameter], annotations)
            except Exception as cause:
                raise ToolDefinitionError(
                    f"{name}: parameter {parameter.name!r} has no JSON schema: {_one_line(cause)}"
                ) from None
        raise ToolDefinitionError(f"{name}: its parameters have no JSON schema: {_one_line(error)}") from None


def _build(parameters: list[_Parameter], annotations: dict[str, Any]) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    def stand_in(**named: Any) -> dict[str, Any]:
        return named

    stand_in.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p if p.kind is _Parameter.VAR_KEYWORD else p.replace(kind=_Parameter.KEYWORD_ONLY) for p in parameters]
    )
    stand_in.__annotations__ = {p.name: annotations[p.name] for p in parameters}
    adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, stand_in))
    with warnings.catch_warnings():
        # A default without a JSON form (a sentinel) is left out of the schema, and is still the default.
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)
        schema = adapter.json_schema()
    if any(p.kind is _Parameter.VAR_KEYWORD for p in parameters):
        schema.setdefault("additionalProperties", True)
    return adapter, schema


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description of the function and of each parameter, from a Google, NumPy, reST or Epydoc docstring."""
    text = _doc(function)
    if not text:
        return "", {}
    try:
        parsed = docstring_parser.parse(text)
    except docstring_parser.ParseError:
        return text, {}
    described = {
        name.strip().lstrip("*"): " ".join(parameter.description.split())
        for parameter in parsed.params
        if parameter.description
        for name in parameter.arg_name.split(",")
    }
    return (parsed.description or "").strip(), described


def _doc(function: Callable[..., Any]) -> str | None:
    while isinstance(function, partial):
        function = function.func
    if inspect.isroutine(function) or type(function).__call__.__doc__:
        return inspect.getdoc(called(function))
    return inspect.getdoc(type(function))


def called(function: Callable[..., Any]) -> Callable[..., Any]:
    """The routine that runs first when `function` is called: behind partials and `__call__`."""
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def _one_line(error: Exception) -> str:
    text = error.message if isinstance(error, PydanticUserError) else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def _tidy(schema: dict[str, Any]) -> dict[str, Any]:
    """Inline references (but of types that contain themselves) and drop titles: fewer tokens, easier on a model."""
    definitions: dict[str, Any] = schema.pop("$defs", {})
    recursive = {name for name in definitions if name in _reachable(definitions[name], definitions)}
    tidied: dict[str, Any] = _tidied(schema, definitions, recursive)
    if recursive:
        tidied["$defs"] = {name: _tidied(definitions[name], definitions, recursive) for name in sorted(recursive)}
    return tidied


def _target(schema: dict[str, Any]) -> str | None:
    reference = schema.get("$ref")
    return reference.removeprefix("#/$defs/") if isinstance(reference, str) else None


def _reachable(schema: Any, definitions: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    todo = [schema]
    while todo:
        match todo.pop():
            case dict() as part:
                target = _target(part)
                if target is not None and target not in found:
                    found.add(target)
                    todo.append(definitions[target])
                todo.extend(part.values())
            case list() as parts:
                todo.extend(parts)
    return found


def _tidied(schema: Any, definitions: dict[str, Any], recursive: set[str]) -> Any:
    if isinstance(schema, list):
        return [_tidied(part, definitions, recursive) for part in schema]
    if not isinstance(schema, dict):
        return schema
    target = _target(schema)
    if target is not None and target not in recursive:
        own = {key: value for key, value in schema.items() if key != "$ref"}
        return {**_tidied(definitions[target], definitions, recursive), **_tidied(own, definitions, recursive)}
    tidied: dict[str, Any] = {}
    for key, value in schema.items():
        match key:
            case "title" | "discriminator":  # the latter is OpenAPI's, and points into the definitions
                continue
            case "properties" | "patternProperties":  # keys are names here, not keywords
                tidied[key] = {name: _tidied(part, definitions, recursive) for name, part in value.items()}
            case "default" | "const" | "enum" | "examples":  # values, not schemas
                tidied[key] = value
            case _:
                tidied[key] = _tidied(value, definitions, recursive)
    return tidied
