"""What docs/interrupts.md shows, done: its Python client and its curl, against the proxy itself."""

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest
from commands import ROOT, environment, fenced, tables
from harness import Proxy, answer_of, proxy_for
from upstream import Answer, ScriptedUpstream

from asynclm.cml.machine.events import Scheduling

PAGE = ROOT / "docs" / "interrupts.md"
ADDRESS = "http://127.0.0.1:8787/v1"


def stock(article: str) -> int:
    """How many pieces are in stock."""
    return 17


def example(language: str, proxy: Proxy, folder: Path) -> Path:
    """The page's code in that language, pointed at the test's proxy."""
    code = fenced(PAGE, language)[0]
    assert code.count(ADDRESS) == 1
    path = folder / code.splitlines()[0].removeprefix("# ")
    path.write_text(code.replace(ADDRESS, proxy.url))
    return path


async def output_of(*command: str | Path, **environ: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, env=environment(**environ), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return output.decode()


def seen(upstream: ScriptedUpstream) -> str:
    return upstream.requests[-1]["messages"][-1]["content"]


async def test_python(tmp_path: Path) -> None:
    script = [Answer("There are ", "never sent", hold=asyncio.Event(), hold_at=1), Answer("17 in the north.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, stock) as proxy:
        path = example("python", proxy, tmp_path)
        assert await output_of(sys.executable, path, OPENAI_API_KEY="sk-x") == "There are 17 in the north."
        assert seen(upstream) == fenced(PAGE, "cml")[0].splitlines()[0]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
async def test_curl(tmp_path: Path) -> None:
    hold = asyncio.Event()
    script = [Answer("There ", "are 17.", hold=hold, hold_at=1), Answer("And three more.")]
    async with ScriptedUpstream(script) as upstream, proxy_for(upstream.url, stock) as proxy:
        raw = await proxy.client().chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": "How many?"}], stream=True
        )
        run = raw.headers["x-asynclm-run-id"]
        answered = json.loads(await output_of("sh", example("sh", proxy, tmp_path), RUN=run))
        assert answered == json.loads(fenced(PAGE, "json")[0]) | {"run": run}
        hold.set()
        assert await answer_of(raw.parse()) == ("There are 17.\n\nAnd three more.", "stop")
        assert seen(upstream) == fenced(PAGE, "cml")[0].splitlines()[1]


def test_every_scheduling_is_listed() -> None:
    rows = tables(PAGE)["When the model is told"]
    assert [row[0].strip("`") for row in rows] == list(Scheduling)
