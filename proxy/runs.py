"""Starts runs, and goes on with parked ones: puts machine, model, executor and answer together for a chat request."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from asynclm.adapters.models.protocol import Model, Request
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.machine import POLICIES, Run, RunError
from asynclm.cml.machine.actions import Finish, OpenStream
from asynclm.cml.render import STOP
from asynclm.cml.timeline import Timeline
from asynclm.proxy.answer import StreamedAnswer, WholeAnswer
from asynclm.proxy.background import Background
from asynclm.proxy.cache import ANYONE, Caller
from asynclm.proxy.chat import ChatRequest, escaped, prompt, text_size
from asynclm.proxy.client_tools import Kit, Kits, python_name
from asynclm.proxy.config import Config
from asynclm.proxy.driver import Driver, Sink
from asynclm.proxy.errors import INVALID_REQUEST, api_error
from asynclm.proxy.executor import Executor
from asynclm.proxy.history import History, as_cml, told
from asynclm.proxy.parked import Parked, ParkedRun
from asynclm.proxy.recording.recordings import LIVE, Recordings, Wish
from asynclm.proxy.recording.tap import Tap
from asynclm.proxy.recording.tape import Tape
from asynclm.proxy.registry import Registry, new_timeline
from asynclm.proxy.room import Roomy
from asynclm.proxy.sinks import StreamSink, WholeSink
from asynclm.proxy.speeds import Speeds
from asynclm.proxy.turns import Turns
from asynclm.proxy.upstreams import Route, Upstreams

RUN_ID_HEADER: Final = "x-asynclm-run-id"
REQUEST_ID_HEADER: Final = "x-request-id"
_OFF: Final = "off"
_LEFT: Final = RunError("The client closed the connection.", 499, "cancelled", "client_disconnected")
_CHANGED: Final = RunError(
    "The client came back with another request than the one this run waited for.",
    409,
    INVALID_REQUEST,
    "request_changed",
)


class Runs:
    """Answers chat requests that are not passed through."""

    def __init__(
        self,
        config: Config,
        toolbox: Toolbox,
        upstreams: Upstreams,
        executor: Executor,
        registry: Registry,
        background: Background,
        recordings: Recordings | None = None,
    ) -> None:
        self._server = config.server
        self._limits = config.limits.of_a_run()
        self._room = config.limits.cml_tokens
        self._max_result_bytes = config.limits.max_result_bytes
        self._kits = Kits(toolbox)
        self._upstreams = upstreams
        self._executor = executor
        self._registry = registry
        self._background = background
        self._recordings = recordings
        self._speeds = Speeds(config)
        self._turns = Turns(config.limits.turns_chars)
        self._parked = Parked(config.limits.parked_s, config.limits.max_parked, self._give_up)

    async def answer(
        self, request: web.Request, chat: ChatRequest, route: Route, policy: str, wish: Wish = LIVE
    ) -> web.StreamResponse:
        """Run with the proxy's tools, and the client's; or go on with the run that the client comes back to."""
        kit = self._kits.of(chat.functions)
        run = self._come_back(chat, route, policy, _caller(request))
        if run is None:
            return await self._begin(request, chat, route, policy, kit, wish)
        return await self._go_on(request, chat, run, wish)

    async def plain(
        self, request: web.Request, chat: ChatRequest, route: Route, wish: Wish = LIVE
    ) -> web.StreamResponse:
        """Answer without tools, from an upstream whose API is not the client's: only the protocol is translated."""
        return await self._begin(request, chat, route, _OFF, None, wish)

    def driver(
        self,
        chat: ChatRequest,
        route: Route,
        timeline: Timeline,
        sink: Sink,
        *,
        api_key: str | None = None,
        with_tools: bool = True,
        caller: Caller = ANYONE,
        tape: Tape | None = None,
    ) -> Driver:
        """Put a run together under the policy that `timeline` names; it starts when it is driven. Knows no HTTP."""
        kit = self._kits.of(chat.functions) if with_tools else None
        history = self._history(chat, route, kit, api_key)
        return self._driver(chat, route, timeline, sink, kit, history, api_key, caller, tape)

    async def aclose(self, error: RunError) -> None:
        """End the parked runs with this error, and those that would be parked from now on."""
        runs = self._parked.close(error)
        for run in runs:
            self._abandon(run, error)
        await asyncio.gather(*(run.driver.aclose() for run in runs))

    # ------------------------------------------------------------------ what a run is made of

    def _driver(
        self,
        chat: ChatRequest,
        route: Route,
        timeline: Timeline,
        sink: Sink,
        kit: Kit | None,
        history: History,
        api_key: str | None,
        caller: Caller,
        tape: Tape | None,
    ) -> Driver:
        run = Run(
            None if kit is None else kit.toolbox,
            POLICIES["auto" if timeline.policy == _OFF else timeline.policy],
            inject=self._upstreams.model(route).abilities(route.upstream_model).inject,
            limits=self._limits,
            stop=chat.stop,
            max_tokens=chat.max_tokens,
            prompt_chars=text_size(history.messages),
            costs=self._speeds.costs(route),
            transcript=history.transcript,
            used=history.used,
        )
        driver = Driver(
            run,
            self._model(chat, route, kit),
            self._prepare(chat, route, history.messages, kit, api_key),
            self._executor,
            timeline,
            sink if tape is None else Tap(sink, tape),
            self._background,
            max_s=self._server.run_timeout_s,
            names=None if kit is None else kit.names,
            caller=caller,
            wrote=None if tape is None else tape.wrote,
        )
        if tape is not None:
            tape.began = driver.began
        return driver

    def _history(self, chat: ChatRequest, route: Route, kit: Kit | None, key: str | None) -> History:
        """The messages and the transcript to begin with."""
        if kit is None:
            return History(chat.messages, [], [], len(chat.messages))
        ours = {theirs: name for name, theirs in kit.names.items()}
        history = as_cml(
            escaped(chat.messages),
            chat.rounds,
            self._turns.recall(key, chat.messages),
            lambda name: ours.get(name) or python_name(name),
            self._max_result_bytes,
            prefill=self._upstreams.model(route).abilities(route.upstream_model).prefill,
        )
        return msgspec.structs.replace(history, messages=prompt(history.messages, kit.instructions))

    def _model(self, chat: ChatRequest, route: Route, kit: Kit | None) -> Model:
        model: Model = self._upstreams.model(route)
        return model if kit is None or chat.max_tokens is None else Roomy(model, self._room)

    def _prepare(
        self, chat: ChatRequest, route: Route, messages: Sequence[dict[str, Any]], kit: Kit | None, api_key: str | None
    ) -> Callable[[OpenStream], Request]:
        abilities = self._upstreams.model(route).abilities(route.upstream_model)
        # A live sequence must not end at a trap: it waits there for what is injected.
        stop = (STOP,) if kit is not None and abilities.stop_sequences and not abilities.inject else ()

        def prepare(action: OpenStream) -> Request:
            return Request(
                model=route.upstream_model,
                messages=messages,
                transcript=action.transcript,
                parameters=chat.parameters,
                max_tokens=chat.max_tokens,
                max_tokens_key=chat.max_tokens_key,
                stop=stop,
                api_key=api_key,
                tools=() if kit is None else kit.specs,
            )

        return prepare

    # ------------------------------------------------------------------ answers

    async def _begin(
        self, request: web.Request, chat: ChatRequest, route: Route, policy: str, kit: Kit | None, wish: Wish
    ) -> web.StreamResponse:
        id = f"run_{os.urandom(12).hex()}"  # not to be guessed: who knows it may interrupt the run
        sink, headers = self._sink(request, chat, id)
        timeline = new_timeline(id, chat.model, policy)
        caller = _caller(request)
        history = self._history(chat, route, kit, caller.key)
        tape = None if self._recordings is None else self._recordings.tape(timeline, wish)
        driver = self._driver(chat, route, timeline, sink, kit, history, caller.key, caller, tape)
        self._registry.begin(timeline, driver)
        run = ParkedRun(id, driver, route, policy, chat.functions, chat.messages, history.messages, history.start, kit)
        return await self._serve(run, sink, headers, driver.drive(), tape)

    async def _go_on(self, request: web.Request, chat: ChatRequest, run: ParkedRun, wish: Wish) -> web.StreamResponse:
        """The run's client has come back: the answer goes on where it stopped."""
        run.answers += 1
        run.messages = chat.messages
        sink, headers = self._sink(request, chat, run.id, run.answers)
        self._registry.resume(run.id)
        caller = _caller(request)
        tape = None
        timeline = self._registry.timeline(run.id)
        if self._recordings is not None and timeline is not None:
            late = asyncio.get_running_loop().time() - run.driver.began
            tape = self._recordings.tape(timeline, wish, answer=run.answers, late=late)
            if tape is not None:
                tape.began = run.driver.began + late
        given = {id: told(text, self._max_result_bytes) for id, text in chat.rounds[-1].results.items()}
        answering = run.driver.resume(
            given,
            sink if tape is None else Tap(sink, tape),
            self._model(chat, run.route, run.kit),
            self._prepare(chat, run.route, run.prompt, run.kit, caller.key),
            stop=chat.stop,
            max_tokens=chat.max_tokens,
            caller=caller,
            wrote=None if tape is None else tape.wrote,
        )
        return await self._serve(run, sink, headers, answering, tape)

    def _sink(
        self, request: web.Request, chat: ChatRequest, run: str, answer: int = 1
    ) -> tuple[StreamSink | WholeSink, Mapping[str, str]]:
        suffix = "" if answer == 1 else f"-{answer}"
        headers = {RUN_ID_HEADER: run, REQUEST_ID_HEADER: run + suffix}
        id = f"chatcmpl-{run[4:]}{suffix}"
        if not chat.stream:
            return WholeSink(WholeAnswer(id, chat.model), headers), headers
        streamed = StreamedAnswer(id, chat.model, include_usage=chat.include_usage)
        return StreamSink(request, streamed, headers, self._background, self._server.heartbeat_s), headers

    async def _serve(
        self,
        run: ParkedRun,
        sink: StreamSink | WholeSink,
        headers: Mapping[str, str],
        answering: Coroutine[Any, Any, Finish],
        tape: Tape | None,
    ) -> web.StreamResponse:
        driver = run.driver
        parked, failed = False, True
        try:
            finish = await answering
            if finish.error is None:
                failed = False
                if driver.parked:
                    parked = True
                    self._registry.park(run.id)
                    self._parked.add(run)
                elif run.kit is not None and finish.reason == "stop":
                    self._turns.keep(driver.caller.key, run.messages, driver.said, run.start, driver.transcript)
                facts = _facts(run.id, driver)
                if tape is not None:
                    tape.finish(finish.reason, finish.usage, facts)
                return await sink.finish(finish.reason, finish.usage, facts)
            if tape is not None:
                tape.fail(finish.error)
            if isinstance(sink, StreamSink) and sink.opened:
                return await sink.fail(finish.error)
            raise api_error(finish.error, headers)
        finally:
            sink.close()
            if tape is not None:
                tape.fail(_LEFT)  # unless it has ended
            if not parked:
                self._registry.end(run.id, failed=failed)

    # ------------------------------------------------------------------ parked runs

    def _come_back(self, chat: ChatRequest, route: Route, policy: str, caller: Caller) -> ParkedRun | None:
        """The parked run that this request is the continuation of.

        One that waited for something else is over: then the request says more than the run knows.
        """
        if not chat.rounds:
            return None
        last = chat.rounds[-1]
        calls = [call.id for call in last.calls]
        run = self._parked.take(calls)
        if run is None:
            return None
        if (
            run.driver.parked
            and last.end == len(chat.messages)
            and run.driver.caller.key == caller.key
            and run.functions == chat.functions
            and (run.route, run.policy) == (route, policy)
            and run.driver.handed.keys() >= set(calls)
            and run.messages == chat.messages[: last.start]
        ):
            return run
        self._give_up(run, _CHANGED)
        return None

    def _give_up(self, run: ParkedRun, error: RunError) -> None:
        self._abandon(run, error)
        self._background.spawn(run.driver.aclose(), "end of a parked run")

    def _abandon(self, run: ParkedRun, error: RunError) -> None:
        run.driver.abandon(error)
        self._registry.end(run.id, failed=True)


def _facts(id: str, driver: Driver) -> dict[str, Any]:
    """What only this proxy knows of an answer, for `usage.asynclm`."""
    facts: dict[str, Any] = {"run": id, "streams": driver.streams, "calls": driver.calls}
    return {**facts, "cache": driver.cached} if driver.cached else facts


def _caller(request: web.Request) -> Caller:
    return Caller(client_key(request), request.headers)


def client_key(request: web.Request) -> str | None:
    """The client's own key, as either vendor's clients send it."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return request.headers.get("x-api-key") or request.headers.get("api-key")
