"""What a proxy does with recordings: says which runs are recorded, and serves the recorded ones.

`x-asynclm-replay` of a request decides: `off` (live, not recorded), `record` (live, recorded, in place of what was
there), `replay` (from the recording, or a 404), `auto` (from the recording, or live and recorded). Without the header,
runs are live, and recorded where the config says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import msgspec
from aiohttp import web

from asynclm.adapters.stores import Store
from asynclm.cml.timeline import Timeline
from asynclm.cml.tools import ToolSpec
from asynclm.proxy.background import Background
from asynclm.proxy.chat import ChatRequest
from asynclm.proxy.config import Config
from asynclm.proxy.conversations.stored_turns import Kept
from asynclm.proxy.errors import SERVER_ERROR, APIError, invalid
from asynclm.proxy.recording.archive import Archive, Facts
from asynclm.proxy.recording.canonical import Asked, TooDeepError, asked
from asynclm.proxy.recording.recorded import Recording, RecordingError, read
from asynclm.proxy.recording.recorder import Counts, Recorder
from asynclm.proxy.recording.redaction import Redactor
from asynclm.proxy.recording.replay import play
from asynclm.proxy.recording.tape import Tape
from asynclm.proxy.registry import Summary

REPLAY_HEADER: Final = "x-asynclm-replay"
REPLAYED_HEADER: Final = "x-asynclm-replayed"
_MODES: Final = ("off", "record", "replay", "auto")
_SETTLE_S: Final = 2.0

Remember = Callable[[str, Kept], Awaitable[None]]


class Wish(msgspec.Struct, frozen=True):
    """What is to be done for one request. `asked` is None where that is nothing; `client` is the client's key."""

    mode: str | None = None
    asked: Asked | None = None
    record: bool = False
    client: str | None = None
    stream: bool = False


LIVE: Final = Wish()


