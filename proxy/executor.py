"""Runs the calls: concurrently, bounded over all and for each tool, and whatever happens comes back as a value.

One executor serves every run. Calls of tools whose results may be reused go through the cache (`asynclm.proxy.cache`)
first, and take no slot where it has what they want. Two kinds of slots, each handed out first come, first served:

- a slot *of the tool*, held until its work has really ended. Work that was cancelled or timed out and does not stop (a
  hanging thread) keeps it, so a tool declared with `concurrency = 1` never runs twice at once;
- a slot *of the server*, given back as soon as nobody waits for the work any more. So a tool that hangs uses up its
  own slots, then fails with an error that says so, and takes nothing from the others.

A call takes the tool's slot first: while it waits for that one, it keeps no slot of the server from anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from asynclm.adapters.tools.protocol import Tool
from asynclm.adapters.tools.toolbox import Toolbox
from asynclm.cml.tools import CallError, Effect, ToolSpec, error_value
from asynclm.proxy.cache import ANYONE, Caller, ToolCache, cacheable
from asynclm.proxy.result import Result
from asynclm.proxy.result_json import MIN_RESULT_BYTES, sized_result_json

__all__ = ["Executor", "Result"]

_MAX_MESSAGE: Final = 1000
_CLOSING: Final = "not run: the server is shutting down"
_STOP_S: Final = 1.0  # what cancelled work gets to clean up at shutdown

logger = logging.getLogger(__name__)


class Executor:
    """Runs the tools of a toolbox, at most `max_concurrency` calls at once, and of each tool as many as it declares.

    `default_timeout_s` bounds the running time of a call whose tool declares none; `queue_timeout_s` the time that a
    call waits for its turn. A result whose JSON is longer than `max_result_bytes` (UTF-8) is cut. Calls of tools whose
    results may be reused go through `cache`, if there is one. Raises ValueError for bounds that leave no room.
    """

    def __init__(
        self,
        toolbox: Toolbox,
        *,
        max_concurrency: int = 64,
        default_timeout_s: float = 60.0,
        queue_timeout_s: float = 60.0,
        max_result_bytes: int = 65_536,
        cache: ToolCache | None = None,
    ) -> None:
        if max_concurrency < 1:
            raise ValueError("max_concurrency must be at least 1")
        if max_result_bytes < MIN_RESULT_BYTES:
            raise ValueError(f"max_result_bytes must be at least {MIN_RESULT_BYTES}")
        self._toolbox = toolbox
        self._max_concurrency = max_concurrency
        self._default_timeout_s = default_timeout_s
        self._queue_timeout_s = queue_timeout_s
        self._max_result_bytes = max_result_bytes
        self._cache = cache
        self._server_slots = asyncio.Semaphore(max_concurrency)
        self._tool_slots: dict[str, _ToolSlots] = {}  # of tools that are waited for, or at work
        self._work: set[asyncio.Task[object]] = set()
        self._left_behind: dict[str, int] = {}  # by tool: work that nobody waits for and that hasn't ended
        self._detached: set[asyncio.Task[Any]] = set()
        self._uncached: set[str] = set()  # tools that were warned of
        self._closing = False

    async def execute(
        self,
        spec: ToolSpec,
        arguments: dict[str, Any],
        *,
        dispatched: Callable[[], None] | None = None,
        caller: Caller = ANYONE,
    ) -> Result:
        """Run one call with checked arguments, when its turn comes; `dispatched` is called when it starts. Or take what
        the cache has; `caller` is whom the result is for.

        Errors are results: `timeout` (in the queue or running), `tool_error`, `unserializable_result`, `cancelled`
        (the tool cancelled itself, or the executor is closing), or what a `CallError` of the tool says. Raises
        CancelledError only; the work is then cancelled, and nobody waits for it.
        """
        if self._closing:
            return _failed(CallError("cancelled", _CLOSING))
        if spec.name not in self._toolbox:
            return _failed(CallError("unknown_tool", f"there is no tool {spec.name!r}"))
        if spec.cache_s and spec.effect is Effect.EFFECTFUL and spec.name not in self._uncached:
            self._uncached.add(spec.name)
            logger.warning("tool %s has cache_s but is effectful, so nothing is kept: declare its effect", spec.name)
        if self._cache is None or not cacheable(spec):
            return await self._execute(spec, arguments, dispatched)
        return await self._cache.fetch(
            spec,
            arguments,
            caller,
            lambda dispatched: self._execute(spec, arguments, dispatched),
            patience_s=self._timeout_s(spec),
            dispatched=dispatched,
        )

    async def _execute(
        self, spec: ToolSpec, arguments: dict[str, Any], dispatched: Callable[[], None] | None
    ) -> Result:
        """Run it. Raises CancelledError only."""
        if self._closing:
            return _failed(CallError("cancelled", _CLOSING))
        slots = self._tool_slots.get(spec.name)
        if slots is None:
            slots = self._tool_slots[spec.name] = _ToolSlots(spec.concurrency or self._max_concurrency)
        slots.users += 1
        work: asyncio.Task[object] | None = None
        try:
            problem = await self._turn(spec, slots)
            if problem is not None:
                return _failed(problem)
            # From here on there is no await until the work exists, and its end gives the tool's slot back.
            work = asyncio.create_task(_run(self._toolbox[spec.name], arguments), name=f"tool {spec.name}")
        finally:
            if work is None:
                self._leave(spec.name, slots)
        self._work.add(work)
        work.add_done_callback(lambda work: self._ended(work, spec.name, slots))
        try:
            return await self._result(spec, work, dispatched)
        finally:
            self._server_slots.release()
            _cancel_once((work,))
            self._leave_behind(spec.name, work)

    def detach(self, task: asyncio.Task[Any]) -> None:
        """Own a task that awaits `execute`, so that it may outlive its run: it ends with its call, or at `aclose`."""
        self._detached.add(task)
        task.add_done_callback(self._detached_ended)
        if self._closing:
            task.cancel()

    async def aclose(self, grace_s: float = 0.0) -> None:
        """Take no more calls, let those that run end within `grace_s` seconds, cancel the rest.

        Threads that don't end then are left behind; they don't keep the process alive.
        """
        self._closing = True
        if self._cache is not None:
            self._cache.close()
        await _wait({*self._detached, *self._work}, grace_s)
        _cancel_once(self._detached)
        _cancel_once(self._work)
        await _wait({*self._detached, *self._work}, _STOP_S)
        if self._work:
            names = sorted({work.get_name() for work in self._work})
            logger.warning("%d calls can't be stopped and are left behind: %s", len(self._work), ", ".join(names))
            # Work that waits for a thread gives it up when cancelled again (`run_in_thread`).
            for work in list(self._work):
                work.cancel()
            await _wait(self._work, _STOP_S)

    async def _turn(self, spec: ToolSpec, slots: _ToolSlots) -> CallError | None:
        """Wait for a slot of the tool and one of the server; returns with both, or with an error and neither."""
        try:
            async with asyncio.timeout(self._queue_timeout_s):
                await slots.acquire()
                try:
                    await self._server_slots.acquire()
                except BaseException:
                    slots.release()
                    raise
        except TimeoutError:
            return CallError("timeout", self._no_turn(spec))
        problem = None
        if self._closing:
            problem = CallError("cancelled", _CLOSING)
        elif spec.name not in self._toolbox:  # its source took it away meanwhile
            problem = CallError("unknown_tool", f"not run: there is no tool {spec.name!r} any more")
        if problem is not None:
            self._server_slots.release()
            slots.release()
        return problem

    def _leave(self, name: str, slots: _ToolSlots) -> None:
        """One call less needs these slots. Tools come and go, so those that nobody needs are forgotten."""
        slots.users -= 1
        if not slots.users:
            del self._tool_slots[name]

    async def _result(
        self, spec: ToolSpec, work: asyncio.Task[object], dispatched: Callable[[], None] | None
    ) -> Result:
        loop = asyncio.get_running_loop()
        timeout_s = self._timeout_s(spec)
        started = loop.time()
        if dispatched is not None:
            dispatched()
        await asyncio.wait((work,), timeout=timeout_s)
        ms = (loop.time() - started) * 1000
        if not work.done():
            work.cancel()
            await asyncio.wait((work,), timeout=0)
            if not work.done():
                slots = spec.concurrency or self._max_concurrency
                logger.warning(
                    "tool %s did not stop at its timeout of %g s and keeps one of its %d slots until it does",
                    spec.name,
                    timeout_s,
                    slots,
                )
            return _failed(CallError("timeout", f"{spec.name}() did not return within {timeout_s:g} s"), ms)
        if work.cancelled():
            return _failed(CallError("cancelled", f"{spec.name}() was cancelled"), ms)
        error = work.exception()
        if error is not None:
            return _failed(error if isinstance(error, CallError) else CallError("tool_error", _said(error)), ms)
        try:
            value, size = sized_result_json(work.result(), self._max_result_bytes)
            return Result(True, value, ms, size=size if size > self._max_result_bytes else 0)
        except Exception as problem:
            reason = f"{spec.name}() ran, but its result has no JSON form: {_cut(str(problem))}"
            return _failed(CallError("unserializable_result", reason), ms)

    def _timeout_s(self, spec: ToolSpec) -> float:
        return self._default_timeout_s if spec.timeout_s is None else spec.timeout_s

    def _no_turn(self, spec: ToolSpec) -> str:
        message = f"not run: {spec.name}() got no free slot within {self._queue_timeout_s:g} s"
        stuck = self._left_behind.get(spec.name, 0)
        if stuck:
            of = spec.concurrency or self._max_concurrency
            message += f"; {stuck} of its {of} are held by earlier calls that were given up but have not ended"
            logger.warning("tool %s: %s", spec.name, message)
        return message

    def _leave_behind(self, name: str, work: asyncio.Task[object]) -> None:
        if work.done():
            return
        self._left_behind[name] = self._left_behind.get(name, 0) + 1

        def ended(_: asyncio.Task[object]) -> None:
            self._left_behind[name] -= 1
            if not self._left_behind[name]:
                del self._left_behind[name]

        work.add_done_callback(ended)

    def _ended(self, work: asyncio.Task[object], name: str, slots: _ToolSlots) -> None:
        self._work.discard(work)
        slots.release()
        self._leave(name, slots)
        if not work.cancelled():
            work.exception()  # nobody else may ask for it: this keeps asyncio from complaining

    def _detached_ended(self, task: asyncio.Task[Any]) -> None:
        self._detached.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a detached call failed", exc_info=error)


class _ToolSlots(asyncio.Semaphore):
    """The slots of one tool. `users` are the calls that wait for one or hold one."""

    users = 0


async def _run(tool: Tool, arguments: dict[str, Any]) -> object:
    try:
        return await tool.run(arguments)
    except (SystemExit, KeyboardInterrupt) as error:  # out of a task they would end the server
        raise RuntimeError(f"the tool tried to end the process ({_said(error)})") from error


async def _wait(tasks: set[Any], timeout_s: float) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=timeout_s)


def _cancel_once(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel what nobody has cancelled yet: for work in a thread, the second time means something else."""
    for task in list(tasks):
        if not task.done() and not task.cancelling():
            task.cancel()


def _failed(error: CallError, ms: float = 0.0) -> Result:
    return Result(False, error_value(CallError(error.type, _cut(error.message))), ms, error=error.type)


def _said(error: BaseException) -> str:
    message = ""
    with contextlib.suppress(Exception):  # an exception's own __str__ may fail
        message = str(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."
