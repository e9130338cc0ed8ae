"""What a Python function does, as a short text that changes with it."""

from __future__ import annotations

import hashlib
import inspect
import marshal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def source_version(function: Callable[..., Any]) -> str | None:
    """A hash of the file that the function is written in, since it may use anything that stands there.

    Of its compiled code where there is no file (what was typed in, or made by `exec`); the arguments that a `partial`
    fixes count as well. None for what has neither, such as a function written in C. It says nothing of other modules or
    of data: for those a tool declares a version.
    """
    fixed = b""
    while isinstance(function, partial):
        fixed += repr((function.args, function.keywords)).encode(errors="replace")
        function = function.func
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    if code is None:
        return None
    try:
        written = Path(code.co_filename).read_bytes()
    except (OSError, ValueError):
        written = marshal.dumps(code, 2)  # whose form does not depend on who else holds parts of it
    return hashlib.sha256(fixed + code.co_qualname.encode() + b"\0" + written).hexdigest()[:16]
