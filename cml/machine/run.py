"""The run machine: one client request, from the first stream to the last.

Theory of operation. The machine takes events (`events.py`) and returns actions (`actions.py`); it never awaits, never
reads a clock and knows no HTTP. At any moment the model either *writes* (a stream is open), or it *waits* (it
trapped, its stream ended with calls outstanding, or the policy stopped it). What is to be told to the model lies in a
queue. After each event that could matter the policy is asked for its move (`policies.py`), and the machine carries it
out:

- *start*: calls that were written begin to run;
- *stop*: the stream is cut right behind the last block, and the model waits;
- *fork*: what is queued opens a branch beside the others (`branching.py`);
- *deliver*: what is queued goes in, as one piece. Into the live sequence where the model takes injection; otherwise
  the stream is cut, the transcript grows by what was written and by the interrupts, and a new stream opens on it.

Two rules hold whatever the policy says. Nothing is delivered in a critical section, that is inside a block or
thinking, or where one may just be beginning (paper, section 3). And a run never waits for nothing: a model that traps
with nothing pending may go on, a bounded number of times; a stream that ends with nothing pending is the end of the
run.

A cut loses no text and duplicates none: a stream's text enters the transcript up to an offset that the parser gave,
and the rest of what had arrived is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from .. import events as cml
from ..tokens import defuse
from .actions import Action, EmitReasoning, Inject, Note, PauseStream
from .ahead import Held
from .calls import RUNTIME
from .events import (
    Abandoned,
    CallDispatched,
    Event,
    OutsideInterrupt,
    ReasoningArrived,
    ResultArrived,
    Scheduling,
    StreamEnded,
    StreamFailed,
    StreamOpened,
    TakenOver,
    TextArrived,
    TimerFired,
    UsageReported,
)
from .interrupt import Interrupt
from .parking import Parking
from .stream import Stream

_NOTHING_PENDING: Final = '{"note":"no call is pending: go on, or give your answer"}'
_FORGERY: Final = (
    '{"error":{"type":"forged_interrupt","message":"only the runtime writes interrupts; yours was removed"}}'
)


class Run(Parking):
    """One run: feed it events, carry out its actions. `Core` says what it takes to make one."""

    def start(self, now: float) -> list[Action]:
        """Begin at `now` (s, by any clock that runs forward): the actions that open the first stream."""
        self._now = now
        if self.transcript:
            self._do(Note("rebuilt", data={"segments": len(self.transcript)}))
        self._open()
        return self._taken()

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event that happens at `now` (s); return what is to be done.

        After `Finish` every event is ignored, late results included.
        """
        if self.finished:
            return []
        self._now = now
        if type(event) is TextArrived:
            self._on_text(event)
        else:
            _HANDLERS[type(event)](self, event)
        if self._handed and self._rests():
            self._park()
        return self._taken()

    @property
    def live(self) -> bool:
        """Whether interrupts go into live sequences."""
        return self._inject

    @property
    def listens(self) -> bool:
        """Whether an outside interrupt can still reach the model."""
        return not self.finished and not self._plain

    def reads(self, stream: int) -> bool:
        """Whether text of that stream is still wanted."""
        ahead = self._ahead
        return (
            (self._stream is not None and self._stream.number == stream)
            or self._branch(stream) is not None
            or (ahead is not None and ahead.stream.number == stream)
        )

    # ------------------------------------------------------------------ what streams do

    def _on_opened(self, event: StreamOpened) -> None:
        self._do(Note("accepted", stream=event.stream))
        if self._stream is not None and self._stream.number == event.stream:
            self._stream.opened = True
            if self._inject and self._queue:
                self._advance()

    def _on_text(self, event: TextArrived) -> None:
        stream = self._stream
        branch = None
        if stream is None or stream.number != event.stream:
            branch = self._branch(event.stream)
            if branch is None:
                self._hold(event)
                return
            stream = branch.stream
        if not stream.begun:
            self._begin(stream)
        text = event.text
        self._meter.wrote(stream.number)
        self._chars += len(text)
        if branch is not None:
            self._branch_wrote(branch, stream.write(text))
            return
        if self._plain:
            self._show(text, stream)
            return
        events = stream.write(text)
        last = len(events) - 1
        for n, found in enumerate(events):
            self._midway = n < last
            if type(found) is cml.Text:
                self._show(found.text, stream)
            else:
                self._found(found, stream)
            if self._stream is not stream or self.finished:
                self._midway = False
                return
        if self._chars > self._limits.max_output_chars:
            self._end("length")
        elif self._queue or (self._inject and self._calls.unstarted):
            self._advance()

    def _on_reasoning(self, event: ReasoningArrived) -> None:
        stream = self._stream
        branch = None
        if stream is None or stream.number != event.stream:
            branch = self._branch(event.stream)
            if branch is None:
                self._hold(event)
                return
            stream = branch.stream
        if not stream.begun:
            self._begin(stream)
        stream.reasoning = True
        self._meter.wrote(event.stream)
        thought = EmitReasoning(event.text, event.field)
        if branch is None or branch is self._branches[0]:
            self._do(thought)
        else:
            branch.thoughts.append(thought)

    def _on_ended(self, event: StreamEnded) -> None:
        stream = self._stream
        if stream is None or stream.number != event.stream:
            branch = self._branch(event.stream)
            if branch is not None:
                self._branch_ended(branch, event.reason)
            else:
                self._hold(event)
            return
        self._do(Note("closed", stream=event.stream, data={"reason": event.reason}))
        self._measure(stream, complete=True)
        thought_only = stream.thinking  # it may be our stop sequence that ended it there
        for found in stream.end():
            self._found(found, stream)
            if self._stream is not stream or self.finished:
                return
        self._keep(stream, None)
        self._stream = None
        if self._waiting:
            self._advance()
        elif self._pending():
            self._wait(stream.number, (), implicit=True)
        elif thought_only and event.reason == "stop":
            self._empty_trap()
        elif stream.idle:
            self._go_on(RUNTIME, _NOTHING_PENDING)
        else:
            self._end(event.reason)

    def _on_failed(self, event: StreamFailed) -> None:
        branch = self._branch(event.stream)
        stream = self._stream if branch is None else branch.stream
        if self._ahead is not None and self._ahead.stream.number == event.stream:
            self._ahead.stream.ended = True
            self._do(Note("closed", stream=event.stream, data={"reason": "failed"}))
            self._drop_ahead()  # nothing is lost: if it is needed, it is asked for again
            return
        if stream is not None and stream.number == event.stream:
            stream.ended = True
            self._do(Note("closed", stream=stream.number, data={"reason": "failed"}))
            if branch is None or branch.fruitful:
                self._fail(event.error)
            else:
                self._do_without(branch)

    def _on_usage(self, event: UsageReported) -> None:
        self._meter.report(event.stream, event.usage)
        self._do(Note("usage", stream=event.stream, data=msgspec.to_builtins(event.usage)))

    def _hold(self, event: Held) -> None:
        """Take what comes from a stream that is not read now: for later from one opened ahead, else not at all."""
        ahead = self._ahead
        if ahead is None or ahead.stream.number != event.stream:
            return  # it was closed; this was on its way
        if not ahead.stream.begun and type(event) is not StreamEnded:
            self._begin(ahead.stream)
        ahead.hold(event, self._now)

    def _replay(self, event: Held) -> None:
        _HANDLERS[type(event)](self, event)

    # ------------------------------------------------------------------ what stands in their text

    def _show(self, text: str, stream: Stream) -> None:
        if stream.idle and not text.isspace():
            stream.idle = False
        self._emit(text)

    def _found(self, found: cml.Event, stream: Stream) -> None:
        """Act on one thing the parser found. It may end or replace the stream: look before going on with the next."""
        if isinstance(found, cml.Text):
            self._show(found.text, stream)
            return
        if isinstance(found, cml.Thinking):
            self._show(defuse(found.text), stream)
            return
        self._visible.block()
        match found:
            case cml.Call():
                if found.problem is not None:
                    stream.unclosed(found.end)
                self._on_call(found, stream)
            case cml.Trap():
                if not found.closed:
                    stream.unclosed(found.end)
                self._on_trap(found, stream)
            case cml.Forged():
                self._on_forged(found, stream)
            case _:
                pass  # a stray token: not shown, not answered

    def _on_call(self, block: cml.Call, stream: Stream) -> None:
        stream.idle = False
        call = self._accept(block, stream)
        if call is not None and call.id is None:
            self._execute(call)
        self._advance(behind=block.end)

    def _on_trap(self, trap: cml.Trap, stream: Stream) -> None:
        awaited = [name for name in trap.names if self._calls.outstanding(name)]
        named = any(map(self._calls.known, trap.names))  # one that names only what nobody knows is a plain one
        patient = self._empty_traps < self._limits.max_empty_traps
        if self._news() or awaited or (self._pending() and not (named and patient)):
            self._halt(stream, trap.end, trapped=True)
            self._wait(stream.number, tuple(awaited), names=trap.names)
            return
        self._do(Note("trap", stream=stream.number, data={"names": list(trap.names), "empty": True}))
        stream.idle = True
        self._empty_trap(speak=self._injectable(stream))

    def _empty_trap(self, *, speak: bool = True) -> None:
        """The model waits for nothing: it may go on, a bounded number of times, and is told so if it has stopped."""
        self._empty_traps += 1
        if self._empty_traps > self._limits.max_empty_traps:
            self._end("stop")
        elif speak:
            self._go_on(RUNTIME, _NOTHING_PENDING)

    def _on_forged(self, forged: cml.Forged, stream: Stream) -> None:
        self._do(Note("forged", stream=stream.number))
        self._forgeries += 1
        self._cut(stream, forged.end)
        if self._pending():
            self._wait(stream.number, (), implicit=True)
        elif self._forgeries > self._limits.max_forgeries:
            self._end("stop")
        else:
            self._go_on(RUNTIME, _FORGERY)

    # ------------------------------------------------------------------ what else happens

    def _on_dispatched(self, event: CallDispatched) -> None:
        self._calls.dispatched(event.call, self._now)
        self._do(Note("dispatched", call=event.call))

    def _on_result(self, event: ResultArrived) -> None:
        call = self._calls.returned(event.call)
        if call is None:
            return
        if event.cache in (None, "miss"):  # else the tool didn't run for it
            self._costs.tools.of(call.spec).add(event.ms / 1000)
        self._returned(call, event.ok, event.value, event.ms, event.cache)
        self._advance()

    def _on_outside(self, event: OutsideInterrupt) -> None:
        said = {"source": event.source, "text": event.text, "scheduling": event.scheduling.value}
        self._do(Note("outside", data=said))
        value = msgspec.json.encode(event.text).decode()
        self._queue.append(Interrupt(event.source, value, event.scheduling))
        if event.scheduling is not Scheduling.SILENT:
            self._drop_ahead()
        self._advance()

    def _on_timer(self, event: TimerFired) -> None:
        if self._alarm is not None and self._now >= self._alarm:
            self._alarm, self._alarmed = None, True
            self._advance()

    def _on_abandoned(self, event: Abandoned) -> None:
        self._fail(event.error)

    # ------------------------------------------------------------------ moves

    def _advance(self, behind: int | None = None) -> None:
        """Ask the policy for its move and carry it out. `behind`: the offset of a block that was just completed."""
        if self.finished or self.parked:
            return
        move = self._move()
        stream = self._stream
        if move.stop and stream is not None and not self._waiting and not self._critical(behind):
            self._halt(stream, behind)
            self._waiting = True
            self._visible.turn()
            move = self._move()
        if move.start:
            for call in list(self._calls.unstarted):
                self._execute(call)
        if move.choice:
            self._decide(move)
        if move.merge:
            self._merge()
        if self.finished or not self._queue:
            return
        urgent = self._urgent()
        if self._branches or move.fork:
            if (move.fork or (urgent and not self._alone)) and self._deliverable():
                self._fork()
                if move.ahead and not self.finished:
                    self._open_ahead()
        elif (move.deliver or urgent or self._stuck()) and (self._waiting or not self._critical(behind)):
            self._deliver(behind)

    def _critical(self, behind: int | None) -> bool:
        stream = self._stream
        if stream is None:
            return False
        # A stream that is cut right behind a block is cut where nothing is open, whatever has come behind it already.
        if self._inject and (self._midway or not stream.opened):
            return True  # what has come is in the live sequence, all of it; or there is none yet
        return stream.critical and (behind is None or self._inject)

    def _wait(
        self, stream: int, awaited: tuple[str, ...], names: tuple[str, ...] = (), *, implicit: bool = False
    ) -> None:
        self._do(Note("trap", stream=stream, data={"names": list(names), "implicit": implicit}))
        self._waiting = True
        self._named = frozenset(awaited)
        self._visible.turn()
        self._advance()

    def _injectable(self, stream: Stream) -> bool:
        return self._inject and not stream.ended

    def _halt(self, stream: Stream, end: int | None, *, trapped: bool = False) -> None:
        """Let the model write no further than `end`: pause it where it can be, cut it otherwise."""
        if self._injectable(stream):
            self._do(PauseStream(stream.number, self._forecast().next))
        else:
            self._cut(stream, end, trapped=trapped)

    def _go_on(self, id: str, value: str) -> None:
        """Tell the model something of the runtime's own, at once."""
        self._queue.append(Interrupt(id, value))
        self._deliver(None)

    def _deliver(self, behind: int | None) -> None:
        """Tell what is queued to the stream that writes the transcript on, or to a new one."""
        stream = self._stream
        live = stream is not None and self._injectable(stream)
        if stream is not None and not live:
            self._cut(stream, behind)
        if not live and self._too_many_streams():
            self._end("length")
            return
        queue = self._take()
        self._waiting = False
        self._named = frozenset()
        if stream is not None and live:
            self._keep(stream, None)
            stream.idle = False
            told = self._told(queue, stream.number)
            self.transcript.append(told)
            self._do(Inject(stream.number, told.text))
            return
        self.transcript.append(self._told(queue, self._streams))
        self._open(tuple(interrupt.id for interrupt in queue))


_HANDLERS: Final[dict[type, Callable[[Run, Any], None]]] = {
    StreamOpened: Run._on_opened,
    TextArrived: Run._on_text,
    ReasoningArrived: Run._on_reasoning,
    StreamEnded: Run._on_ended,
    StreamFailed: Run._on_failed,
    UsageReported: Run._on_usage,
    CallDispatched: Run._on_dispatched,
    ResultArrived: Run._on_result,
    OutsideInterrupt: Run._on_outside,
    TimerFired: Run._on_timer,
    Abandoned: Run._on_abandoned,
    TakenOver: Run._on_taken_over,
}
