"""The HTTP server: what a request asks for, and who answers it.

`POST /v1/chat/completions` runs here if the proxy has tools (and the request doesn't switch them off); everything else
under `/v1/` goes through to the upstream. Handlers raise `APIError`; nothing else reaches a client.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final
from urllib.parse import unquote

import msgspec
from aiohttp import web

from asynclm.adapters.models.protocol import Model
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.machine import POLICIES, RunError
from asynclm.cml.machine.calls import AGENT, USER
from asynclm.cml.machine.events import Scheduling
from asynclm.proxy.background import Background
from asynclm.proxy.cache import ToolCache
from asynclm.proxy.chat import model_of, parse
from asynclm.proxy.config import Config
from asynclm.proxy.errors import SERVER_ERROR, APIError, invalid
from asynclm.proxy.executor import Executor
from asynclm.proxy.passthrough import Passthrough
from asynclm.proxy.recording.recordings import REPLAY_HEADER, Recordings, mode_of, summary
from asynclm.proxy.registry import Registry
from asynclm.proxy.runs import Runs, client_key
from asynclm.proxy.shared_secret import SharedSecret
from asynclm.proxy.stores import open_store
from asynclm.proxy.upstreams import Route, Upstreams

_log = logging.getLogger(__name__)

POLICY_HEADER: Final = "x-asynclm-policy"
_OFF: Final = "off"
_SHUTDOWN: Final = RunError("The proxy is shutting down.", 503, SERVER_ERROR, "server_shutdown")
_CLEANUP_S: Final = 5.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Everything one proxy process holds, and its handlers."""

    def __init__(
        self,
        config: Config,
        toolbox: Toolbox,
        environ: Mapping[str, str],
        models: Mapping[str, Model] | None = None,
    ) -> None:
        limits = config.limits
        self._config = config
        self._toolbox = toolbox
        self._draining = False
        self.registry = Registry(config.runs.keep)
        self.background = Background()
        self.upstreams = Upstreams(config, environ, models)
        self.passthrough = Passthrough()
        self.store = open_store(config)
        self.cache = ToolCache(
            self.store,
            max_bytes=config.cache.max_bytes,
            lease_s=config.cache.lease_s,
            secret=config.cache.secret(environ),
            shape=limits.max_result_bytes,
        )
        self.executor = Executor(
            toolbox,
            max_concurrency=limits.concurrency,
            default_timeout_s=limits.tool_timeout_s,
            queue_timeout_s=limits.queue_timeout_s,
            max_result_bytes=limits.max_result_bytes,
            cache=self.cache,
        )
        self.recordings = Recordings(config, self.store, self.background, self.upstreams.keys())
        self.runs = Runs(
            config,
            toolbox,
            self.upstreams,
            self.executor,
            self.registry,
            self.background,
            self.recordings,
            self.store,
            SharedSecret(self.store, config.cache.secret(environ)),
        )

    async def prepare(self) -> None:
        """Do what takes long before the first request comes: load the models that run here. Raises `LoadError`."""
        await self.upstreams.prepare()

    def add_routes(self, app: web.Application) -> None:
        """Route every path of the public contract."""
        app.router.add_post("/v1/chat/completions", self._guarded(self.chat))
        app.router.add_get("/v1/models", self._guarded(self.models))
        app.router.add_get("/v1/models/{name:.+}", self._guarded(self.model))
        app.router.add_get("/healthz", self._guarded(self.health))
        app.router.add_get("/v1/asynclm/runs", self._guarded(self.list_runs))
        app.router.add_get("/v1/asynclm/runs/{id}", self._guarded(self.show_run))
        app.router.add_post("/v1/asynclm/runs/{id}/interrupts", self._guarded(self.interrupt))
        app.router.add_route("*", "/v1/asynclm{rest:.*}", self._guarded(self.nothing_here))
        app.router.add_route("*", "/v1/{path:.+}", self._guarded(self.forward))
        app.router.add_route("*", "/{path:.*}", self._guarded(self.nothing_here))

    def _guarded(self, handler: Handler) -> Handler:
        """Turn every failure into an answer in OpenAI's error shape."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                if self._draining:
                    raise APIError(503, "The proxy is shutting down.", type=SERVER_ERROR, code="server_shutdown")
                return await handler(request)
            except APIError as error:
                answer = error
            except web.HTTPException as refused:
                answer = _refused(refused, self._config.server.max_body_bytes)
            except ConnectionError:
                raise  # the client is gone: there is nobody to tell
            except Exception as fault:
                _log.exception("%s %s failed", request.method, request.path)
                answer = APIError(
                    500, f"The proxy failed: {type(fault).__name__}.", type=SERVER_ERROR, code="internal_error"
                )
            return web.Response(
                status=answer.status, body=answer.body(), headers=answer.headers(), content_type="application/json"
            )

        return guarded

    # ------------------------------------------------------------------ OpenAI's endpoints

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`: run here, or pass through."""
        body = await request.read()
        route = self._route(body)
        policy = _policy(request, route)
        with_tools = policy != _OFF and len(self._toolbox) > 0
        if not with_tools and route.target is not None and not route.translated:
            if mode_of(request) not in (None, _OFF):
                raise invalid(
                    f"{REPLAY_HEADER}: this request passes through, and only runs are recorded.", REPLAY_HEADER
                )
            return await self.passthrough.forward(request, "/chat/completions", route.rewritten(body), route.target)
        chat = parse(body, with_tools=with_tools)
        specs = self._toolbox.specs() if with_tools else []
        key = client_key(request)
        wish = self.recordings.wish(request, chat, specs, key)
        replayed = await self.recordings.replay(request, chat, wish, partial(self.runs.remember, key, chat.messages))
        if replayed is not None:
            return replayed
        if with_tools:
            return await self.runs.answer(request, chat, route, policy, wish)
        return await self.runs.plain(request, chat, route, wish)

    async def models(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models`: the names in the config, and the upstream's where any name goes there."""
        return await self.upstreams.models(request, self.passthrough)

    async def model(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models/{name}`: a name in the config is answered here, any other goes to the upstream."""
        return self.upstreams.configured(request.match_info["name"]) or await self.forward(request)

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """Anything else under `/v1/`."""
        body = await request.read()
        path = request.rel_url.raw_path.removeprefix("/v1")
        if not {".", ".."}.isdisjoint(unquote(path).replace("\\", "/").split("/")):
            raise APIError(404, "A path that leads out of /v1/ is not served.", code="not_found")
        route = self.upstreams.default()
        if request.content_type == "application/json" and body:
            try:
                route = self._route(body, required=False)
            except APIError as error:
                if error.status != 400:
                    raise
                # What is wrong with the body is for the upstream to say.
        if route.target is None:
            raise APIError(404, f"{request.path} is not served by this upstream.", code="not_found")
        return await self.passthrough.forward(request, path, route.rewritten(body), route.target)

    def _route(self, body: bytes, *, required: bool = True) -> Route:
        model = model_of(body)
        if model:
            return self.upstreams.route(model)
        if required:
            raise invalid("You must provide a model parameter.", "model")
        return self.upstreams.default()

    # ------------------------------------------------------------------ the proxy's own

    async def health(self, request: web.Request) -> web.StreamResponse:
        """`GET /healthz`: the process answers. A store that fails takes nothing down, so it is only mentioned."""
        store = {"status": "ok" if self.store.up else "failing", **msgspec.to_builtins(self.store.counts)}
        runs = len(self.registry.live())
        facts = {"status": "ok", "runs": runs, "store": store, "recordings": self.recordings.counts}
        engines = self.upstreams.load()
        return _json({**facts, "engines": engines} if engines else facts)

    async def list_runs(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/asynclm/runs`: those of this process, the newest first, then the recorded ones of earlier times."""
        runs = self.registry.summaries()
        known = {run.id for run in runs}
        older = [summary(facts) for facts in await self.recordings.all() if facts.id.partition("-")[0] not in known]
        return _json({"object": "list", "data": [*runs, *older]})

    async def show_run(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/asynclm/runs/{id}`: its timeline, so far if it is under way."""
        id = request.match_info["id"]
        timeline = self.registry.timeline(id) or await self.recordings.timeline(id)
        if timeline is None:
            raise _no_run(request)
        return _json(timeline)

    async def interrupt(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/asynclm/runs/{id}/interrupts`: tell the model of a running answer something.

        `scheduling` says when. Accepted (202) does not mean heard: the run may end first, which its timeline then says.
        """
        try:
            said = msgspec.json.decode(await request.read(), type=_Interrupt)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            wanted = f'{{"text": "...", "source": "{USER}", "scheduling": "{Scheduling.INTERRUPT}"}}'
            raise invalid(f"The body must be {wanted}, all but text optional: {error}.", "text") from None
        if not said.text:
            raise invalid("text must not be empty.", "text")
        if said.source != USER and not (said.source.startswith(AGENT) and said.source.isidentifier()):
            raise invalid(f'source must be "{USER}", or a name that begins with "{AGENT}".', "source")
        if said.scheduling not in list(Scheduling):
            known = "|".join(Scheduling)
            raise invalid(f"scheduling must be one of {known}, not {said.scheduling[:40]!r}.", "scheduling")
        id = request.match_info["id"]
        driver = self.registry.driver(id)
        if driver is None:
            if self.registry.known(id):
                raise _deaf(f"Run {id} is over.", "run_finished")
            raise _no_run(request)
        if not driver.interrupt(said.source, said.text, Scheduling(said.scheduling)):
            raise _deaf(f"Run {id} takes no interrupts: it has no tools, or is over.", "run_not_listening")
        return _json({"run": id, "accepted": True}, status=202)

    async def nothing_here(self, request: web.Request) -> web.StreamResponse:
        """Any path that isn't served."""
        raise APIError(404, f"There is nothing at {request.method} {request.path}.", code="not_found")

    # ------------------------------------------------------------------ the end

    async def drain(self) -> None:
        """Take no more requests; give open ones the grace time, then end them with an error."""
        self._draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.server.grace_s
        # Nobody can come back to this process any more; what their calls return helps whoever goes on with the run.
        parked = asyncio.create_task(self.runs.aclose(_SHUTDOWN, self._config.server.grace_s))
        try:
            if not await self._idle(self._config.server.grace_s):
                self.abandon()
                if not await self._idle(_CLEANUP_S):
                    _log.warning("some requests did not end in %g s", _CLEANUP_S)
            await parked
        finally:
            parked.cancel()
            await asyncio.wait((parked,))
        # What is left are calls without an id, which outlive their runs.
        await self.executor.aclose(max(0.0, deadline - loop.time()))

    def abandon(self) -> None:
        """End everything that is open with an error, now."""
        for driver in self.registry.live():
            driver.abandon(_SHUTDOWN)
        self.recordings.abandon()
        self.passthrough.abandon()

    async def _idle(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.registry.idle()
                await self.recordings.idle()
                await self.passthrough.idle()
        except TimeoutError:
            return False
        return True

    async def aclose(self, app: web.Application | None = None) -> None:
        """End every task and close every connection."""
        await self.runs.aclose(_SHUTDOWN)
        await self.background.aclose()
        await self.executor.aclose()
        await self.cache.aclose()
        await self.recordings.aclose()
        await self.store.aclose()
        await self.passthrough.aclose()
        await self.upstreams.aclose()


class _Interrupt(msgspec.Struct):
    text: str
    source: str = USER
    scheduling: str = Scheduling.INTERRUPT


SERVER: Final = web.AppKey("asynclm", Server)


def make_app(
    config: Config,
    toolbox: Toolbox,
    environ: Mapping[str, str] = os.environ,
    *,
    models: Mapping[str, Model] | None = None,
) -> web.Application:
    """The proxy as an aiohttp application. Run it with `handler_cancellation=True`, so that a client that leaves ends
    its run. The upstreams' keys come from `environ`; `models` are models that were made elsewhere, by upstream.
    """
    app = web.Application(client_max_size=config.server.max_body_bytes)
    server = app[SERVER] = Server(config, toolbox, environ, models)
    server.add_routes(app)
    app.on_cleanup.append(server.aclose)
    return app


def _policy(request: web.Request, route: Route) -> str:
    policy = request.headers.get(POLICY_HEADER)
    if policy is None:
        return route.policy
    if policy != _OFF and policy not in POLICIES:
        known = "|".join([*POLICIES, _OFF])
        raise invalid(f"{POLICY_HEADER} must be one of {known}, not {policy[:40]!r}.", POLICY_HEADER)
    return policy


def _refused(refused: web.HTTPException, max_body_bytes: int) -> APIError:
    if refused.status == 413:
        return invalid(f"The request body is larger than {max_body_bytes} bytes.", code="body_too_large", status=413)
    return APIError(refused.status, refused.reason, code="bad_request")


def _no_run(request: web.Request) -> APIError:
    return APIError(
        404,
        f"There is no run {request.match_info['id'][:80]!r} (the last ones are kept, and the recorded ones).",
        code="run_not_found",
    )


def _deaf(message: str, code: str) -> APIError:
    # OpenAI's clients would send it again on a 409, which helps nobody here.
    return APIError(409, message, code=code, headers={"x-should-retry": "false"})


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")
