"""Blocking functions, run in threads that a hanging one can't turn into a trap for the process.

A thread can't be stopped from outside, so two things must hold when a blocking function hangs:

- The process must still end. The workers of `concurrent.futures.ThreadPoolExecutor`, asyncio's default executor
  included, are joined at interpreter exit, so one hanging function would keep the process alive for good. Here each
  call gets a daemon thread of its own, which exit doesn't wait for. It costs about 0.1 ms more than a pool's worker,
  and there is no pool to run dry, to size or to close: how many run at once is for the caller, the executor, to bound.
- Nobody may take the work for ended while it still runs. `run_in_thread` therefore ends with the thread, not with the
  first cancellation (see there).
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def run_in_thread(function: Callable[..., T], *args: Any, thread_name: str | None = None, **kwargs: Any) -> T:
    """Call a blocking function in a daemon thread, with the caller's context variables; return or raise what it does.

    Cancelling doesn't stop the thread: the task stays unfinished until the function has returned, then raises
    CancelledError. So "the task is done" means "the work is done", and whoever counts slots counts right. Who can't
    wait leaves the task alone, or cancels it a second time: then it ends at once and the thread is left behind.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: T | None, error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result((value, error))

    def work() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = context.run(function, *args, **kwargs)
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name=thread_name, daemon=True).start()
    try:
        await asyncio.wait((ended,))
    except asyncio.CancelledError:
        await asyncio.wait((ended,))
        raise
    value, error = ended.result()
    if error is None:
        return value  # type: ignore[return-value]
    if isinstance(error, Exception):
        raise error
    # SystemExit, KeyboardInterrupt and CancelledError would mean the loop's thread here, where they weren't raised.
    raise RuntimeError(f"the function raised {type(error).__name__}: {error}") from error
