"""An answer that is being written, read from the socket: what both hosted APIs have in common.

`HTTPStream` does the I/O (reading, the idle timeout, closing); a `Decoder` is pure and knows the API's format.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import httpx2

from asynclm.adapters.models import errors
from asynclm.adapters.models.protocol import ModelError, StreamEvent
from asynclm.adapters.models.secrets import Secrets
from asynclm.adapters.models.transport import Body

# How long an answer that is complete may take to end its HTTP body too, so that its connection can be used again (s).
_LINGER_S: Final = 2.0
# How long a new request waits for such a connection: about what TCP and TLS take to make another (s).
_PATIENCE_S: Final = 0.05


class Decoder(Protocol):
    """Bytes of an answer in, events out. Never raises: what fails goes into `failure`, behind the events before it."""

    ended: bool
    """The model has stopped: only usage may follow."""

    done: bool
    """The answer is complete: nothing that follows matters."""

    failure: ModelError | None
    """The answer failed or can't be read."""

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Take the next bytes."""
        ...

    def finish(self) -> list[StreamEvent]:
        """The bytes have ended: a failure, unless the model had stopped."""
        ...


class Endings:
    """Answers that are complete while the end of their HTTP body is still on its way: the connections about to be free.

    One for each upstream. A run that goes on where a stream has just ended would be a moment too early for that
    stream's connection, and make another one.
    """

    def __init__(self) -> None:
        self._ending: set[asyncio.Future[None]] = set()
        self._prompt = True  # the last one came soon

    def expect(self, body: Body) -> None:
        """Wait in the background for the end of `body`; drop the connection if it doesn't come."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        ended: asyncio.Future[None] = loop.create_future()
        self._ending.add(ended)

        def end() -> None:
            linger.cancel()
            self._ending.discard(ended)
            self._prompt = loop.time() - since < _PATIENCE_S
            if not ended.done():
                ended.set_result(None)

        def drop() -> None:
            body.abort()
            end()

        linger = loop.call_later(_LINGER_S, drop)
        body.on_end(end)

    async def first(self) -> None:
        """Return when a connection has become free, or none is about to, or it takes too long."""
        if self._ending and self._prompt:
            await asyncio.wait(self._ending, timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)


class HTTPStream:
    """One open answer (`protocol.Stream`). One batch for each read of the socket that holds events.

    Iteration raises `ModelError`, without any of the `secrets`, when the answer fails, breaks off or falls silent for
    `idle_timeout_s`, and just ends if another task closes the stream meanwhile. One task at a time iterates; one that
    is cancelled leaves the stream as it was. Whoever opened the stream closes it.
    """

    def __init__(
        self, body: Body, decoder: Decoder, secrets: Secrets, endings: Endings, *, idle_timeout_s: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._body = body
        self._endings = endings
        self._decoder = decoder
        self._secrets = secrets
        self._idle_timeout_s = idle_timeout_s
        self._waiting_since: float | None = None
        self._silent = False
        self._over = False
        self._failure: ModelError | None = None
        # One timer a stream, set anew only when it fires: cheaper than one a read.
        self._timer = self._loop.call_later(idle_timeout_s, self._check_idle)

    def __aiter__(self) -> HTTPStream:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        while not self._over:
            data = await self._read()
            if data is None:
                break
            decoder = self._decoder
            events = decoder.feed(data) if data else decoder.finish()
            if decoder.failure is not None:
                self._fail(decoder.failure)
            elif decoder.done or not data:
                self._complete()
            if events:
                return events
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close, upstream too: the connection is dropped if the model is still writing. Safe to call twice."""
        if self._over:
            return
        if self._decoder.ended and self._waiting_since is None:
            self._complete()
        else:
            self._drop()

    async def _read(self) -> bytes | None:
        """The next bytes; empty at the end of the body, None when there is nothing to come."""
        self._waiting_since = self._loop.time()
        try:
            return await self._body.read()
        except httpx2.TransportError:
            if self._over:
                return None
            if self._decoder.ended:
                self._body.abort()
                return b""  # nothing is missing
            if self._silent:
                self._fail(errors.silent(self._idle_timeout_s, what="in the middle of the answer"))
            else:
                self._fail(errors.disconnected())
            return None
        finally:
            self._waiting_since = None

    def _check_idle(self) -> None:
        since = self._waiting_since
        now = self._loop.time()
        # Silence counts only while somebody is listening: a slow client is not the upstream's fault.
        due = (now if since is None else since) + self._idle_timeout_s
        if due > now:
            self._timer = self._loop.call_at(due, self._check_idle)
        else:
            self._silent = True
            self._body.abort()

    def _complete(self) -> None:
        self._over = True
        self._timer.cancel()
        if not self._body.ended:
            # The end of the HTTP body comes with the last event or right behind it, and puts the connection back into
            # the pool by itself. That is not worth holding the answer up for.
            self._endings.expect(self._body)

    def _fail(self, failure: ModelError) -> None:
        self._failure = self._secrets.keep(failure)
        self._drop()

    def _drop(self) -> None:
        self._over = True
        self._timer.cancel()
        self._body.abort()
