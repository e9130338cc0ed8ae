"""Tools of the client's own: their calls go out with the answer, and the run waits for the client's next request.

A call to such a tool is checked like any other, and sent to the client when its policy starts it. The proxy's own
calls, and the streams, go on beside it. When nothing writes any more, the answer can't go on without the client: it
ends, and the run is *parked*. Results of the proxy's own calls, and what is said from outside, are queued meanwhile.
`resume` takes what the client's tools returned, and the run goes on in a further answer: on the same transcript, so
that its prompt begins with all that was sent before.

A parked run can be kept, `state`, and go on in another machine, `restore`. Which of its own calls are run there is the
driver's affair: each is executed once more when the run is resumed, unless its result has come before.

Limits, usage and the client's bounds are those of one answer. A live sequence does not outlast it: the next answer
opens a new stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from ..tools import CallError, Catalog, Owner, error_value
from .actions import Action, Execute, Finish, Note
from .calls import USER, Call
from .core import PARKED
from .deciding import Deciding
from .events import Scheduling, TakenOver
from .interrupt import Interrupt
from .parked import ParkedState
from .visible import Visible

NO_RESULT: Final = error_value(CallError("no_result", "the client gave no result for this call"))


class Parking(Deciding):
    """The part of a run that waits for the client's tools."""

    _restored = False  # its calls are not under way here

    @property
    def state(self) -> ParkedState:
        """The parked run, to go on elsewhere. Raises RuntimeError for a run that is not parked."""
        if not self.parked:
            raise RuntimeError("the run is not parked")
        return ParkedState(
            tuple(self.transcript),
            self._calls.ids,
            self._calls.total,
            self._streams,
            self._calls.kept(),
            tuple(self._queue),
            tuple(sorted(self._named)),
            self._meter.total(),
        )

    def restore(self, state: ParkedState, now: float) -> list[Action]:
        """In place of `start`: be the run that was parked. It must have been made with the state's transcript and ids.

        What has happened since is told by `handle`, then comes `resume`.
        """
        self._now = now
        self._calls.restore(state.calls, state.written, now)
        self._queue = list(state.queue)
        self._named = frozenset(state.named)
        self._streams = state.streams
        self._waiting = self.parked = self._restored = True
        usage = msgspec.to_builtins(state.usage)
        self._do(Note("restored", data={"calls": [call.number for call in state.calls], "usage": usage}))
        return self._taken()

    def resume(
        self,
        results: Mapping[int, tuple[bool, str]],
        now: float,
        *,
        stop: tuple[str, ...] = (),
        max_tokens: int | None = None,
        single: bool = False,
        catalog: Catalog | None = None,
        words: Sequence[str] = (),
    ) -> list[Action]:
        """Begin a further answer: the client says what its tools returned.

        `results` by call: whether it is a value, and its JSON text. The model is told of those that are missing, and
        `words` that the user said behind them. `stop`, `max_tokens` and `single` bound this answer; `catalog` are its
        tools, if they are others. Raises RuntimeError for a run that is not parked.
        """
        if not self.parked:
            raise RuntimeError("the run is not parked")
        self.parked = False
        self._now = now
        self._handed = 0
        self._single = single
        self._visible = Visible(stop, max_tokens)
        self._visible.turn()
        self._first = self._streams
        self._extra.clear()
        self._alone = False
        self._empty_traps = self._forgeries = self._chars = 0
        self._calls.renew(catalog)
        handed = self._calls.handed()
        self._do(Note("continued", data={"results": sum(call.number in results for call in handed)}))
        for call in handed:
            ok, value = results.get(call.number, (False, NO_RESULT))
            self._calls.returned(call.number)
            self._returned(call, ok, value, (now - call.since) * 1000)
        for text in words:
            self._do(Note("outside", data={"source": USER, "text": text, "scheduling": Scheduling.INTERRUPT.value}))
            self._queue.append(Interrupt(USER, msgspec.json.encode(text).decode(), Scheduling.INTERRUPT))
        if self._restored:
            self._restored = False
            for call in self._calls.awaited():
                if call.spec.owner is Owner.SERVER:
                    self._do(Execute(call.number, call.spec, call.arguments))
        self._advance()
        if self._handed and self._rests():
            self._park()
        return self._taken()

    def _on_taken_over(self, event: TakenOver) -> None:
        """What is under way is not cancelled: the run that goes on waits for it."""
        if self.parked:
            self._do(Note("taken", data={"calls": [call.number for call in self._calls.live()]}))
            self.finished, self.parked = True, False

    def _returned(self, call: Call, ok: bool, value: str, ms: float, cache: str | None = None) -> None:
        """Queue what a call returned."""
        data = {"ok": ok, "value": value, "ms": round(ms, 3)}
        self._do(Note("result", call=call.number, data=data if cache is None else {**data, "cache": cache}))
        self._alarm, self._alarmed, self._decided = None, False, ""
        call.result = value
        for each in (call, *call.also):
            if each.id is not None:
                self._queue.append(Interrupt(each.id, value, branch=each.branch))

    def _rests(self) -> bool:
        """Whether nothing writes, and nothing is about to."""
        return self._waiting and not self._branches and not self.finished and not self.parked

    def _park(self) -> None:
        if self._stream is not None:  # it takes injections, and waits for one
            self._cut(self._stream, None)
        self._drop_ahead()
        self._emit_rest()
        self.parked = True
        usage = self._meter.total(self._first)
        data = {"calls": [call.number for call in self._calls.handed()], "usage": msgspec.to_builtins(usage)}
        self._do(Note("parked", data=data))
        self._do(Finish(PARKED, usage))
