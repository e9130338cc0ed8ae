"""When to send a request again: only before the answer has begun, and never for what the upstream would refuse again.

Retried are failed connections and the statuses that the official clients retry: 408, 409, 429 and 5xx. The upstream
has the last word (`x-should-retry`), and says how long to wait (`retry-after-ms`, `retry-after`); where it asks for
more than the longest wait allowed, its error goes to the client at once, `retry_after` included, since the client can
wait and others can't. Silence is not retried: whoever waited for the first-byte timeout should not wait for it three
times.

A connection that was dropped before a byte of the answer came was most likely one that the server no longer wanted to
keep (llama.cpp keeps them for five seconds or a hundred requests): the first attempt after that goes out at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx2
import msgspec
import tenacity

from asynclm.adapters.models import errors
from asynclm.adapters.models.protocol import ModelError

log = logging.getLogger(__name__)

T = TypeVar("T")


class RetryPolicy(msgspec.Struct, frozen=True):
    """`attempts`: how often a request is sent at most (1: no retries). `max_backoff_s`: the longest wait between."""

    attempts: int = 3
    max_backoff_s: float = 8.0


class AttemptFailed(Exception):  # noqa: N818 - it is caught where it is raised, and `error` is what goes on
    """One attempt failed with `error`. `again`: another could help; `after`: the wait asked for before it (s).

    `dropped`: the connection was there, and was closed before the answer began.
    """

    def __init__(self, error: ModelError, *, again: bool, after: float | None = None, dropped: bool = False) -> None:
        super().__init__(error.message)
        self.dropped = dropped
        self.error = error
        self.again = again
        self.after = after


def refused(response: httpx2.Response) -> AttemptFailed:
    """The upstream answered with an error status; `response` has been read."""
    error = errors.from_response(response)
    status = response.status_code
    again = {"true": True, "false": False}.get(response.headers.get("x-should-retry", ""))
    if again is None:
        again = status in (408, 409, 429) or status >= 500
    return AttemptFailed(error, again=again, after=error.retry_after)


def unreachable(error: BaseException) -> AttemptFailed:
    """No answer came, because the connection failed; `error` is the SDK's."""
    cause = error if isinstance(error, httpx2.TransportError) else error.__cause__
    return AttemptFailed(errors.unreachable(error), again=True, dropped=isinstance(cause, httpx2.ReadError))


async def with_retries(policy: RetryPolicy, attempt: Callable[[], Awaitable[T]]) -> T:
    """Await `attempt()` until it succeeds or the policy is exhausted. It fails by raising `AttemptFailed`.

    Raises the last attempt's `ModelError`.
    """

    first: AttemptFailed | None = None
    try:
        return await attempt()  # mostly, that is all, and tenacity need not be asked
    except AttemptFailed as failed:
        first = failed

    async def attempted() -> T:  # tenacity awaits only what it can see to be a coroutine function
        nonlocal first
        if first is not None:
            failed, first = first, None
            raise failed
        return await attempt()

    def may_help(failed: BaseException) -> bool:
        return (
            isinstance(failed, AttemptFailed)
            and failed.again
            and (failed.after is None or failed.after <= policy.max_backoff_s)
        )

    def backoff(state: tenacity.RetryCallState) -> float:
        failed = state.outcome and state.outcome.exception()
        if isinstance(failed, AttemptFailed) and failed.after:
            return failed.after
        if isinstance(failed, AttemptFailed) and failed.dropped and state.attempt_number == 1:
            return 0.0
        longest: float = min(0.5 * 2 ** (state.attempt_number - 1), policy.max_backoff_s)
        return longest * random.uniform(0.75, 1.0)

    retrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(policy.attempts),
        retry=tenacity.retry_if_exception(may_help),
        wait=backoff,
        sleep=_sleep,
        before_sleep=_log,
        reraise=True,
    )
    try:
        return await retrying(attempted)
    except AttemptFailed as failed:
        raise failed.error from None


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _log(state: tenacity.RetryCallState) -> None:
    failed = state.outcome and state.outcome.exception()
    wait = state.next_action.sleep if state.next_action else 0.0
    log.info("attempt %d failed, the next one in %.2f s: %s", state.attempt_number, wait, failed)
