"""A driver for the run machine's tests: speaks in transcripts of what the model writes and what the machine does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from asynclm.cml.machine import POLICIES, Limits, Run, RunError
from asynclm.cml.machine import actions as act
from asynclm.cml.machine import events as ev
from asynclm.cml.machine.parked import ParkedState
from asynclm.cml.tools import CallError, Invocation, Owner, ToolSpec


class Tools:
    """A catalog of functions that take anything by name: f, g, h, and the client's own k and m."""

    def specs(self) -> list[ToolSpec]:
        return [*(ToolSpec(name=name) for name in "fgh"), *(ToolSpec(name=name, owner=Owner.CLIENT) for name in "km")]

    def check(self, invocation: Invocation) -> tuple[ToolSpec, dict[str, Any]]:
        for spec in self.specs():
            if spec.name == invocation.name:
                return spec, invocation.named
        raise CallError("unknown_tool", f"there is no tool {invocation.name!r}")


class Playbook:
    """Feeds one run and keeps account of what it asked for."""

    def __init__(self, policy: str, **options: Any) -> None:
        self.catalog = Tools()
        self.policy, self.options = policy, options
        self.run = Run(self.catalog, POLICIES[policy], **options)
        self.shown = ""
        self.reasoned = ""
        self.forks = policy in ("fork", "auto") and not options.get("inject")
        self.open: list[int] = []  # streams, the newest last
        self.streams = 0
        self.paused = False
        self.parked = False
        self.prompts: list[tuple[Any, ...]] = []
        self.injected: list[str] = []
        self.executed: list[int] = []
        self.live: set[int] = set()  # executed, not returned or cancelled
        self.cancelled: list[int] = []
        self.handed: dict[int, str] = {}  # calls that the client has, and their ids
        self.sent: list[int] = []  # all that it was sent
        self.answers: list[act.Finish] = []
        self.notes: list[act.Note] = []
        self.finish: act.Finish | None = None
        self.now = 0.0
        self.alarms: list[float] = []
        self._take(self.run.start(self.now))

    def _take(self, actions: Iterable[act.Action]) -> None:
        for action in actions:
            assert self.finish is None, f"{action} after Finish"
            assert not self.parked or isinstance(action, act.Note | act.CancelCall | act.Finish), (
                f"{action} while parked"
            )
            match action:
                case act.OpenStream():
                    assert self.forks or not self.open, "a second stream was opened beside the first"
                    assert action.stream == self.streams
                    self.open.append(action.stream)
                    self.streams, self.paused = self.streams + 1, False
                    self.prompts.append(action.transcript)
                case act.CloseStream():
                    self.open.remove(action.stream)
                case act.PauseStream():
                    assert action.stream == self.stream
                    self.paused = True
                case act.Inject():
                    assert action.stream == self.stream
                    self.paused = False
                    self.injected.append(action.text)
                case act.Execute():
                    assert action.call not in self.executed, "a call ran twice"
                    self.executed.append(action.call)
                    self.live.add(action.call)
                case act.EmitToolCall():
                    assert action.spec.owner is Owner.CLIENT
                    assert action.call not in self.sent, "a call was sent twice"
                    assert not self.handed or not self.run._single, "a second call in one answer"
                    self.sent.append(action.call)
                    self.handed[action.call] = action.id
                case act.CancelCall():
                    self.live.remove(action.call)
                    self.cancelled.append(action.call)
                case act.SetTimer():
                    assert action.seconds > 0
                    self.alarms.append(self.now + action.seconds)
                case act.EmitText():
                    assert action.text
                    self.shown += action.text
                case act.EmitReasoning():
                    self.reasoned += action.text
                case act.Note():
                    self.notes.append(action)
                case act.Finish():
                    self.answers.append(action)
                    self.parked = self.run.parked
                    if not self.parked:
                        self.finish = action
                    assert not self.open, "a stream is left open"
                    assert self.handed or not self.parked, "parked without a call that the client could answer"

    # what may happen

    @property
    def stream(self) -> int | None:
        """The stream that is open (the newest of several)."""
        return self.open[-1] if self.open else None

    def writes(self, *texts: str, stream: int | None = None) -> Playbook:
        """The model writes, on the stream that is open when each piece comes, or on a certain one."""
        for text in texts:
            number = self.stream if stream is None else stream
            assert number in self.open, "the stream is not open"
            self._take(self.run.handle(ev.TextArrived(number, text), self.now))
        return self

    def ends(self, reason: str = "stop", stream: int | None = None) -> Playbook:
        number = self.stream if stream is None else stream
        assert number in self.open, "the stream is not open"
        self.open.remove(number)
        self._take(self.run.handle(ev.StreamEnded(number, reason), self.now))
        return self

    def fails(self) -> Playbook:
        assert self.stream is not None
        self._take(self.run.handle(ev.StreamFailed(self.open.pop(), RunError("it broke")), self.now))
        return self

    def returns(self, call: int, value: Any = None) -> Playbook:
        self.live.discard(call)
        self._take(self.run.handle(ev.ResultArrived(call, True, json.dumps(value), 1.0), self.now))
        return self

    def resumes(self, results: dict[int, Any] | None = None, **bounds: Any) -> Playbook:
        """The client's next request comes, with what its tools returned."""
        assert self.parked
        self.parked = False
        values = {call: (True, json.dumps(value)) for call, value in (results or {}).items()}
        self.handed.clear()
        self._take(self.run.resume(values, self.now, **bounds))
        return self

    def moves(self) -> Playbook:
        """The parked run goes on in another machine. Its calls are under way still."""
        assert self.parked
        state = msgspec.json.decode(msgspec.json.encode(self.run.state), type=ParkedState)
        policy = POLICIES[self.policy]
        self.run = Run(self.catalog, policy, **self.options, transcript=state.transcript, used=state.used)
        self._take(self.run.restore(state, self.now))
        self.live &= {call.number for call in state.calls}  # of others, nobody is told
        self.executed = [call for call in self.executed if call not in self.live]
        self.alarms.clear()
        return self

    def passes(self, seconds: float) -> Playbook:
        """Time passes; timers that are due fire."""
        until = self.now + seconds
        while self.alarms and min(self.alarms) <= until:
            self.now = min(self.alarms)
            self.alarms.remove(self.now)
            self._take(self.run.handle(ev.TimerFired(), self.now))
        self.now = until
        return self

    def handle(self, event: ev.Event) -> Playbook:
        self._take(self.run.handle(event, self.now))
        return self

    # what came of it

    @property
    def prompt(self) -> list[str]:
        """The transcript of the last stream, a line a segment: `model: ...`, `runtime: ...`."""
        return [f"{segment.author}: {segment.text}" for segment in self.prompts[-1]]

    def noted(self, kind: str) -> list[dict[str, Any]]:
        return [note.data for note in self.notes if note.kind == kind]


def small(**limits: int) -> Limits:
    return Limits(**limits)
