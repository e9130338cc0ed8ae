"""What the run machine is made of: its state, and the steps that everything else is put together from.

`Run` (`run.py`) says what happens when; `Branching` (`branching.py`) is the part of it that carries several streams
at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Final

import msgspec

from .. import events as cml
from ..render import render_interrupt
from ..tokens import Unescaper
from ..tools import CallError, Catalog, Owner, error_value
from ..transcript import Segment
from ..usage import Meter
from .actions import Action, CancelCall, CloseStream, EmitText, EmitToolCall, Execute, Finish, Note, OpenStream
from .ahead import Ahead
from .branch import Branch
from .calls import RUNTIME, Call, Ledger
from .costs import Costs
from .events import RunError, Scheduling, StreamEnded
from .interrupt import Interrupt
from .policies import Policy
from .stream import Stream
from .visible import Visible

PARKED: Final = "tool_calls"  # the reason of an answer that ends because the client has calls of its own to answer


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one answer of a run. What they end, they end with `finish_reason` "length" (the slips: with "stop").

    At `max_branches` open branches, further results wait and go into the next one together. They do so, too, once the
    branches of the run have cost `max_extra_tokens` (prompts and answers, by estimate where the upstream did not say).
    """

    max_resumes: int = 64
    max_calls: int = 128
    max_branches: int = 4
    max_extra_tokens: int = 65_536
    max_empty_traps: int = 3
    max_forgeries: int = 3
    max_output_chars: int = 4_000_000


def _unchecked(error: Exception) -> CallError:
    return CallError("invalid_arguments", f"the arguments could not be checked ({type(error).__name__})")


