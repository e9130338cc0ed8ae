"""Any Python function as a tool: sync or async, with type hints and a docstring; no base class, no import of ours."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from asynclm.adapters.tools.options import Options, ToolDefinitionError, declared_options
from asynclm.adapters.tools.references import resolve
from asynclm.adapters.tools.signature import Signature, called
from asynclm.adapters.tools.source_version import source_version
from asynclm.adapters.tools.threads import run_in_thread
from asynclm.cml.tools import Effect, ToolSpec


class PythonTool:
    """A Python callable as a tool: function, method, `functools.partial` or an object with `__call__`.

    Arguments are converted to the types of the signature before the call. Async functions run on the event loop, all
    others in a daemon thread each (see `run_in_thread`). Generators are run to their end, their items being the result.
    `options` win over the function's `@tool` declaration, which wins over its name and docstring.
    Raises `ToolDefinitionError`.
    """

    def __init__(self, function: Callable[..., Any], options: Options | None = None) -> None:
        if not callable(function):
            raise ToolDefinitionError(f"{_shown(function)} is not a function")
        if inspect.isclass(function):
            raise ToolDefinitionError(f"{function.__qualname__} is a class, not a function")
        declared = (options or Options()).over(declared_options(function))
        name = declared.name or _name(function)
        self._function = function
        self._async = inspect.iscoroutinefunction(called(function))
        self._signature = Signature(function, name)
        self._spec = ToolSpec(
            name=name,
            description=self._signature.description if declared.description is None else declared.description,
            parameters=self._signature.schema,
            estimate_ms=declared.estimate_ms,
            effect=declared.effect or Effect.EFFECTFUL,
            timeout_s=declared.timeout_s,
            concurrency=declared.concurrency,
            **{**declared.caching(), "version": declared.version or source_version(function)},
        )

    @property
    def spec(self) -> ToolSpec:
        """How the model and the run machine see it."""
        return self._spec

    async def run(self, arguments: dict[str, Any]) -> object:
        """Call the function; return or raise what it does. See `run_in_thread` for what a cancellation means."""
        positional, named = self._signature.convert(arguments)
        if self._async:
            return await self._function(*positional, **named)
        result = await run_in_thread(
            _call, self._function, positional, named, thread_name=f"asynclm tool {self._spec.name}"
        )
        if inspect.isasyncgen(result):
            return [item async for item in result]
        if inspect.isawaitable(result):  # an async function behind a decorator that isn't
            return await result
        return result


def load(reference: str, base: Path, options: Options | None = None) -> PythonTool:
    """The tool that is the Python function `"path/to/file.py:function"` or `"package.module:function"`.

    Paths are relative to `base`. Raises `ToolDefinitionError`, one line that begins with the reference.
    """
    try:
        return PythonTool(resolve(reference, base), options)
    except ToolDefinitionError as error:
        raise ToolDefinitionError(f"{reference}: {error}") from error.__cause__


def _call(function: Callable[..., Any], positional: list[Any], named: dict[str, Any]) -> Any:
    result = function(*positional, **named)
    # A generator's body runs only now, so it must run to its end in this thread.
    return list(result) if isinstance(result, types.GeneratorType) else result


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    if not name.isidentifier():
        raise ToolDefinitionError(f"{_shown(function)} has no name of its own: give one (`name`)")
    return str(name)


def _shown(thing: object) -> str:
    return f"{type(thing).__name__} {getattr(thing, '__qualname__', '')}".strip()
