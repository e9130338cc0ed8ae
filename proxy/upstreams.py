"""The configured upstreams: a model behind each, and where plain requests go."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from aiohttp import web

from asynclm.adapters.models import Abilities, Model
from asynclm.adapters.models.local.settings import EMBEDDED, EngineSettings
from asynclm.adapters.models.protocol import LoadError
from asynclm.proxy.config import Config, UnknownModelError, Upstream
from asynclm.proxy.errors import APIError
from asynclm.proxy.passthrough import Passthrough, Target

_ANY: Final = "*"
_ANTHROPIC_VERSION: Final = "2023-06-01"


class Route(NamedTuple):
    """Where one request goes: the upstream, the model's names here and there, and the address for plain requests.

    `target` is None where the upstream is no server. `translated`: it is one, but its chat API is not the client's.
    """

    upstream: str
    target: Target | None
    translated: bool
    client_model: str
    upstream_model: str
    policy: str

    def rewritten(self, body: bytes) -> bytes:
        """The body with the upstream's name for the model; the very same bytes where that is the client's."""
        if self.client_model == self.upstream_model:
            return body
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        fields["model"] = msgspec.Raw(msgspec.json.encode(self.upstream_model))
        return msgspec.json.encode(fields)


class Upstreams:
    """Models and addresses by the client's model name. SDKs are loaded when the first request needs them.

    `models` are some that were made elsewhere, by the upstream's name.
    """

    def __init__(self, config: Config, environ: Mapping[str, str], models: Mapping[str, Model] | None = None) -> None:
        self._config = config
        self._keys = {name: upstream.api_key(environ) for name, upstream in config.upstreams.items()}
        self._models: dict[str, Model] = dict(models or {})
        self._targets = {name: _target(upstream, self._keys[name]) for name, upstream in config.upstreams.items()}

    def route(self, name: str) -> Route:
        """Where the client's model name leads. Raises `APIError` (404) for a name that nothing takes."""
        try:
            entry, upstream, model = self._config.resolve_model(name)
        except UnknownModelError as error:
            raise APIError(404, f"{error}.", param="model", code="model_not_found") from None
        return self._route(upstream, name, model, entry.policy)

    def default(self) -> Route:
        """Where requests without a model go: as the model "*", or to the first upstream."""
        entry = self._config.models.get(_ANY) or next(iter(self._config.models.values()))
        return self._route(entry.upstream, "", "", entry.policy)

    def _route(self, upstream: str, client_model: str, upstream_model: str, policy: str) -> Route:
        translated = self._config.upstreams[upstream].kind == "anthropic"
        return Route(upstream, self._targets[upstream], translated, client_model, upstream_model, policy)

    def model(self, route: Route) -> Model:
        """The model adapter of a route, made when it is first asked for."""
        return self._model(route.upstream)

    def _model(self, name: str) -> Model:
        if name not in self._models:
            self._models[name] = _new_model(self._config.upstreams[name], self._keys[name], self._config.base)
        return self._models[name]

    def keys(self) -> list[str]:
        """The upstreams' own keys: secrets."""
        return [key for key in self._keys.values() if key]

    def configured(self, name: str) -> web.Response | None:
        """`GET /v1/models/{name}` for a name in the config; None for any other."""
        if name == _ANY or name not in self._config.models:
            return None
        return web.Response(body=msgspec.json.encode(_model_card(name)), content_type="application/json")

    async def models(self, request: web.Request, passthrough: Passthrough) -> web.StreamResponse:
        """The names in the config and, where any name is taken, those of the upstream behind "*"."""
        names = [name for name in self._config.models if name != _ANY]
        entry = self._config.models.get(_ANY)
        if entry is None:
            return _models(names, [])
        target = self._targets[entry.upstream]
        if target is None:
            return _models([*names, entry.model or self._config.upstreams[entry.upstream].model or "simulated"], [])
        if self._config.upstreams[entry.upstream].kind == "anthropic":
            body = await passthrough.fetch(request, "/models", target, {"anthropic-version": _ANTHROPIC_VERSION})
            return _models([*names, *(str(model["id"]) for model in _listed(body))], [])
        if not names:
            return await passthrough.forward(request, "/models", b"", target)
        try:
            found = _listed(await passthrough.fetch(request, "/models", target))
        except APIError:  # its own are unknown; the config's can be used all the same
            found = []
        return _models(names, found)

    async def prepare(self) -> None:
        """Load the models that run in this process. Raises `LoadError`."""
        for name, upstream in self._config.upstreams.items():
            if upstream.kind == "transformers":
                model: Any = self._model(name)
                await model.prepare()

    def load(self) -> dict[str, Any]:
        """How busy the models are that run in this process, by upstream."""
        loads = {name: getattr(model, "load", None) for name, model in self._models.items()}
        known = {name: load() for name, load in loads.items() if load is not None}
        return {name: load._asdict() for name, load in known.items() if load is not None}

    async def aclose(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(model.aclose() for model in self._models.values()))


