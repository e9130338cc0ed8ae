"""From a reference in a config to the Python object it names.

A file is imported under a module name of its own, once, however many references name it. The base folder is added at
the end of `sys.path`, where it shadows nothing, so that modules beside the config can be named and import each other.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from asynclm.adapters.tools.options import ToolDefinitionError


def resolve(reference: str, base: Path) -> Callable[..., Any]:
    """The callable that `"path/to/file.py:function"` or `"package.module:object.method"` names.

    Raises `ToolDefinitionError`, one line that says what is wrong with it.
    """
    source, _, attribute = reference.rpartition(":")
    if not source or not all(part.isidentifier() for part in attribute.split(".")):
        raise ToolDefinitionError('a tool is named as "path/to/file.py:function" or "package.module:function"')
    base = base.resolve()
    if str(base) not in sys.path:
        sys.path.append(str(base))
    if source.endswith(".py") or "/" in source or "\\" in source:
        try:
            path = (base / Path(source).expanduser()).resolve()
        except RuntimeError:  # "~name"
            raise ToolDefinitionError("there is no such home folder") from None
        module = _import_file(path)
    else:
        module = _import_module(source)
    return _attribute(module, attribute)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ToolDefinitionError(f"there is no file {path}")
    name = f"asynclm_tools_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ToolDefinitionError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and type hints look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ToolDefinitionError(f"importing {path} failed: {_raised(error)}") from error
    return module


def _import_module(name: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ToolDefinitionError(f"there is no module {error.name!r}") from None
        raise ToolDefinitionError(f"importing {name} failed: {_raised(error)}") from error


def _raised(error: BaseException) -> str:
    message = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not isinstance(error, SyntaxError):  # a syntax error says itself where it is
        message += f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return " ".join(message.split())


def _attribute(module: ModuleType, path: str) -> Callable[..., Any]:
    found: Any = module
    for name in path.split("."):
        holder, shown = found, "it" if found is module else f"{path.rpartition('.')[0]!r}"
        try:
            found = getattr(holder, name)
        except AttributeError:
            near = difflib.get_close_matches(name, vars(holder) if hasattr(holder, "__dict__") else [], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ToolDefinitionError(f"{shown} has no {name!r}{hint}") from None
    if not callable(found):
        raise ToolDefinitionError(f"{path!r} is not a function but of type {type(found).__name__}")
    if (
        inspect.isclass(holder)
        and inspect.isfunction(found)
        and not isinstance(inspect.getattr_static(holder, name), staticmethod)
    ):
        raise ToolDefinitionError(
            f"{path!r} needs an instance: name a method of an object that the module holds, "
            "a class method or a static method"
        )
    function: Callable[..., Any] = found
    return function
