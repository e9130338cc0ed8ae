"""The driver of one run: carries out what the run machine asks, and tells it what happens.

A run gives one answer or, where the client has tools of its own, one after the other: `drive` the first, `resume` the
others. Every stream and every call is a task that the driver owns; whatever ends the run (the answer is complete, the
client left, time is up), they are all ended before `drive` returns, but for two kinds that go to the background: a
stream whose model has stopped and whose connection is about to become free, and calls that nobody waits for. The calls
of a parked run go on; who keeps the run resumes it in the end, or abandons and closes it. It can also go on elsewhere:
`state` is what another driver's `restore` takes, and `hand_over` leaves the calls that are under way to the executor,
their results to whoever watches.

The machine is fed from those tasks directly. Nothing awaits between an event and its actions, so no lock is needed
and the path of a chunk is: bytes, delta, machine, bytes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from asynclm.adapters.models.protocol import (
    Ended,
    InjectableStream,
    KeepableStream,
    Model,
    ModelError,
    Noted,
    ReasoningDelta,
    Request,
    Stream,
    TextDelta,
)
from asynclm.cml.machine import Run, RunError
from asynclm.cml.machine import actions as act
from asynclm.cml.machine import events as ev
from asynclm.cml.machine.parked import ParkedState
from asynclm.cml.timeline import Timeline
from asynclm.cml.tools import Catalog
from asynclm.cml.transcript import Segment
from asynclm.cml.usage import Usage
from asynclm.proxy.background import Background
from asynclm.proxy.cache import ANYONE, Caller
from asynclm.proxy.client_names import ClientNames
from asynclm.proxy.errors import own_fault, run_error
from asynclm.proxy.executor import Executor
from asynclm.proxy.handed import Elsewhere, Handed, Happened, Watch
from asynclm.proxy.result import Result
from asynclm.proxy.shown import Shown
from asynclm.proxy.sink import Sink
from asynclm.proxy.wire_id import STEM_BYTES, wire_id

_log = logging.getLogger(__name__)

# After the model has stopped, or has said that it waits, its usage may still come; it is given this long (s).
_USAGE_GRACE_S: Final = 0.5

Wrote = Callable[[int, str], None]


class Driver:
    """Drives one run from its first stream to its end.

    `prepare` turns a transcript into the upstream request. `max_s` bounds each answer, in seconds. `names` are the
    client's for its own tools, `caller` is whom the answer is for. `wrote` is told each piece of text that the model
    writes, as far as it counts, with its stream's number. `began` is when the run did (loop time, s).
    """

    def __init__(
        self,
        run: Run,
        model: Model,
        prepare: Callable[[act.OpenStream], Request],
        executor: Executor,
        timeline: Timeline,
        sink: Sink,
        background: Background,
        *,
        max_s: float,
        names: ClientNames | None = None,
        caller: Caller = ANYONE,
        wrote: Wrote | None = None,
    ) -> None:
        self._run = run
        self._model = model
        self._prepare = prepare
        self._executor = executor
        self._timeline = timeline
        self._sink = sink
        self._background = background
        self._max_s = max_s
        self._names = names or ClientNames()
        self.handed: dict[str, Handed] = {}  # calls that the client was sent and has not answered, by the client's id
        self.stem = os.urandom(STEM_BYTES).hex()  # of the ids of this answer's calls
        self.caller = caller
        self._wrote = wrote
        self._loop = asyncio.get_running_loop()
        self.began = self._loop.time()
        self._finished: asyncio.Future[act.Finish] = self._loop.create_future()
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._open: dict[int, Stream] = {}
        self._trapped: set[int] = set()  # closed streams whose model is about to stop by itself
        self._draining: set[int] = set()  # streams whose model has stopped by itself
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._detached: set[int] = set()  # calls that may outlive the run
        self._elsewhere: Elsewhere | None = None
        self._inherited: set[int] = set()  # calls that are under way there
        self._watches: list[Watch] = []
        self._cached: Counter[str] = Counter()
        self._timers: list[asyncio.TimerHandle] = []
        self._shown = Shown(timeline, self._elapsed)
        self._streams_before = 0  # of earlier answers
        self._calls_before = 0

    @property
    def streams(self) -> int:
        """How many upstream requests the answer has taken."""
        return len(self._streams) - self._streams_before

    @property
    def calls(self) -> int:
        """How many calls were executed in it."""
        return len(self._calls) - self._calls_before

    @property
    def said(self) -> str:
        """The visible text of the answer that is over."""
        return self._shown.text

    @property
    def transcript(self) -> list[Segment]:
        """What the model has written and been told in this run."""
        return self._run.transcript

    @property
    def parked(self) -> bool:
        """Whether the run waits for the client to answer the calls in `handed`."""
        return self._run.parked

    @property
    def state(self) -> ParkedState:
        """The parked run, to go on elsewhere."""
        return self._run.state

    @property
    def cached(self) -> dict[str, int]:
        """How the cache served its calls: how many times each way."""
        return dict(self._cached)

    async def drive(self) -> act.Finish:
        """Run to the end of the answer. Cancel the awaiting task to abandon the run."""
        return await self._answer(lambda: self._run.start(self._loop.time()))

    async def resume(
        self,
        results: Mapping[str, str],
        sink: Sink,
        model: Model,
        prepare: Callable[[act.OpenStream], Request],
        *,
        stop: tuple[str, ...] = (),
        max_tokens: int | None = None,
        single: bool = False,
        tools: Catalog | None = None,
        names: ClientNames | None = None,
        words: Sequence[str] = (),
        caller: Caller = ANYONE,
        wrote: Wrote | None = None,
    ) -> act.Finish:
        """Go on with a parked run, whose client has come back, to the end of a further answer.

        `results` are what its tools returned, JSON text by the client's id of the call, `words` what the user said
        behind them; `stop`, `max_tokens` and `single` bound the answer. `tools` and `names` are those of the answer, if
        they are others. Cancel the awaiting task to abandon the run.
        """
        self._sink, self._model, self._prepare, self.caller = sink, model, prepare, caller
        self._wrote = wrote
        self._finished = self._loop.create_future()
        self._streams_before, self._calls_before = len(self._streams), len(self._calls)
        self._cached.clear()
        self._shown.clear()
        values = {call.number: (True, results[id]) for id, call in self.handed.items() if id in results}
        self.handed = {}
        self.stem = os.urandom(STEM_BYTES).hex()
        if names is not None:
            self._names = names
        return await self._answer(
            lambda: self._run.resume(
                values,
                self._loop.time(),
                stop=stop,
                max_tokens=max_tokens,
                single=single,
                catalog=tools,
                words=words,
            )
        )

    def restore(
        self,
        state: ParkedState,
        handed: Mapping[str, Handed],
        happened: Iterable[Happened],
        elsewhere: Elsewhere,
    ) -> None:
        """Be the parked run that another driver has kept, in place of `drive`; `resume` goes on with it.

        `happened` is what it was told since. Calls that are open still may be under way `elsewhere`.
        """
        self._carry_out(self._run.restore(state, self._loop.time()))
        self.handed = dict(handed)
        self._elsewhere = elsewhere
        self._inherited = {call.number for call in state.calls}
        for event in happened:
            self._tell(event)

    def watch(self, watch: Watch) -> None:
        """Call this with every result, and with what is said from outside, from now on."""
        self._watches.append(watch)

    def unwatch(self, watch: Watch) -> None:
        """Call it no more."""
        if watch in self._watches:
            self._watches.remove(watch)

    async def settle(self) -> None:
        """Wait until no call of a parked run is under way."""
        calls = [task for task in self._calls.values() if not task.done()]
        if calls:
            await asyncio.wait(calls)

    def hand_over(self) -> None:
        """Another driver goes on with the parked run: the calls that are under way end by themselves."""
        self._tell(ev.TakenOver())
        for number, task in self._calls.items():
            if not task.done() and number not in self._detached:
                self._detached.add(number)
                self._executor.detach(task)

    def cancel_calls(self) -> None:
        """Nobody wants what comes of the calls of a run that was handed over."""
        for task in self._calls.values():
            task.cancel()

    async def aclose(self) -> None:
        """End what a parked run, which was abandoned, has left."""
        await self._clean_up()

    async def _answer(self, begin: Callable[[], list[act.Action]]) -> act.Finish:
        deadline = self._loop.call_later(self._max_s, self._expire)
        try:
            self._carry_out(begin())
            # Shielded: whoever abandons the run cancels this wait, and a bare future with it; the run still finishes.
            return await asyncio.shield(self._finished)
        except asyncio.CancelledError:
            self.abandon(RunError("The client closed the connection.", 499, "cancelled", "client_disconnected"))
            raise
        finally:
            deadline.cancel()
            if self._run.parked:
                for task in self._streams.values():  # all of them closed, or about to end
                    self._background.adopt(task)
            else:
                await self._clean_up()

    def abandon(self, error: RunError) -> None:
        """End the run with an error, now."""
        self._tell(ev.Abandoned(error))

    def interrupt(self, source: str, text: str, scheduling: ev.Scheduling = ev.Scheduling.INTERRUPT) -> bool:
        """Put somebody's words into the running answer. False if they can't reach the model any more."""
        if not self._run.listens:
            return False
        said = ev.OutsideInterrupt(source, text, scheduling)
        self._tell(said)
        if self._run.parked:
            self._watched(said)
        return True

    def _watched(self, event: Happened) -> None:
        for watch in list(self._watches):
            watch(event)

    def _expire(self) -> None:
        message = f"The run took longer than {self._max_s:g} s, which is as long as it may."
        self._fire(ev.Abandoned(RunError(message, 504, "timeout_error", "run_timeout")))

    async def _clean_up(self) -> None:
        for timer in self._timers:
            timer.cancel()
        ending: list[asyncio.Task[None]] = []
        for number, task in self._streams.items():
            if number in self._draining:
                self._background.adopt(task)
            else:
                ending.append(task)
        for number, task in self._calls.items():
            if number in self._detached:
                self._executor.detach(task)
            else:
                ending.append(task)
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.gather(*ending, return_exceptions=True)

    # ------------------------------------------------------------------ what the machine asks

    def _tell(self, event: ev.Event) -> None:
        self._carry_out(self._run.handle(event, self._loop.time()))

    def _carry_out(self, actions: list[act.Action]) -> None:
        for action in actions:
            match action:
                case act.EmitText(text=text):
                    self._sink.text(text)
                    self._shown.add(text)
                case act.EmitReasoning(text=text, field=field):
                    self._sink.reasoning(text, field)
                case act.Note(kind=kind, stream=stream, call=call, data=data):
                    self._shown.note()
                    self._timeline.add(self._elapsed(), kind, stream=stream, call=call, **data)
                case act.OpenStream(stream=stream):
                    self._streams[stream] = self._spawn(self._read(action), f"stream {stream}")
                case act.CloseStream(stream=stream, trapped=trapped):
                    self._close(stream, trapped)
                case act.PauseStream(stream=stream, expected=expected):
                    self._injectable(stream).pause(expected)
                case act.Inject(stream=stream, text=text):
                    self._injectable(stream).inject(text)
                case act.Execute(call=call, detached=detached):
                    self._calls[call] = self._spawn(self._execute(action), f"call {call}")
                    if detached:
                        self._detached.add(call)
                case act.EmitToolCall(call=call, id=id, spec=spec, arguments=arguments):
                    wire = wire_id(self.stem, len(self.handed), id)
                    name, given = self._names.theirs(spec.name, arguments)
                    handed = Handed(call, name, msgspec.json.encode(given).decode())
                    self.handed[wire] = handed
                    self._sink.tool_call(wire, name, handed.arguments)
                case act.CancelCall(call=call):
                    self._detached.discard(call)
                    if call in self._calls:  # else a fault kept it from being begun
                        self._calls[call].cancel()
                case act.SetTimer(seconds=seconds):
                    self._timers.append(self._loop.call_later(seconds, self._fire, ev.TimerFired()))
                case act.Finish():
                    if not self._finished.done():  # as it is where a parked run is abandoned
                        self._finished.set_result(action)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._loop.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A run must not wait for a task that broke down."""
        if task.cancelled():
            if any(task is stream and self._run.reads(number) for number, stream in self._streams.items()):
                self.abandon(RunError("The upstream request was cancelled.", 502, "upstream_error", "cancelled"))
        elif (error := task.exception()) is not None:
            self._broke_down(task.get_name(), error)

    def _fire(self, event: ev.Event) -> None:
        try:
            self._tell(event)
        except Exception as error:
            self._broke_down("a timer", error)

    def _broke_down(self, what: str, error: BaseException) -> None:
        _log.error("%s of a run broke down", what, exc_info=error)
        failed = own_fault(error)
        try:
            self.abandon(failed)
        finally:
            if not self._finished.done():
                self._finished.set_result(act.Finish("error", Usage(), failed))

    def _elapsed(self) -> float:
        return round(self._loop.time() - self.began, 6)

    def _injectable(self, stream: int) -> InjectableStream:
        return cast(InjectableStream, self._open[stream])  # only models that declare `inject` are asked

    def _close(self, stream: int, trapped: bool) -> None:
        opened: object = self._open.get(stream)
        if isinstance(opened, KeepableStream) and not self._run.failed:
            opened.keep()  # for the next answer of a parked run, or the conversation's next turn
        task = self._streams[stream]
        # A stream is often closed for what it has just written, from within its own task: that one ends by itself.
        if task is not asyncio.current_task():
            task.cancel()
        elif trapped:
            self._trapped.add(stream)

    # ------------------------------------------------------------------ streams

    async def _read(self, action: act.OpenStream) -> None:
        number = action.stream
        try:
            stream = await self._model.open(self._prepare(action))
        except ModelError as error:
            self._tell(ev.StreamFailed(number, run_error(error)))
            return
        self._open[number] = stream
        try:
            self._tell(ev.StreamOpened(number))
            await self._sink.open()
            await self._pump(number, stream)
        finally:
            del self._open[number]
            await stream.aclose()

    async def _pump(self, number: int, stream: Stream) -> None:
        """Feed the machine from a stream until it ends or is closed."""
        handle = self._run.handle
        sink_text = self._sink.text
        wrote = self._wrote
        ended: str | None = None
        try:
            async with asyncio.timeout(None) as patience:
                async for batch in stream:
                    self._shown.stream = number
                    now = self._loop.time()
                    for event in batch:
                        if type(event) is TextDelta:
                            if wrote is not None and self._run.reads(number):
                                wrote(number, event.text)
                            for action in handle(ev.TextArrived(number, event.text), now):
                                if type(action) is act.EmitText:
                                    sink_text(action.text)
                                    self._shown.add(action.text)
                                else:
                                    self._carry_out([action])
                        elif type(event) is ReasoningDelta:
                            self._tell(ev.ReasoningArrived(number, event.text, event.field))
                        elif type(event) is Ended:
                            ended = event.reason
                            self._draining.add(number)
                            patience.reschedule(self._loop.time() + _USAGE_GRACE_S)
                        elif type(event) is Usage:
                            self._tell(ev.UsageReported(number, event))
                        elif type(event) is Noted:
                            self._shown.note()
                            self._timeline.add(self._elapsed(), event.kind, stream=number, **event.data)
                    if ended is not None and self._run.live:
                        self._tell(ev.StreamEnded(number, ended))  # before anything is injected into what has stopped
                    self._shown.pace(now)
                    await self._sink.flush()
                    if ended is None and not self._run.reads(number):
                        if number not in self._trapped:
                            return  # closed for what it wrote
                        if patience.when() is None:
                            patience.reschedule(self._loop.time() + _USAGE_GRACE_S)
        except ModelError as error:
            if ended is None:  # which the machine ignores for a stream that it has closed
                self._tell(ev.StreamFailed(number, run_error(error)))
                return
        except TimeoutError:
            if ended is None:
                return  # it did not stop at its trap
        self._shown.stream = number
        self._tell(ev.StreamEnded(number, ended or "stop"))
        self._shown.note()
        await self._sink.flush()

    # ------------------------------------------------------------------ calls

    async def _execute(self, action: act.Execute) -> None:
        number = action.call
        result: Result | None = None
        if number in self._inherited and self._elsewhere is not None:
            self._inherited.discard(number)
            result = await self._elsewhere.result(number)
        if result is None:
            result = await self._executor.execute(
                action.spec,
                action.arguments,
                dispatched=lambda: self._tell(ev.CallDispatched(number)),
                caller=self.caller,
            )
        if result.cache is not None:
            self._cached[result.cache] += 1
        arrived = ev.ResultArrived(number, result.ok, result.value, result.ms, result.cache)
        self._tell(arrived)
        self._watched(arrived)
