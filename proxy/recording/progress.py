"""Where a recorded model stands in its script, and what it writes next. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from asynclm.cml import events as cml
from asynclm.cml.machine.calls import RUNTIME
from asynclm.cml.parser import Parser
from asynclm.cml.render import render_trap
from asynclm.cml.transcript import Segment
from asynclm.proxy.recording.script import Beat, Names, Script, State, parts

_TRAP_PIECES: Final = 3  # that a trap comes in


class Progress:
    """Where a model stands that has written and been told what a transcript says."""

    def __init__(self, script: Script, transcript: Iterable[Segment] = ()) -> None:
        self._script = script
        self._names = Names()
        self._told: set[str] = set()
        self._calls: list[str] = []  # written, with an id
        self._heard: dict[int, int] = {}  # characters of each block, white space not counted
        self._done: set[int] = set()
        self.forced = False  # it has gone on without having been told all
        for segment in transcript:
            if segment.author == "runtime":
                self.told(segment.text)
            else:
                self._wrote(segment.text)

    @property
    def state(self) -> State:
        """What it has been told."""
        return frozenset(self._told)

    def told(self, text: str) -> None:
        """It is told these interrupts."""
        for event in _events(text):
            if isinstance(event, cml.Interrupt) and event.id != RUNTIME:
                self._told.add(self._names.name(event.id))

    def next(self) -> list[Beat] | None:
        """What it writes now; None when it has come to its end. It counts as written."""
        ready = self._ready()
        if ready is None and self._pending():
            text = self._script.traps.get(self.state, render_trap())
            return [Beat(self._script.tpot_s, part) for part in parts(text, _TRAP_PIECES)]
        if ready is None:
            ready = next((n for n in range(len(self._script.blocks)) if n not in self._done), None)
            if ready is None:
                return None
            self.forced = True
        block = self._script.blocks[ready]
        beats = _rest(block.beats, self._heard.get(ready, 0))
        self._finish(ready)
        return beats

    @property
    def waits(self) -> bool:
        """Whether what it writes next is that it waits."""
        return self._ready() is None and self._pending()

    def _pending(self) -> bool:
        return any(id not in self._told for id in self._calls)

    def _ready(self) -> int | None:
        for number, block in enumerate(self._script.blocks):
            if number not in self._done and block.needs <= self._told:
                return number
        return None

    def _finish(self, number: int) -> None:
        self._done.add(number)
        id = self._script.blocks[number].id
        if id is not None:
            self._calls.append(id)

    def _wrote(self, text: str) -> None:
        for event in _events(text):
            match event:
                case cml.Call():
                    self._called(event)
                case cml.Text() | cml.Thinking():
                    self._said("".join(event.text.split()))
                case _:
                    pass

    def _called(self, call: cml.Call) -> None:
        left = [n for n, block in enumerate(self._script.blocks) if n not in self._done and block.body is not None]
        body = call.body.strip()
        for same_id in (True, False):
            for number in left:
                block = self._script.blocks[number]
                if block.body == body and (block.id == call.id or not same_id):
                    self._finish(number)
                    return

    def _said(self, heard: str) -> None:
        """Text that may be that of several blocks, or of a part of one."""
        for number, block in enumerate(self._script.blocks):
            if not heard:
                return
            if number in self._done or block.body is not None:
                continue
            rest = "".join(block.text.split())[self._heard.get(number, 0) :]
            if heard.startswith(rest):
                self._done.add(number)
                heard = heard[len(rest) :]
            elif rest.startswith(heard):
                self._heard[number] = self._heard.get(number, 0) + len(heard)
                return


def _events(text: str) -> list[cml.Event]:
    parser = Parser(interrupts=True)
    return [*parser.feed(text), *parser.finish()]


def _rest(beats: Sequence[Beat], heard: int) -> list[Beat]:
    """The beats behind so many characters, white space not counted."""
    if not heard:
        return list(beats)
    rest: list[Beat] = []
    for beat in beats:
        if not heard:
            rest.append(beat)
            continue
        for at, char in enumerate(beat.text):
            if not heard:
                rest.append(Beat(beat.gap, beat.text[at:]))
                break
            heard -= not char.isspace()
    return rest