def _model_card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "asynclm"}


def _models(names: list[str], more: list[Any]) -> web.Response:
    ours = [_model_card(name) for name in names]
    body = msgspec.json.encode({"object": "list", "data": [*ours, *more]})
    return web.Response(body=body, content_type="application/json")


def _listed(body: bytes) -> list[Any]:
    try:
        data = msgspec.json.decode(body)["data"]
    except (msgspec.DecodeError, KeyError, TypeError):
        data = None
    if not isinstance(data, list) or not all(isinstance(model, dict) and "id" in model for model in data):
        raise APIError(502, "The upstream's list of models is none.", type="upstream_error", code="bad_upstream")
    return data


def _target(upstream: Upstream, key: str | None) -> Target | None:
    if upstream.base_url is None:  # it runs in the process
        return None
    headers = dict(upstream.headers)
    if key:
        headers.update({"x-api-key": key} if upstream.kind == "anthropic" else {"authorization": f"Bearer {key}"})
    base_url = upstream.base_url
    if upstream.kind == "anthropic":  # its SDK's base URL ends before the version, OpenAI's behind it
        base_url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
    return Target(
        base_url,
        headers,
        query=upstream.query,
        connect_timeout_s=upstream.connect_timeout_s,
        idle_timeout_s=upstream.idle_timeout_s,
    )


def _new_model(upstream: Upstream, key: str | None, base: Path) -> Model:
    if upstream.kind == "simulated":
        from asynclm.adapters.models.simulated.model import SimulatedModel

        return SimulatedModel(
            ttft_ms=150.0 if upstream.ttft_ms is None else upstream.ttft_ms,
            tpot_ms=5.0 if upstream.tpot_ms is None else upstream.tpot_ms,
            inject=upstream.inject is not False,
        )
    if upstream.kind == "transformers":
        return _local_model(upstream.model or EMBEDDED, upstream.engine or EngineSettings(), base)
    common: dict[str, Any] = {
        "headers": upstream.headers,
        "query": upstream.query,
        "connect_timeout_s": upstream.connect_timeout_s,
        "idle_timeout_s": upstream.idle_timeout_s,
        "retries": upstream.retries + 1,
    }
    assert upstream.base_url is not None, "the config gives every hosted upstream an address"
    if upstream.kind == "anthropic":
        from asynclm.adapters.models.anthropic import AnthropicModel

        return AnthropicModel(upstream.base_url, key, **common)
    from asynclm.adapters.models.openai import OpenAIModel

    abilities = None
    if upstream.stop_sequences is not None:
        abilities = Abilities(prefill=upstream.prefill != "none", stop_sequences=upstream.stop_sequences)
    return OpenAIModel(
        upstream.base_url,
        key,
        prefill_style=upstream.prefill,
        default_abilities=abilities,
        prompt_cache_key=upstream.prompt_cache_key,
        **common,
    )


def _local_model(name: str, settings: EngineSettings, base: Path) -> Model:
    """A model that runs in this process. Nothing of it is imported before; it is loaded when it is needed."""
    try:
        from asynclm.adapters.models.local.calibration import measured
        from asynclm.adapters.models.local.model import Loaded, LocalModel
        from asynclm.adapters.models.local.traps import CostHandler
        from asynclm.adapters.models.transformers.load import LoadOptions, cache_folder, load
    except ImportError as error:
        what = error.name or error
        raise LoadError(f"a local model needs the package {what}: pip install 'asynclm[local]'") from None

    path = base / name
    options = LoadOptions(
        model=str(path) if path.exists() else name,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        kv_tokens=settings.kv_tokens,
    )

    def say(line: str) -> None:
        print(f"asynclm: {line}", file=sys.stderr, flush=True)

    def make() -> Loaded:
        loaded = load(options, say)
        costs = measured(loaded.engine, chunk=settings.chunk, folder=cache_folder() / "traps", progress=say)
        return Loaded(loaded.engine, loaded.vocabulary, CostHandler(costs, settings.trap))

    return LocalModel(make, settings)
