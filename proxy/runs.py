"""Starts runs: puts machine, model, executor and answer together for one chat request."""

from __future__ import annotations

import os
from typing import Any, Final

from aiohttp import web

from asynclm.adapters.models.protocol import Model, Request
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.machine import POLICIES, Run
from asynclm.cml.machine.actions import OpenStream
from asynclm.cml.prompt import instructions
from asynclm.cml.render import STOP
from asynclm.cml.timeline import Timeline
from asynclm.proxy.answer import StreamedAnswer, WholeAnswer
from asynclm.proxy.background import Background
from asynclm.proxy.cache import ANYONE, Caller
from asynclm.proxy.chat import ChatRequest, prompt, text_size
from asynclm.proxy.config import Config
from asynclm.proxy.driver import Driver, Sink
from asynclm.proxy.errors import api_error
from asynclm.proxy.executor import Executor
from asynclm.proxy.registry import Registry, new_timeline
from asynclm.proxy.room import Roomy
from asynclm.proxy.sinks import StreamSink, WholeSink
from asynclm.proxy.speeds import Speeds
from asynclm.proxy.upstreams import Route, Upstreams

RUN_ID_HEADER: Final = "x-asynclm-run-id"
REQUEST_ID_HEADER: Final = "x-request-id"
_OFF: Final = "off"


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
    ) -> None:
        self._server = config.server
        self._limits = config.limits.of_a_run()
        self._room = config.limits.cml_tokens
        self._toolbox = toolbox
        self._instructions = (toolbox.version, instructions(toolbox.specs()))
        self._upstreams = upstreams
        self._executor = executor
        self._registry = registry
        self._background = background
        self._speeds = Speeds(config)

    async def answer(self, request: web.Request, chat: ChatRequest, route: Route, policy: str) -> web.StreamResponse:
        """Run with the proxy's tools."""
        return await self._answer(request, chat, route, policy, with_tools=True)

    async def plain(self, request: web.Request, chat: ChatRequest, route: Route) -> web.StreamResponse:
        """Answer without tools, from an upstream whose API is not the client's: only the protocol is translated."""
        return await self._answer(request, chat, route, _OFF, with_tools=False)

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
    ) -> Driver:
        """Put a run together under the policy that `timeline` names; it starts when it is driven. Knows no HTTP."""
        model: Model = self._upstreams.model(route)
        abilities = model.abilities(route.upstream_model)
        messages = prompt(chat, self._told()) if with_tools else chat.messages
        run = Run(
            self._toolbox if with_tools else None,
            POLICIES["auto" if timeline.policy == _OFF else timeline.policy],
            inject=abilities.inject,
            limits=self._limits,
            stop=chat.stop,
            max_tokens=chat.max_tokens,
            prompt_chars=text_size(messages),
            costs=self._speeds.costs(route),
        )
        if with_tools and chat.max_tokens is not None:
            model = Roomy(model, self._room)
        # A live sequence must not end at a trap: it waits there for what is injected.
        stop = (STOP,) if with_tools and abilities.stop_sequences and not abilities.inject else ()

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
            )

        return Driver(
            run,
            model,
            prepare,
            self._executor,
            timeline,
            sink,
            self._background,
            max_s=self._server.run_timeout_s,
            caller=caller,
        )

    def _told(self) -> str:
        """The instructions, which change with the tools."""
        if self._instructions[0] != self._toolbox.version:
            self._instructions = (self._toolbox.version, instructions(self._toolbox.specs()))
        return self._instructions[1]

    async def _answer(
        self, request: web.Request, chat: ChatRequest, route: Route, policy: str, *, with_tools: bool
    ) -> web.StreamResponse:
        id = f"run_{os.urandom(12).hex()}"  # not to be guessed: who knows it may interrupt the run
        headers = {RUN_ID_HEADER: id, REQUEST_ID_HEADER: id}
        answer_id = f"chatcmpl-{id[4:]}"
        sink: StreamSink | WholeSink
        if chat.stream:
            answer = StreamedAnswer(answer_id, chat.model, include_usage=chat.include_usage)
            sink = StreamSink(request, answer, headers, self._background, self._server.heartbeat_s)
        else:
            sink = WholeSink(WholeAnswer(answer_id, chat.model), headers)
        timeline = new_timeline(id, chat.model, policy)
        key = _client_key(request)
        caller = Caller(key, request.headers)
        driver = self.driver(chat, route, timeline, sink, api_key=key, with_tools=with_tools, caller=caller)
        self._registry.begin(timeline, driver)
        failed = True
        try:
            finish = await driver.drive()
            if finish.error is None:
                failed = False
                return await sink.finish(finish.reason, finish.usage, _facts(id, driver))
            if isinstance(sink, StreamSink) and sink.opened:
                return await sink.fail(finish.error)
            raise api_error(finish.error, headers)
        finally:
            sink.close()
            self._registry.end(id, failed=failed)


def _facts(id: str, driver: Driver) -> dict[str, Any]:
    """What only this proxy knows of a run, for `usage.asynclm`."""
    facts: dict[str, Any] = {"run": id, "streams": driver.streams, "calls": driver.calls}
    return {**facts, "cache": driver.cached} if driver.cached else facts


def _client_key(request: web.Request) -> str | None:
    """The client's own key, as either vendor's clients send it."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return request.headers.get("x-api-key") or request.headers.get("api-key")
