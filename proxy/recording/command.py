"""What `asynclm runs` does with recordings: lists and shows them, runs them again, exports and imports them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from rich.console import Console

from asynclm.cml.machine import POLICIES
from asynclm.cml.timeline import Timeline
from asynclm.proxy.config import Config, load
from asynclm.proxy.config_error import ConfigError
from asynclm.proxy.lanes import length
from asynclm.proxy.picture import Picture
from asynclm.proxy.recording.archive import Archive, Facts, Unguarded
from asynclm.proxy.recording.recorded import Recording, RecordingError, read, split
from asynclm.proxy.recording.recordings import summary
from asynclm.proxy.registry import Summary
from asynclm.proxy.stores import UNUSABLE, open_client

_TIMEOUT_S: Final = 10.0
_OFF: Final = "off"

T = TypeVar("T")


class CommandError(Exception):
    """What can't be done, in one line; `status` is the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def has_store(args: Namespace) -> bool:
    """Whether there is a store to look into without a proxy."""
    try:
        config = load(args.config, os.environ, Path.cwd())
    except ConfigError:
        return False
    settings = config.store
    return settings.url is not None or (bool(settings.path) and (config.base / settings.path).exists())


def summaries(args: Namespace) -> list[Summary]:
    """The recorded runs, the newest first."""

    async def look(archive: Archive) -> list[Summary]:
        return [summary(facts) for facts in await archive.all() or []]

    return _with_archive(args, look)


def timeline(args: Namespace) -> Timeline:
    """The timeline of a recorded run."""
    return _load(args).timeline


def export(args: Namespace) -> int:
    """Write recordings as JSON Lines."""

    async def collect(archive: Archive) -> list[bytes]:
        ids = args.ids or [facts.id for facts in reversed(await archive.all() or [])]
        found = [(id, await archive.load(id)) for id in ids]
        missing = [id for id, data in found if not data]
        if args.ids and missing:
            raise CommandError(_no_recording(missing[0]))
        return [data for _, data in found if data]

    recordings = _with_archive(args, collect)
    data = b"".join(recordings)
    if args.output is None:
        sys.stdout.buffer.write(data)
        return 0
    try:
        args.output.write_bytes(data)
    except OSError as error:
        raise CommandError(f"{args.output} can't be written: {error.strerror}") from None
    print(f"{_count(len(recordings))} written to {args.output}")
    return 0


def import_(args: Namespace) -> int:
    """Put exported recordings into the store; each serves its request from now on. All of them or none."""
    room = _config(args).recording.max_bytes
    found: list[tuple[Recording, bytes]] = []
    for path in args.files:
        try:
            with path.open("rb") as file:
                data = file.read(room + 1)
        except OSError as error:
            raise CommandError(f"{path} can't be read: {error.strerror}") from None
        room -= len(data)
        if room < 0:  # else the first of them, and all that was there, would make room for the last
            raise CommandError(f"{path}: there is no room for so much: raise recording.max_bytes")
        try:
            found += [(read(part), part) for part in split(data)]
        except RecordingError as error:
            raise CommandError(f"{path}: {error}") from None
    if not found:
        raise CommandError(f"{', '.join(map(str, args.files))}: there is no recording in it")

    async def put(archive: Archive) -> int:
        there = {facts.id for facts in await archive.all() or []}
        for recording, data in found:
            if recording.answered is None and recording.id in there:
                continue  # a file that was cut off takes nothing away
            await archive.remove([recording.id])
            await archive.append(recording.id, 0, data)
            await archive.enter(_facts(recording, len(data)))
            if recording.servable:
                await archive.serve(recording.question.key, recording.id, replace=False)
        kept = {facts.id for facts in await archive.all() or []}
        lost = sum(recording.id not in kept for recording, _ in found)
        if lost:
            raise CommandError(f"{_count(lost)} found no room: raise recording.max_bytes")
        return len(found)

    print(f"{_count(_with_archive(args, put))} imported")
    if broken := sum(recording.answered is None for recording, _ in found):
        print(f"asynclm: of these, {_count(broken)} without an end, which serve no request", file=sys.stderr)
    return 0