class Core(ABC):
    """State and elementary steps of one run.

    Without a `catalog` the text is not read for blocks: whatever the model writes is the answer.
    `inject` says whether the model takes injection; `stop` and `max_tokens` bound the visible answer; `prompt_chars`
    is the length of the client's prompt, used to estimate the usage of streams whose own count is lost. `costs` is
    what is known of the model's and the tools' speed; the run adds what it sees. A run that goes on from elsewhere
    begins with a `transcript`, in which the ids `used` stand. `single`: an answer holds one call to the client's tools
    at most; others wait for the next.
    """

    def __init__(
        self,
        catalog: Catalog | None,
        policy: Policy,
        *,
        inject: bool = False,
        limits: Limits | None = None,
        stop: tuple[str, ...] = (),
        max_tokens: int | None = None,
        prompt_chars: int = 0,
        costs: Costs | None = None,
        transcript: Iterable[Segment] = (),
        used: Iterable[str] = (),
        single: bool = False,
    ) -> None:
        self.finished = False
        self.failed = False  # it ended with an error
        self.parked = False  # the answer has ended, and the run waits for what the client's tools return
        self.transcript: list[Segment] = list(transcript)
        self._policy = policy
        self._inject = inject
        self._limits = limits or Limits()
        self._plain = catalog is None
        self._midway = False  # there is more in the piece of text that is being read
        self._calls = Ledger(catalog, self._limits.max_calls)
        self._calls.reserve(used)
        self._single = single
        self._handed = 0  # calls that the client was sent and has not answered
        self._visible = Visible(stop, max_tokens)
        self._unescaper = Unescaper()  # the model may quote what was escaped on its way in
        self._meter = Meter(prompt_chars)
        self._costs = costs or Costs()
        self._now = 0.0  # of the event that is being handled (s)
        self._queue: list[Interrupt] = []
        self._stream: Stream | None = None  # the one that writes the transcript on; none while branches are open
        self._branches: list[Branch] = []  # in the order in which they opened, not yet folded
        self._ahead: Ahead | None = None  # open beside branches; never beside the stream above
        self._alone = False  # no further branches: one has failed
        self._extra: list[int] = []  # streams that a run without branches would not have opened
        self._streams = 0
        self._first = 0  # stream of the answer that is being written
        self._waiting = False
        self._named: frozenset[str] = frozenset()  # the calls that a trap waits for
        self._empty_traps = 0
        self._forgeries = 0
        self._chars = 0
        self._alarm: float | None = None  # when the policy wants to be asked again (s)
        self._alarmed = False  # that time has passed since the last result
        self._decided = ""  # what the policy chose since the last result
        self._actions: list[Action] = []

    @abstractmethod
    def _advance(self, behind: int | None = None) -> None:
        """Ask the policy for its move and carry it out. `behind`: the offset of a block that was just completed."""

    @abstractmethod
    def _go_on(self, id: str, value: str) -> None:
        """Tell the model something of the runtime's own, at once."""

    def _do(self, action: Action) -> None:
        self._actions.append(action)

    def _taken(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def _too_many_streams(self) -> bool:
        return self._streams - self._first > self._limits.max_resumes

    def _pending(self) -> bool:
        """Whether something has happened, or will, that the model must be told."""
        return self._pending_calls() or self._news()

    def _pending_calls(self) -> bool:
        return bool(self._calls.running or self._calls.unstarted)

    def _news(self) -> bool:
        """Whether something is queued that the model must be told."""
        return any(interrupt.scheduling is not Scheduling.SILENT for interrupt in self._queue)

    # ------------------------------------------------------------------ streams

    def _open(self, told: tuple[str, ...] = ()) -> None:
        """Open the stream that writes the transcript on, and whose last segment tells the results with these ids."""
        self._drop_ahead()
        self._waiting = False
        self._stream = Stream(self._streams, self._now, told)
        self._request(tuple(self.transcript))

    def _request(self, transcript: tuple[Segment, ...]) -> None:
        number = self._streams
        self._streams += 1
        self._meter.opened(number, sum(len(segment.text) for segment in transcript))
        if number:
            self._do(Note("resumed", stream=number))
        self._do(Note("opened", stream=number, data={"resume": number}))
        self._do(OpenStream(number, transcript))

    def _begin(self, stream: Stream) -> None:
        stream.opened = stream.begun = True
        self._costs.speed.began(self._now - stream.since)
        stream.since = self._now
        self._do(Note("first_token", stream=stream.number))

    def _keep(self, stream: Stream, end: int | None) -> None:
        """Move the stream's text into the transcript, as far as the offset `end`."""
        text = stream.take(end)
        if text:
            self.transcript.append(Segment("model", text))

    def _cut(self, stream: Stream, end: int | None, *, trapped: bool = False) -> None:
        self._keep(stream, end)
        self._stream = None
        self._close(stream, trapped=trapped)

    def _close(self, stream: Stream, *, trapped: bool = False) -> None:
        if not stream.ended:
            self._measure(stream, complete=trapped)
            self._do(CloseStream(stream.number, trapped))
            self._do(Note("closed", stream=stream.number, data={"reason": "cut"}))

    def _drop_ahead(self) -> None:
        """The stream that was opened ahead is of no use: something came that it was not told."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return
        for event in ahead.held:
            if type(event) is StreamEnded:
                ahead.stream.ended = True
                self._do(Note("closed", stream=event.stream, data={"reason": event.reason}))
            else:
                self._meter.wrote(event.stream)  # what nobody reads has its price, too
        self._close(ahead.stream)

    def _measure(self, stream: Stream, *, complete: bool) -> None:
        """The stream ends here: learn from it how fast the model writes. One that took injections has waited, too.

        Where it is `complete`, the model has said all it had to say to what it was told.
        """
        if stream.begun and not self._inject:
            self._costs.speed.wrote(self._meter.pieces(stream.number) - 1, self._now - stream.since)
            if complete:
                self._led(stream, on=False)

    def _led(self, stream: Stream, *, on: bool) -> None:
        """Remember whether what the stream was told led to a call."""
        told, stream.told = stream.told, ()
        for id in told:
            call = self._calls.named(id)
            if call is not None and call.spec.owner is Owner.SERVER:
                self._costs.tools.of(call.spec).led(on)

    # ------------------------------------------------------------------ what they write

    def _emit(self, text: str) -> None:
        """Text for the client, as far as it is visible. It may end the run."""
        if not self._plain:
            text = self._unescaper.feed(text)
            if not text:
                return
        shown = self._visible.text(text)
        if shown:
            self._actions.append(EmitText(shown))
        if self._visible.finished is not None:
            self._end(self._visible.finished)

    def _accept(self, block: cml.Call, stream: Stream, branch: Branch | None = None) -> Call | None:
        """Enter a call; None for one that is rejected, which the model will be told."""
        self._drop_ahead()
        if stream.told:
            self._led(stream, on=True)
        number = self._calls.number()
        try:
            call = self._calls.accept(number, block, branch)
        except Exception as raised:  # a schema can break its checker in more ways than one: never the run
            error = raised if isinstance(raised, CallError) else _unchecked(raised)
            data = {"id": block.id, "error": error.type, "message": error.message}
            self._do(Note("rejected", stream=stream.number, call=number, data=data))
            id = block.id if block.id is not None and error.type != "invalid_id" else RUNTIME
            self._queue.append(Interrupt(id, error_value(error), branch=None if branch is None else branch.number))
            if self._calls.written > 4 * self._limits.max_calls:
                self._end("length")  # it writes nothing but mistakes
            return None
        if call.id is not None and call.id != block.id:
            stream.give_id(block, call.id)
        written = {"id": call.id, "tool": call.spec.name, "arguments": call.arguments}
        self._do(Note("call", stream=stream.number, call=number, data=written))
        return call

    def _execute(self, call: Call) -> None:
        if call.spec.owner is Owner.CLIENT and self._single and self._handed:
            return  # it waits for the next answer
        self._calls.start(call, self._now)
        if call.spec.owner is Owner.CLIENT:
            assert call.id is not None, "the ledger gives it one"
            self._handed += 1
            self._do(Note("handed", call=call.number))
            self._do(EmitToolCall(call.number, call.id, call.spec, call.arguments))
            return
        self._do(Execute(call.number, call.spec, call.arguments, detached=call.id is None))

    def _told(self, interrupts: list[Interrupt], stream: int) -> Segment:
        """What stream `stream` is told, as it stands in the transcript."""
        text = "\n".join(render_interrupt(each.id, each.value) for each in interrupts)
        self._do(Note("interrupt", stream=stream, data={"ids": [each.id for each in interrupts], "text": text}))
        return Segment("runtime", text)

    # ------------------------------------------------------------------ the end

    def _end(self, reason: str) -> None:
        """The answer is complete (or as complete as it may get)."""
        self._emit_rest()
        # An upstream's own word for it says nothing here: it was offered no tools to call that way.
        self._finish("stop" if reason == PARKED else reason, None)

    def _emit_rest(self) -> None:
        """The answer ends here: send what of its text was held back."""
        held = self._unescaper.finish()
        rest = (self._visible.text(held) if held and self._visible.finished is None else "") + self._visible.end()
        if rest:
            self._do(EmitText(rest))

    def _fail(self, error: RunError) -> None:
        self.failed = True
        self._do(Note("error", data={"type": error.type, "message": error.message}))
        self._finish("error", error)

    def _finish(self, reason: str, error: RunError | None) -> None:
        if self._stream is not None:
            self._cut(self._stream, None)
        for branch in self._branches:
            if not branch.settled:
                self._close(branch.stream)
        self._drop_ahead()
        for interrupt in self._queue:
            if interrupt.scheduling is not None:
                data = {"source": interrupt.id, "text": msgspec.json.decode(interrupt.value)}
                self._do(Note("unheard", data=data))
        for call in self._calls.live():
            if call.id is None and error is None:
                self._do(Note("detached", call=call.number))  # nobody waits for it: it goes on behind the answer
                continue
            if call.spec.owner is Owner.SERVER:
                self._do(CancelCall(call.number))
            self._do(Note("cancelled", call=call.number))
        self.finished = True
        self.parked = False
        usage = self._meter.total(self._first)
        self._do(Note("finished", data={"reason": reason, "usage": msgspec.to_builtins(usage)}))
        self._do(Finish(reason, usage, error))
