"""Proxies on one store, as far as their tools go, and a tool that counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from asynclm.adapters.stores import Store
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.tools import Effect, ToolSpec
from asynclm.proxy.cache import ANYONE, Caller, ToolCache
from asynclm.proxy.executor import Executor, Result


class Counter:
    """A tool that counts its runs. Each waits until it is let go, if told to; `fails` makes it raise."""

    def __init__(self, name: str = "count", *, held: bool = False, value: Any = None, **spec: Any) -> None:
        declared = {"effect": Effect.READ_ONLY, "cache_s": 60, **spec}
        self.spec = ToolSpec(name=name, **declared)
        self.runs = 0
        self.fails = False
        self.value = value
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        if not held:
            self.go.set()

    async def run(self, arguments: dict[str, Any]) -> object:
        self.runs += 1
        n = self.runs
        self.began.set()
        await self.go.wait()
        if self.fails:
            raise ValueError(f"run {n}")
        return n if self.value is None else self.value

    def with_spec(self, **changes: Any) -> Counter:
        """The same tool, declared otherwise: runs are counted in both."""
        other = object.__new__(Counter)
        other.__dict__ = {**self.__dict__, "spec": ToolSpec(**{**_fields(self.spec), **changes})}
        return other


def _fields(spec: ToolSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in ToolSpec.__struct_fields__}


class Proxy:
    """The executor of one proxy, with its cache, on a store that it shares with others."""

    def __init__(self, store: Store, tools: tuple[Any, ...], **settings: Any) -> None:
        self.store = store
        limits = settings.pop("limits", {})
        self.cache = ToolCache(store, **settings)
        self.executor = Executor(Toolbox(tools), cache=self.cache, **limits)

    async def call(self, tool: Any, /, caller: Caller = ANYONE, **arguments: Any) -> Result:
        return await self.executor.execute(tool.spec, arguments, caller=caller)

    def start(self, tool: Any, /, caller: Caller = ANYONE, **arguments: Any) -> asyncio.Task[Result]:
        return asyncio.create_task(self.call(tool, caller, **arguments))

    async def close(self) -> None:
        await self.executor.aclose()
        await self.cache.aclose()
        await self.store.aclose()


MakeProxy = Callable[..., Proxy]