def replay(args: Namespace) -> int:
    """Run a recording again and show both timelines."""
    if importlib.util.find_spec("looptime") is None:
        raise CommandError("this needs looptime: pip install 'asynclm[bench]'")
    from asynclm.proxy.recording.what_if import run_again

    recording = _load(args)
    if recording.answered is None or not recording.wrote:
        raise CommandError(f"the recording {recording.id} has no end, so it can't be run again")
    was = recording.timeline
    if any(entry.kind in ("handed", "continued", "rebuilt") for entry in was.entries):
        raise CommandError(f"the run {recording.id} has calls to its client's own tools, so it can't be run again")
    policy = args.policy or was.policy
    if policy not in (*POLICIES, _OFF):
        raise CommandError(f"there is no policy {policy[:40]!r}, under which it was recorded: choose one (--policy)")
    if policy != _OFF and was.policy == _OFF:
        raise CommandError(f"the run {recording.id} had no tools: there is nothing for a policy to decide")
    try:
        again = run_again(
            recording,
            policy,
            ttft_s=None if args.ttft_ms is None else args.ttft_ms / 1000,
            tpot_s=None if args.tpot_ms is None else args.tpot_ms / 1000,
            inject=args.inject,
        )
    except RecordingError as error:
        raise CommandError(str(error)) from None
    now = again.timeline
    console = Console()
    console.print(Picture(was, now, titles=[f"recorded: {was.policy}", f"now: {policy}"]))
    print()
    for name, each in (("recorded", was), ("now", now)):
        requests = sum(entry.kind == "opened" for entry in each.entries)
        calls = sum(entry.kind == "dispatched" for entry in each.entries)
        print(f"{name:9} {each.policy:10} {length(each) * 1000:8.0f} ms  {requests:3} requests  {calls:3} calls")
    if length(now) > 0:
        print(f"{length(was) / length(now):.2f} times as fast as recorded")
    for note in again.notes:
        print(f"- {note}")
    return 0


def policies() -> list[str]:
    """What a run can be run again under."""
    return list(POLICIES)


def _load(args: Namespace) -> Recording:
    async def look(archive: Archive) -> bytes | None:
        return await archive.load(args.id)

    data = _with_archive(args, look)
    if not data:
        raise CommandError(_no_recording(args.id))
    try:
        return read(data)
    except RecordingError as error:
        raise CommandError(str(error)) from None


def _config(args: Namespace) -> Config:
    try:
        return load(args.config, os.environ, Path.cwd())
    except ConfigError as error:
        raise CommandError(str(error), 2) from None


def _with_archive(args: Namespace, work: Callable[[Archive], Coroutine[Any, Any, T]]) -> T:
    """Do something with the recordings in the store that the config names. Raises `CommandError`."""
    config = _config(args)
    settings = config.store
    if settings.url is None and not settings.path:
        raise CommandError(
            "the store is in the proxy's memory, where nobody else can look: set store.url or store.path"
        )
    if args.action != "import" and settings.url is None and not (config.base / settings.path).exists():
        config = msgspec.structs.replace(config, store=msgspec.structs.replace(settings, path=""))  # make no file

    async def act() -> T:
        async with _archive(config) as archive:
            return await work(archive)

    try:
        return asyncio.run(act())
    except UNUSABLE as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise CommandError(f"the store {open_client(config)[1]} can't be used: {said}") from None


@contextlib.asynccontextmanager
async def _archive(config: Config) -> AsyncIterator[Archive]:
    redis, _ = open_client(config, timeout_s=_TIMEOUT_S, or_memory=False)
    try:
        settings = config.recording
        yield Archive(Unguarded(redis, config.store.prefix), keep_s=settings.keep_s, max_bytes=settings.max_bytes)
    finally:
        await redis.aclose()


def _facts(recording: Recording, size: int) -> Facts:
    of = recording.timeline
    facts = Facts(of.run, of.model, of.policy, of.created, recording.question.key, size=size)
    if recording.answered is None:
        return facts
    status: Any = "finished" if recording.servable else "failed"
    return msgspec.structs.replace(facts, status=status, duration_s=length(of))


def _no_recording(id: str) -> str:
    return f"there is no recording of run {id[:80]!r} in the store (asynclm runs list)"


def _count(number: int) -> str:
    return f"{number} recording{'' if number == 1 else 's'}"
