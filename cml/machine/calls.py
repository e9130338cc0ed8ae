"""The calls of one run: what was written, what runs, what has returned, what the model has been told."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable
from keyword import iskeyword
from typing import Any, Final

import msgspec

from .. import events
from ..body import parse_body
from ..tools import CallError, Catalog, Owner, ToolSpec
from .branch import Branch
from .parked import OpenCall

USER: Final = "user"  # the head of an outside interrupt from a person
RUNTIME: Final = "_"  # the head of what the runtime itself has to say
AGENT: Final = "agent_"  # how the heads of other agents' interrupts begin
RESERVED: Final = frozenset({USER, RUNTIME})


_BEFORE: Final = -1  # the number of every call from before the run

_encode: Final = msgspec.json.Encoder(order="deterministic").encode


class Status(enum.Enum):
    """How far a call has come."""

    WRITTEN = enum.auto()
    RUNNING = enum.auto()
    SHARED = enum.auto()  # the same call of a sibling branch runs for it
    RETURNED = enum.auto()


class Call:
    """One accepted call. `id` is None for a call that wants no interrupt (paper, section 3)."""

    __slots__ = ("also", "arguments", "branch", "id", "number", "place", "result", "since", "spec", "status")

    def __init__(self, number: int, id: str | None, spec: ToolSpec, arguments: dict[str, Any]) -> None:
        self.number = number
        self.id = id
        self.spec = spec
        self.arguments = arguments
        self.status = Status.WRITTEN
        self.branch: int | None = None  # the branch that wrote it, until that is folded
        self.place = 0  # from how many segments on the transcript holds it
        self.also: list[Call] = []  # the same call of sibling branches: run once, told to each
        self.result: str | None = None  # JSON text
        self.since = 0.0  # when it was handed to the executor or, once that is known, when its tool began to run (s)


def _reserved(id: str) -> bool:
    return id in RESERVED or id.startswith(AGENT)


class Ledger:
    """Every call block of a run, accepted or not; numbered from 0 as they were written."""

    def __init__(self, catalog: Catalog | None, max_calls: int) -> None:
        self._catalog = catalog
        self._max_calls = max_calls
        self._written = 0
        self._first = 0  # of the answer that is being written
        self._calls: dict[int, Call] = {}
        self._numbers: dict[str, int] = {}  # by id, of the accepted calls: after an error the id may be used again
        self.unstarted: list[Call] = []  # with an id, in the order written
        self.running = 0  # with an id

    def reserve(self, ids: Iterable[str]) -> None:
        """These ids stand in the transcript that the run begins with: no call may use them again."""
        self._numbers.update(dict.fromkeys(ids, _BEFORE))

    def renew(self, catalog: Catalog | None = None) -> None:
        """A further answer begins: as many calls are allowed as in the first, to the tools of `catalog` if given."""
        self._first = self._written
        if catalog is not None:
            self._catalog = catalog

    def kept(self) -> tuple[OpenCall, ...]:
        """The calls whose results the model is still to be told, as `restore` takes them."""
        calls = sorted([*self.unstarted, *self.awaited()], key=lambda call: call.number)
        return tuple(
            OpenCall(
                call.number,
                call.id,
                call.spec.name,
                call.arguments,
                call.spec.owner,
                call.spec.effect,
                tuple((each.number, each.id) for each in call.also if each.id is not None),
                call.status is Status.RUNNING,
            )
            for call in calls
        )

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id that was used."""
        return tuple(self._numbers)

    def restore(self, calls: Iterable[OpenCall], written: int, now: float) -> None:
        """Enter what `kept` returned in another run, in which so many blocks had been written."""
        assert self._catalog is not None, "a run without tools is not parked"
        specs = {spec.name: spec for spec in self._catalog.specs()}
        self._written = written
        for kept in calls:
            spec = specs.get(kept.tool)
            if spec is None or spec.owner is not kept.owner:
                spec = ToolSpec(name=kept.tool, owner=kept.owner)
            call = self._enter(kept.number, kept.id, spec, kept.arguments)
            if kept.id is not None:
                self.unstarted.append(call)
            if kept.begun:
                self.start(call, now)
            for number, id in kept.also:
                other = self._enter(number, id, spec, kept.arguments)
                other.status = Status.SHARED
                self.running += 1
                call.also.append(other)

    def _enter(self, number: int, id: str | None, spec: ToolSpec, arguments: dict[str, Any]) -> Call:
        call = self._calls[number] = Call(number, id, spec, arguments)
        if id is not None:
            self._numbers[id] = number
        return call

    @property
    def written(self) -> int:
        """How many blocks were written in this answer."""
        return self._written - self._first

    @property
    def total(self) -> int:
        """How many blocks were written in the run."""
        return self._written

    def number(self) -> int:
        """The number of the next block."""
        number = self._written
        self._written += 1
        return number

    def accept(self, number: int, block: events.Call, branch: Branch | None = None) -> Call:
        """Check a call block. Raises `CallError` saying what is wrong with it; then it must not run.

        An id that a sibling of `branch` uses is replaced by one of its own. A call to a client's tool always has an id,
        since the client is going to say what came of it.
        """
        id = block.id
        if branch is not None and id is not None and id in self._numbers and not self._seen(self._numbers[id], branch):
            id = self._free(id)
        if id is not None:
            if not id.isidentifier() or iskeyword(id):
                raise CallError("invalid_id", f"{id[:60]!r} is not a name: use letters, digits and _, as in a1")
            if _reserved(id):
                raise CallError("invalid_id", f"the id {id!r} is reserved: use another one")
            if id in self._numbers:
                raise CallError("duplicate_id", f"the id {id!r} was used before; this call was not run: use a new id")
        if block.problem is not None:
            raise CallError("not_closed", f"{block.problem}; the call was not run: write it again")
        if number - self._first >= self._max_calls:
            raise CallError("too_many_calls", f"only {self._max_calls} calls are allowed; this one was not run")
        assert self._catalog is not None, "a run without tools reads no blocks"
        spec, arguments = self._catalog.check(parse_body(block.body))
        if id is None and spec.owner is Owner.CLIENT:
            name = spec.name.rpartition(".")[2]
            id = name if name not in self._numbers and not _reserved(name) else self._free(name)
        call = self._enter(number, id, spec, arguments)
        if id is not None:
            self.unstarted.append(call)
        if branch is not None:
            call.branch = branch.number
        return call

    def twin(self, call: Call, branch: Branch) -> Call | None:
        """The same call, written by a branch that `branch` can't see: it is one execution."""
        written = _encode(call.arguments)
        for other in self._calls.values():
            if (
                other is not call
                and other.spec.name == call.spec.name
                and other.status in (Status.RUNNING, Status.RETURNED)
                and not self._seen(other.number, branch)
                and _encode(other.arguments) == written
            ):
                return other
        return None

    def join(self, call: Call, twin: Call) -> None:
        """Let `call` share the execution of `twin`."""
        call.status = Status.RETURNED
        if call.id is None:
            return
        self.unstarted.remove(call)
        if twin.status is Status.RUNNING:
            call.status = Status.SHARED
            self.running += 1
            twin.also.append(call)

    def folded(self, branch: int, place: int) -> None:
        """The calls of that branch stand in the transcript now, which has `place` segments."""
        for call in self._calls.values():
            if call.branch == branch:
                call.branch, call.place = None, place

    def _seen(self, number: int, branch: Branch) -> bool:
        call = self._calls.get(number)
        if call is None:
            return True
        return call.branch == branch.number or (call.branch is None and call.place <= branch.fork)

    def _free(self, id: str) -> str:
        stem = f"call_{id}" if _reserved(id) else id
        return next(new for n in itertools.count(2) if (new := f"{stem}_{n}") not in self._numbers)

    def start(self, call: Call, now: float = 0.0) -> None:
        """The call is handed to the executor."""
        call.status = Status.RUNNING
        call.since = now
        if call.id is not None:
            self.unstarted.remove(call)
            self.running += 1

    def dispatched(self, number: int, now: float) -> None:
        """The call's tool has begun to run."""
        call = self._calls.get(number)
        if call is not None:
            call.since = now

    def returned(self, number: int) -> Call | None:
        """The call has come back; None if it was not running (it came back before, or never was)."""
        call = self._calls.get(number)
        if call is None or call.status is not Status.RUNNING:
            return None
        for each in (call, *call.also):
            each.status = Status.RETURNED
            if each.id is not None:
                self.running -= 1
        return call

    def named(self, id: str) -> Call | None:
        """The accepted call of that id."""
        return self._calls.get(self._numbers.get(id, -1))

    def known(self, id: str) -> bool:
        """Whether a call of that id was accepted."""
        return id in self._numbers

    def outstanding(self, id: str) -> bool:
        """Whether a call of that id was accepted and has not returned."""
        call = self.named(id)
        return call is not None and call.status is not Status.RETURNED

    def awaited(self) -> list[Call]:
        """The calls that run now and whose results the model is to be told."""
        return [call for call in self.live() if call.id is not None or call.also]

    def handed(self) -> list[Call]:
        """The calls that the client was sent, and has not answered."""
        return [call for call in self.live() if call.spec.owner is Owner.CLIENT]

    def live(self) -> list[Call]:
        """The calls that run now, those without an id included."""
        return [call for call in self._calls.values() if call.status is Status.RUNNING]
