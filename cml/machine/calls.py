"""The calls of one run: what was written, what runs, what has returned, what the model has been told."""

from __future__ import annotations

import enum
from keyword import iskeyword
from typing import Any, Final

from .. import events
from ..body import parse_body
from ..tools import CallError, Catalog, ToolSpec

USER: Final = "user"  # the head of an outside interrupt from a person
RUNTIME: Final = "_"  # the head of what the runtime itself has to say
RESERVED: Final = frozenset({USER, RUNTIME})


class Status(enum.Enum):
    """How far a call has come."""

    WRITTEN = enum.auto()
    RUNNING = enum.auto()
    RETURNED = enum.auto()


class Call:
    """One accepted call. `id` is None for a call that wants no interrupt (paper, section 3)."""

    __slots__ = ("arguments", "id", "number", "spec", "status")

    def __init__(self, number: int, id: str | None, spec: ToolSpec, arguments: dict[str, Any]) -> None:
        self.number = number
        self.id = id
        self.spec = spec
        self.arguments = arguments
        self.status = Status.WRITTEN


class Ledger:
    """Every call block of a run, accepted or not; numbered from 0 as they were written."""

    def __init__(self, catalog: Catalog | None, max_calls: int) -> None:
        self._catalog = catalog
        self._max_calls = max_calls
        self._written = 0
        self._calls: dict[int, Call] = {}
        self._numbers: dict[str, int] = {}  # by id, of the accepted calls: after an error the id may be used again
        self.unstarted: list[Call] = []  # with an id, in the order written
        self.running = 0  # with an id

    def number(self) -> int:
        """The number of the next block."""
        number = self._written
        self._written += 1
        return number

    def accept(self, number: int, block: events.Call) -> Call:
        """Check a call block. Raises `CallError` saying what is wrong with it; then it must not run."""
        id = block.id
        if id is not None:
            if not id.isidentifier() or iskeyword(id):
                raise CallError("invalid_id", f"{id[:60]!r} is not a name: use letters, digits and _, as in a1")
            if id in RESERVED:
                raise CallError("invalid_id", f"the id {id!r} is reserved: use another one")
            if id in self._numbers:
                raise CallError("duplicate_id", f"the id {id!r} was used before; this call was not run: use a new id")
        if block.problem is not None:
            raise CallError("not_closed", f"{block.problem}; the call was not run: write it again")
        if number >= self._max_calls:
            raise CallError("too_many_calls", f"only {self._max_calls} calls are allowed; this one was not run")
        assert self._catalog is not None, "a run without tools reads no blocks"
        spec, arguments = self._catalog.check(parse_body(block.body))
        call = self._calls[number] = Call(number, id, spec, arguments)
        if id is not None:
            self._numbers[id] = number
            self.unstarted.append(call)
        return call

    def start(self, call: Call) -> None:
        """The call is handed to the executor."""
        call.status = Status.RUNNING
        if call.id is not None:
            self.unstarted.remove(call)
            self.running += 1

    def returned(self, number: int) -> Call | None:
        """The call has come back; None if it was not running (it came back before, or never was)."""
        call = self._calls.get(number)
        if call is None or call.status is not Status.RUNNING:
            return None
        call.status = Status.RETURNED
        if call.id is not None:
            self.running -= 1
        return call

    def outstanding(self, id: str) -> bool:
        """Whether a call of that id was accepted and has not returned."""
        call = self._calls.get(self._numbers.get(id, -1))
        return call is not None and call.status is not Status.RETURNED

    def live(self) -> list[Call]:
        """The calls that run now, those without an id included."""
        return [call for call in self._calls.values() if call.status is Status.RUNNING]
