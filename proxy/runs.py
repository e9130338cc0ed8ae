"""Starts runs, and goes on with parked ones: puts machine, model, executor and answer together for a chat request."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from asynclm.adapters.models.protocol import Model, Request
from asynclm.adapters.stores import Store
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.machine import POLICIES, Run, RunError
from asynclm.cml.machine.actions import Finish, OpenStream
from asynclm.cml.render import STOP
from asynclm.cml.timeline import Timeline
from asynclm.cml.tools import Effect
from asynclm.cml.transcript import Segment
from asynclm.proxy.answer import StreamedAnswer, WholeAnswer
from asynclm.proxy.background import Background
from asynclm.proxy.cache import ANYONE, Caller
from asynclm.proxy.chat import ChatRequest, escaped, prompt, text_size
from asynclm.proxy.client_tools import Kit, Kits
from asynclm.proxy.config import Config
from asynclm.proxy.conversations.depot import Depot, Found
from asynclm.proxy.conversations.inherited import Inherited
from asynclm.proxy.conversations.lobby import Lobby
from asynclm.proxy.conversations.parked import ParkedRun
from asynclm.proxy.conversations.stored_turns import Kept, StoredTurns
from asynclm.proxy.conversations.turns import Turn, Turns
from asynclm.proxy.conversations.waiting import words_behind
from asynclm.proxy.driver import Driver
from asynclm.proxy.errors import api_error
from asynclm.proxy.executor import Executor
from asynclm.proxy.history import History, as_cml, told
from asynclm.proxy.recording.recordings import LIVE, Recordings, Wish, key_hash
from asynclm.proxy.recording.tap import Tap
from asynclm.proxy.recording.tape import Tape
from asynclm.proxy.registry import Registry, new_timeline
from asynclm.proxy.room import Roomy
from asynclm.proxy.shared_secret import SharedSecret
from asynclm.proxy.sink import Sink
from asynclm.proxy.sinks import StreamSink, WholeSink
from asynclm.proxy.speeds import Speeds
from asynclm.proxy.upstreams import Route, Upstreams

RUN_ID_HEADER: Final = "x-asynclm-run-id"
REQUEST_ID_HEADER: Final = "x-request-id"
_OFF: Final = "off"
_LEFT: Final = RunError("The client closed the connection.", 499, "cancelled", "client_disconnected")


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
        store: Store | None = None,
        secret: SharedSecret | None = None,
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
        self._off_keys = frozenset(each.lower() for each in config.recording.off_keys)
        stored, depot = _kept(config, store, secret)
        self._turns = Turns(config.limits.turns_chars, stored)
        self.lobby = Lobby(registry, config.limits.parked_s, config.limits.max_parked, depot)

    async def answer(
        self, request: web.Request, chat: ChatRequest, route: Route, policy: str, wish: Wish = LIVE
    ) -> web.StreamResponse:
        """Run with the proxy's tools, and the client's; or go on with the run that the client comes back to."""
        kit = self._kits.of(chat.functions)
        caller = _caller(request)
        run = await self.lobby.come_back(chat, route, policy, caller.key)
        if run is None:
            run = await self._restored(chat, route, policy, kit, caller)
        if run is None:
            return await self._begin(request, chat, route, policy, kit, wish)
        return await self._go_on(request, chat, run, kit, wish)

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
        history = self._history(chat, route, kit, [])
        return self._driver(chat, route, timeline, sink, kit, history, api_key, caller, tape)

    async def aclose(self, error: RunError, grace_s: float = 0.0) -> None:
        """Give the calls of parked runs so long to return, then end the runs with this error, and those that would be
        parked from now on.
        """
        await self.lobby.aclose(error, grace_s)

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
            prompt_chars=text_size(history.messages) + (0 if kit is None else len(kit.instructions)),
            costs=self._speeds.costs(route),
            transcript=history.transcript,
            used=history.used,
            single=chat.single,
        )
        driver = Driver(
            run,
            self._model(chat, route, kit),
            self._prepare(chat, route, _told(history.messages, kit), kit, api_key),
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

    def _history(self, chat: ChatRequest, route: Route, kit: Kit | None, turns: Sequence[Turn]) -> History:
        """The messages, but for the instructions, and the transcript to begin with."""
        if kit is None:
            return History(chat.messages, [], [], len(chat.messages))
        return as_cml(
            escaped(chat.messages),
            chat.rounds,
            turns,
            kit.names.ours,
            self._max_result_bytes,
            prefill=self._upstreams.model(route).abilities(route.upstream_model).prefill,
        )

    async def _recall(self, chat: ChatRequest, kit: Kit | None, key: str | None) -> list[Turn]:
        if kit is None:
            return []
        return await self._turns.recall(key, chat.messages, store=self._stores(key))

    def _stores(self, key: str | None) -> bool:
        """Whether conversations of the client with that key go to the store."""
        return not self._off_keys or key_hash(key) not in self._off_keys

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
        id = _new_id()
        sink, headers = self._sink(request, chat, id)
        timeline = new_timeline(id, chat.model, policy)
        caller = _caller(request)
        history = self._history(chat, route, kit, await self._recall(chat, kit, caller.key))
        tape = None if self._recordings is None else self._recordings.tape(timeline, wish)
        driver = self._driver(chat, route, timeline, sink, kit, history, caller.key, caller, tape)
        self._registry.begin(timeline, driver)
        run = ParkedRun(id, driver, route, policy, chat.functions, chat.messages, history.messages, history.start, kit)
        return await self._serve(run, sink, headers, driver.drive(), tape)

    async def _restored(
        self, chat: ChatRequest, route: Route, policy: str, kit: Kit, caller: Caller
    ) -> ParkedRun | None:
        """The run in the store that this request goes on with; a copy of it, where another one has."""
        found = await self.lobby.find(chat, route, policy, caller.key)
        if found is None or self.lobby.depot is None:
            return None
        kept, ours = found
        record = kept.record
        inherited = Inherited(self.lobby.depot, kept, _unsafe(kept, kit), ours=ours)
        try:
            begun = msgspec.structs.replace(
                chat,
                messages=chat.messages[: record.start],
                rounds=tuple(each for each in chat.rounds if each.end <= record.start),
            )
            history = self._history(begun, route, kit, await self._recall(begun, kit, caller.key))
        except BaseException:
            self._background.spawn(inherited.aclose(), "end of a run's calls elsewhere")
            raise
        transcript, used = list(record.state.transcript), list(record.state.used)
        history = History(history.messages, transcript, used, record.start)
        id = record.run if ours else _new_id()
        timeline = new_timeline(id, chat.model, policy)
        sink = WholeSink(WholeAnswer(id, chat.model), {})  # until it goes on
        driver = self._driver(chat, route, timeline, sink, kit, history, caller.key, caller, None)
        driver.restore(record.state, record.waiting.handed, kept.happened, inherited)
        self._registry.begin(timeline, driver)
        return ParkedRun(
            id,
            driver,
            route,
            policy,
            chat.functions,
            chat.messages,
            history.messages,
            record.start,
            kit,
            answers=record.answers if ours else 0,
            inherited=inherited,
        )

    async def _go_on(
        self, request: web.Request, chat: ChatRequest, run: ParkedRun, kit: Kit, wish: Wish
    ) -> web.StreamResponse:
        """The run's client has come back: the answer goes on where it stopped."""
        run.answers += 1
        run.messages = chat.messages
        if run.functions != chat.functions:
            run.functions, run.kit = chat.functions, kit
        sink, headers = self._sink(request, chat, run.id, run.answers)
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
            self._prepare(chat, run.route, _told(run.sent, run.kit), run.kit, caller.key),
            stop=chat.stop,
            max_tokens=chat.max_tokens,
            single=chat.single,
            tools=None if run.kit is None else run.kit.toolbox,
            names=None if run.kit is None else run.kit.names,
            words=words_behind(chat) or (),
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
                facts = _facts(run.id, driver)
                turn: Kept | None = None
                if driver.parked:
                    parked = True
                    key = driver.caller.key
                    await self.lobby.park(run, key, store=self._stores(key))
                elif run.kit is not None and finish.reason == "stop" and _has_more(driver.transcript):
                    turn = Kept(run.start, tuple(driver.transcript))
                    await self.remember(driver.caller.key, run.messages, driver.said, turn)
                if tape is not None:
                    tape.finish(finish.reason, finish.usage, facts, turn)
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
                self.lobby.over(run)
                self._registry.end(run.id, failed=failed)

    async def remember(self, key: str | None, messages: Sequence[dict[str, Any]], said: str, turn: Kept) -> None:
        """Keep what was called and told in a turn, for the next one of the client with that key: `messages` were
        answered with `said`.
        """
        await self._turns.keep(key, messages, said, turn.start, turn.transcript, store=self._stores(key))