class Recordings:
    """The recordings of one proxy. `keys` are secrets that it knows."""

    def __init__(self, config: Config, store: Store, background: Background, keys: Iterable[str | None] = ()) -> None:
        settings = config.recording
        self._settings = settings
        self._recorded_speed = config.replay.speed == "recorded"
        self._heartbeat_s = config.server.heartbeat_s
        self._background = background
        self._file = config.base / config.store.path if config.store.url is None and config.store.path else None
        self._off_keys = frozenset(key.lower() for key in settings.off_keys)
        self._redactor = Redactor(settings.redact, keys)
        self.archive = Archive(store, keep_s=settings.keep_s, max_bytes=settings.max_bytes)
        self.recorder = Recorder(self.archive, max_bytes=settings.max_bytes)
        self._stopping: asyncio.Event | None = None
        self._playing = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def counts(self) -> Counts:
        """What has become of recordings since the start."""
        return self.recorder.counts

    # ------------------------------------------------------------------ one request

    def wish(self, request: web.Request, chat: ChatRequest, specs: Iterable[ToolSpec], client: str | None) -> Wish:
        """What the request and the config want. Raises `APIError` (400)."""
        mode = mode_of(request)
        settings = self._settings
        allowed = settings.record != "off" and not self._is_off(client)
        if mode == "record" and not allowed:
            why = "in this proxy's config" if settings.record == "off" else "for this key"
            raise invalid(f"{REPLAY_HEADER}: nothing is recorded: that is switched off {why}.", REPLAY_HEADER)
        record = allowed and (mode in ("record", "auto") or (mode is None and settings.record == "all"))
        if not record and mode not in ("replay", "auto"):
            return LIVE
        try:
            what = asked(chat, specs, (client or "") if settings.scope == "client" else None)
        except TooDeepError as error:
            if mode is None:
                return LIVE
            raise invalid(f"{REPLAY_HEADER}: such a request can't be recorded: {error}.", REPLAY_HEADER) from None
        return Wish(mode, what, record, client, chat.stream)

    async def replay(
        self, request: web.Request, chat: ChatRequest, wish: Wish, remember: Remember
    ) -> web.StreamResponse | None:
        """The recorded answer; None where the request is to be answered live. Raises `APIError` where it may not.

        `remember` is given what later turns are to know of it, as they would of a live run.
        """
        if wish.asked is None or wish.mode not in ("replay", "auto"):
            return None
        try:
            recording = await self._find(wish.asked.key)
        except APIError:
            if wish.mode == "auto":
                return None
            raise
        if recording.answered is not None and recording.answered.turn is not None:
            await remember(recording.said, recording.answered.turn)
        self._playing += 1
        self._idle.clear()
        if self._stopping is None:
            self._stopping = asyncio.Event()
        run = recording.id.partition("-")[0]  # of which this may be a further answer
        try:
            return await play(
                recording,
                request,
                chat,
                {
                    "x-asynclm-run-id": run,
                    "x-request-id": f"replay_{os.urandom(12).hex()}",
                    REPLAYED_HEADER: "1",
                },
                self._background,
                heartbeat_s=self._heartbeat_s,
                timed=self._recorded_speed,
                stopping=self._stopping,
            )
        finally:
            self._playing -= 1
            if not self._playing:
                self._idle.set()

    def tape(self, timeline: Timeline, wish: Wish, *, answer: int = 1, late: float = 0.0) -> Tape | None:
        """The recording of an answer that begins now, `late` seconds after its run; None where none is wanted."""
        if wish.asked is None or not wish.record:
            return None
        clock = asyncio.get_running_loop().time
        redactor = self._redactor.with_key(wish.client)
        tape = Tape(timeline, wish.asked, stream=wish.stream, redactor=redactor, clock=clock, answer=answer, late=late)
        self.recorder.record(tape, replace=wish.mode is not None)
        return tape

    async def _find(self, key: str) -> Recording:
        await self.recorder.settled(key, _SETTLE_S)
        id = await self.archive.find(key)
        data = await self.archive.load(id) if id else b""
        if id is None or data is None:
            raise APIError(
                503,
                f"{REPLAY_HEADER}: the store with the recordings does not answer.",
                type=SERVER_ERROR,
                code="store_unavailable",
            )
        if not id or not data:
            raise _missing(
                "there is no recording of this request: send it with record or auto first (model, messages, "
                "parameters and the tools' versions must be the same)",
                "recording_not_found",
            )
        try:
            recording = read(data)
        except RecordingError as error:
            raise _missing(f"{error}", "recording_unusable") from None
        if not recording.servable or recording.question.key != key:
            raise _missing(f"the recording {id} does not hold a whole answer to this request", "recording_unusable")
        return recording

    def _is_off(self, client: str | None) -> bool:
        return bool(self._off_keys) and key_hash(client) in self._off_keys

    # ------------------------------------------------------------------ looking

    async def all(self) -> list[Facts]:
        """What is recorded, the newest first; nothing where the store doesn't help."""
        if self._file is not None and not self._file.exists():
            return []  # looking makes no file
        return await self.archive.all() or []

    async def timeline(self, id: str) -> Timeline | None:
        """The timeline of a recorded run."""
        if self._file is not None and not self._file.exists():
            return None
        data = await self.archive.load(id)
        if not data:
            return None
        with contextlib.suppress(RecordingError):
            return read(data).timeline
        return None

    # ------------------------------------------------------------------ the end

    async def idle(self) -> None:
        """Wait until nothing is being replayed."""
        await self._idle.wait()

    def abandon(self) -> None:
        """End what is being replayed with an error, now."""
        if self._stopping is not None:
            self._stopping.set()

    async def aclose(self) -> None:
        """Write what is left."""
        self.abandon()
        await self.recorder.aclose()


def key_hash(key: str | None) -> str:
    """A client's key as `recording.off_keys` names it."""
    return hashlib.sha256((key or "").encode(errors="replace")).hexdigest()


def summary(facts: Facts) -> Summary:
    """A recording as a run in a list."""
    return Summary(facts.id, facts.model, facts.policy, facts.created, facts.status, facts.duration_s)


def mode_of(request: web.Request) -> str | None:
    """What the request says of recordings. Raises `APIError` (400)."""
    mode = request.headers.get(REPLAY_HEADER)
    if mode is not None and mode not in _MODES:
        raise invalid(f"{REPLAY_HEADER} must be one of {'|'.join(_MODES)}, not {mode[:40]!r}.", REPLAY_HEADER)
    return mode


def _missing(why: str, code: str) -> APIError:
    return APIError(404, f"{REPLAY_HEADER}: {why}.", code=code, param=REPLAY_HEADER)
