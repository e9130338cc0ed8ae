"""Server processes of a benchmark: started on free ports of loopback, and gone when the benchmark is."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

_START_S: Final = 30.0
_STOP_S: Final = 3.0
_ADDRESS: Final = re.compile(r"listening on (http://\S+)")
_PR_SET_PDEATHSIG: Final = 1


class ServerError(Exception):
    """A server did not come up; says which and why."""


class Running(NamedTuple):
    """A server that is up: the URL it has printed, and its process."""

    url: str
    process: int


@contextlib.asynccontextmanager
async def running(name: str, command: Sequence[str | Path], folder: Path) -> AsyncIterator[Running]:
    """Run a server in `folder` until the block is left. It must print one line with `listening on URL` when it is up.

    Settings of whoever runs the benchmark don't reach it: variables for this program, for proxies and for keys are
    taken out of its environment. Raises `ServerError`.
    """
    log = folder / "stderr"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env=_environment(os.environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then stops its servers
            preexec_fn=_die_with_parent,
        )
    try:
        yield Running(await _address(name, process, log), process.pid)
    finally:
        try:
            _signal(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_S):
                    await process.wait()
        finally:
            _signal(process.pid, signal.SIGKILL)  # the whole group: also what a server left behind
    await process.wait()


async def _address(name: str, process: asyncio.subprocess.Process, log: Path) -> str:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_S):
            line = (await process.stdout.readline()).decode(errors="replace")
    except TimeoutError:
        raise ServerError(f"{name} was not up after {_START_S:g} s: {_last_line(log)}") from None
    found = _ADDRESS.search(line)
    if found is None:
        raise ServerError(f"{name} did not come up: {line.strip() or _last_line(log)}")
    return found[1]


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    def kept(name: str) -> bool:
        return not name.startswith("ASYNCLM_") and not name.upper().endswith(("_PROXY", "_API_KEY", "_BASE_URL"))

    return {name: value for name, value in own.items() if kept(name)}


def _die_with_parent() -> None:
    """In the child: have the kernel end it if the benchmark itself is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, number)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
