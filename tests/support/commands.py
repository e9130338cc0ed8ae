"""`asynclm` commands as processes, for tests that are not async themselves."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what would change how asynclm or an OpenAI client behaves."""
    ours = ("ASYNCLM_", "OPENAI_", "ANTHROPIC_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**kept, "NO_PROXY": "127.0.0.1", **more}


@contextlib.contextmanager
def started(*command: str | Path, cwd: Path, **environ: str) -> Iterator[str]:
    """Run a command until it prints its first line; give that, and stop it cleanly in the end."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def listening(*arguments: str, cwd: Path, **environ: str) -> Iterator[str]:
    """Run `asynclm ...` until it says where it listens; give that address, and stop it cleanly in the end."""
    with started(sys.executable, "-m", "asynclm.proxy.cli", *arguments, cwd=cwd, **environ) as line:
        assert "listening on http://" in line, line
        yield line.split()[-1]


def output_of(*command: str | Path, cwd: Path, **environ: str) -> str:
    """What a command prints. Fails with its errors if it does."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(**environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def fenced(path: Path, language: str) -> list[str]:
    """The code blocks of a Markdown file in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def tables(path: Path) -> dict[str, list[list[str]]]:
    """The tables of a Markdown file by the heading above them: rows of cells, the header left out."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
        elif line.startswith("|"):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split(" | ")])
    return {heading: rows[2:] for heading, rows in found.items()}
