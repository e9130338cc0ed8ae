"""Lua scripts as Redis runs them (EVAL), within one transaction of the embedded store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from lupa import LuaError, LuaRuntime  # type: ignore[import-untyped]
from redis.exceptions import ResponseError

Call = Callable[[Sequence[bytes]], Any]

# What a script sees beside its keys and arguments.
_COMPILE: Final = b"""function(source)
    local environment = {
        tonumber = tonumber, tostring = tostring, type = type, pairs = pairs, ipairs = ipairs,
        string = string, table = table, math = math, error = error}
    return assert(load(source, 'script', 't', environment)), environment
end"""


class Scripts:
    """Runs the scripts of one store, in one thread at a time. `call` carries out what they ask of the store."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._lua = LuaRuntime(encoding=None, register_builtins=False, register_eval=False)
        self._compile = self._lua.eval(_COMPILE)
        self._is_table = self._lua.eval(b"function(value) return type(value) == 'table' end")
        self._compiled: dict[bytes, tuple[Any, Any]] = {}
        self._raised: ResponseError | None = None

    def run(self, source: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        """What the script returns, as a reply.

        Numbers lose their fraction, false becomes None, a table ends at its first nil: as in Redis. Raises
        `ResponseError`.
        """
        self._raised = None
        try:
            if source not in self._compiled:
                self._compiled[source] = self._compile(source)
            function, environment = self._compiled[source]
            environment[b"KEYS"] = self._lua.table_from(list(keys))
            environment[b"ARGV"] = self._lua.table_from(list(arguments))
            environment[b"redis"] = self._lua.table_from({b"call": self._command})
            return self._from_lua(function())
        except LuaError as error:
            raise self._raised or ResponseError(f"Error running script: {error}") from None

    def _command(self, *parts: bytes | int | float) -> Any:
        try:
            return self._to_lua(self._call([part if isinstance(part, bytes) else b"%d" % part for part in parts]))
        except ResponseError as error:
            self._raised = error
            raise

    def _to_lua(self, reply: Any) -> Any:
        if reply is None:
            return False
        if isinstance(reply, list):
            return self._lua.table_from([self._to_lua(each) for each in reply])
        return reply

    def _from_lua(self, value: Any) -> Any:
        if value is None or value is False:
            return None
        if value is True:
            return 1
        if isinstance(value, int | float):
            return int(value)
        if self._is_table(value):
            found: list[Any] = []
            while (each := value[len(found) + 1]) is not None:
                found.append(self._from_lua(each))
            return found
        return value