def _kept(
    config: Config, store: Store | None, secret: SharedSecret | None
) -> tuple[StoredTurns, Depot] | tuple[None, None]:
    """Where conversations are kept, beside the process: nowhere, if the config says so."""
    settings = config.conversations
    if store is None or not settings.store:
        return None, None
    secret = secret or SharedSecret(store)
    turns = StoredTurns(store, secret, keep_s=settings.keep_s, max_bytes=settings.max_bytes)
    parked_s, lease_s = config.limits.parked_s, config.cache.lease_s
    return turns, Depot(store, secret, keep_s=parked_s, max_bytes=settings.max_bytes, lease_s=lease_s)


def _unsafe(found: Found, kit: Kit) -> set[int]:
    """Open calls that must not run twice."""
    specs = {spec.name: spec for spec in kit.toolbox.specs()}
    return {
        call.number
        for call in found.record.state.calls
        if call.effect is Effect.EFFECTFUL or (call.tool in specs and specs[call.tool].effect is Effect.EFFECTFUL)
    }


def _told(messages: list[dict[str, Any]], kit: Kit | None) -> list[dict[str, Any]]:
    """The messages as they are sent: behind the instructions."""
    return messages if kit is None else prompt(messages, kit.instructions)


def _has_more(transcript: Sequence[Segment]) -> bool:
    """Whether there is more in it than the client's history will hold."""
    return any(segment.author == "runtime" for segment in transcript)


def _new_id() -> str:
    return f"run_{os.urandom(12).hex()}"  # not to be guessed: who knows it may interrupt the run


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
