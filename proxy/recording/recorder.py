"""Writes recordings to the store while runs go on: one task for all of them, off the path of every chunk.

Every quarter of a second it takes what the tapes have collected and appends it to the store. While the store doesn't
help, that stays in memory up to a bound; past it the largest recordings in flight are dropped, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

import msgspec

from asynclm.proxy.recording.archive import Archive, Facts
from asynclm.proxy.recording.tape import Tape

_log: Final = logging.getLogger(__name__)

_EVERY_S: Final = 0.25
_WARN_EVERY_S: Final = 60.0
_MAX_GONE: Final = 1000
_BATCH_BYTES: Final = 2**20  # written at once: within the time that one operation has
_INDEX_BYTES: Final = 2**18  # how much of a recording that is being made the index may not know of
_SHARE: Final = 4  # one recording may take no more than this part of all the room


class Counts(msgspec.Struct):
    """Recordings since the start: kept, and dropped. `waiting_bytes` is what isn't in the store yet."""

    kept: int = 0
    dropped: int = 0
    waiting_bytes: int = 0


class _Job:
    """One recording on its way to the store."""

    def __init__(self, tape: Tape, *, replace: bool) -> None:
        self.tape = tape
        self.replace = replace
        self.waiting = b""  # lines that are not in the store
        self.sent = b""  # those of them that may be there: the store has not said so
        self.number = 0  # of the next batch
        self.size = 0  # bytes in the store
        self.known = -1  # of those, how many the index knows of; below 0: it isn't in the index
        self.ended = False  # its last line is in `waiting`, or beyond

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return self.tape.size + len(self.waiting) + len(self.sent)

    def facts(self) -> Facts:
        """As the index has them."""
        tape = self.tape
        of = tape.timeline
        facts = Facts(tape.id, of.model, of.policy, of.created, tape.asked.key, size=self.size)
        if not tape.done:
            return facts
        status: Final = "finished" if tape.ok else "failed"
        return msgspec.structs.replace(facts, status=status, duration_s=tape.seconds)


class Recorder:
    """Owns the recordings that are being made. `max_waiting` bounds what is kept in memory (bytes)."""

    def __init__(self, archive: Archive, *, max_bytes: int, max_waiting: int = 16 * 2**20) -> None:
        self._counts = Counts()
        self._archive = archive
        self._max_each = max_bytes // _SHARE
        self._max_waiting = max_waiting
        self._jobs: list[_Job] = []
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._turned = asyncio.Event()  # set when a round is over, and then another one
        self._gone: list[str] = []  # dropped, with something of them in the store
        self._blocked = False  # the store took nothing in the last round
        self._closed = False
        self._warned = float("-inf")

    @property
    def counts(self) -> Counts:
        """What has become of the recordings so far."""
        self._counts.waiting_bytes = sum(job.held for job in self._jobs)
        return self._counts

    def record(self, tape: Tape, *, replace: bool) -> None:
        """Write this recording, from now until it is done; with `replace`, in place of one of the same request."""
        if self._closed:
            return
        self._jobs.append(_Job(tape, replace=replace))
        self._idle.clear()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(), name="recordings")

    async def settled(self, asked: str, within_s: float) -> None:
        """Wait until what has just answered that request is in the store: not for longer than that, and not for a store
        that takes nothing.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while any(job.tape.done and job.tape.asked.key == asked for job in self._jobs):
                    self._hurry.set()
                    await self._turned.wait()
                    if self._blocked:
                        return

    async def idle(self) -> None:
        """Wait until everything is written, or dropped."""
        self._hurry.set()
        await self._idle.wait()

    async def aclose(self) -> None:
        """Write what is left, if the store takes it at once. No run is under way any more."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._jobs:
            await self._round()
        for job in list(self._jobs):
            self._drop(job, "the proxy has stopped")
        self._idle.set()

    async def _work(self) -> None:
        while self._jobs:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self._hurry.wait()
            self._hurry.clear()
            try:
                await self._round()
            except Exception:
                _log.exception("recording failed")
                for job in list(self._jobs):
                    self._drop(job, "a fault of the proxy's own")
        self._idle.set()

    async def _round(self) -> None:
        """Write what there is, of every recording in turn."""
        for job in list(self._jobs):
            self._collect(job)
        self._bound()
        self._blocked = False
        clock = asyncio.get_running_loop().time
        looked = clock()
        for job in list(self._jobs):
            if not await self._write(job):
                self._blocked = True
                break  # the store doesn't help: neither will it with the next
            if clock() - looked >= _EVERY_S:  # a slow store takes long, and the tapes go on
                self._bound()
                looked = clock()
        else:
            gone, self._gone = self._gone, []
            await self._archive.remove(gone)
        turned, self._turned = self._turned, asyncio.Event()
        turned.set()
        if not self._jobs:
            self._idle.set()

    def _collect(self, job: _Job) -> None:
        if not job.ended:
            job.ended = job.tape.done
            try:
                job.waiting += job.tape.take()
            except (ValueError, TypeError, RecursionError) as error:  # what can't be written takes no other with it
                self._drop(job, f"it can't be written ({type(error).__name__})")
                return
            if job.size + len(job.waiting) + len(job.sent) > self._max_each:
                self._drop(job, f"it is larger than {self._max_each} bytes")

    def _bound(self) -> None:
        while self._jobs and sum(job.held for job in self._jobs) > self._max_waiting:
            self._drop(max(self._jobs, key=lambda job: job.held), "the store takes nothing, and memory is bounded")

    async def _write(self, job: _Job) -> bool:
        """False where the store doesn't help."""
        if job not in self._jobs:
            return True
        if job.known < 0 and not await self._enter(job):
            return False
        while job.waiting or job.sent:
            if not job.sent:
                job.sent, job.waiting = job.waiting[:_BATCH_BYTES], job.waiting[_BATCH_BYTES:]
            done = await self._archive.append(job.tape.id, job.number, job.sent)
            if done is None:
                return False
            if not done:
                self._drop(job, "its beginning has gone from the store")
                return True
            job.number += 1
            job.size += len(job.sent)
            job.sent = b""
            if job.size - job.known > _INDEX_BYTES and not await self._enter(job):
                return False
        if job.ended:
            return await self._finish(job)
        return True

    async def _finish(self, job: _Job) -> bool:
        if job.tape.ok and await self._archive.serve(job.tape.asked.key, job.tape.id, replace=job.replace) is None:
            return False
        if not await self._enter(job):
            return False
        self._jobs.remove(job)
        self._counts.kept += 1
        return True

    async def _enter(self, job: _Job) -> bool:
        """Put it into the index, with its present size. False where the store doesn't help."""
        if await self._archive.enter(job.facts()) is None:
            return False
        job.known = job.size
        return True

    def _drop(self, job: _Job, why: str) -> None:
        self._jobs.remove(job)
        job.tape.stop()
        self._counts.dropped += 1
        if job.known >= 0 and len(self._gone) < _MAX_GONE:
            self._gone.append(job.tape.id)
        now = asyncio.get_running_loop().time()
        if now - self._warned >= _WARN_EVERY_S:
            self._warned = now
            _log.warning(
                "the recording of %s is dropped: %s (%d dropped since the start)",
                job.tape.id,
                why,
                self._counts.dropped,
            )
