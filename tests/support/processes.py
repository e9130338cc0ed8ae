"""`asynclm` as a process of its own."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


async def asynclm(*arguments: str, cwd: Path, **environ: str) -> Process:
    env = {key: value for key, value in os.environ.items() if not key.startswith("ASYNCLM_")}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "asynclm.proxy.cli", *arguments, cwd=cwd, env=env | environ, stdout=PIPE, stderr=PIPE
    )


async def fails(*arguments: str, cwd: Path, **environ: str) -> tuple[int, str]:
    """Exit status and what was said, which is one line."""
    process = await asynclm(*arguments, cwd=cwd, **environ)
    out, err = await process.communicate()
    assert out == b""
    assert err.count(b"\n") == 1, err.decode()
    assert process.returncode is not None
    return process.returncode, err.decode()


@asynccontextmanager
async def serving(cwd: Path, *arguments: str, **environ: str) -> AsyncIterator[tuple[Process, str]]:
    process = await asynclm("serve", "--port", "0", *arguments, cwd=cwd, **environ)
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("asynclm: listening on http://127.0.0.1:"), line
        yield process, line.split()[-1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
