"""`asynclm serve --local` as a process, with the embedded model; and what is said of models that can't be loaded."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import openai
import pytest
from processes import asynclm, fails, serving
from tiny_model import tiny_folder

TOOLS = '''
def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y
'''


@pytest.mark.heavy
@pytest.mark.timeout(300)
async def test_the_embedded_model_needs_no_config(tmp_path: Path) -> None:
    async with serving(tmp_path, "--local") as (process, url), openai.AsyncOpenAI(base_url=url, api_key="x") as client:
        stream = await client.chat.completions.create(
            model="anything",
            messages=[{"role": "user", "content": "What is the capital of France? One short sentence."}],
            temperature=0,
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert "Paris" in text
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens >= 5
        assert [model.id async for model in client.models.list()] == ["embedded"]
        async with aiohttp.ClientSession() as session, session.get(url.removesuffix("/v1") + "/healthz") as response:
            assert (await response.json())["engines"]["local"]["drawn"] == chunks[-1].usage.completion_tokens
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0


async def test_a_folder_and_tools(tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(TOOLS)
    (tmp_path / "asynclm.toml").write_text('[[tools]]\npython = "tools.py:add"\n')
    folder = str(tiny_folder())
    async with (
        serving(tmp_path, "--local", folder) as (_, url),
        openai.AsyncOpenAI(base_url=url, api_key="x") as client,
    ):
        answer = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "2 + 2?"}], max_tokens=5, seed=1
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 400  # the instructions are in it
        assert len(answer.choices[0].message.content or "") < 100


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("missing.gguf", "missing.gguf"),
        ("broken.gguf", "broken.gguf"),
        ("folder", "config.json"),
        ("mamba", "mamba"),
    ],
)
async def test_a_model_that_can_not_be_loaded(model: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    (tmp_path / "folder").mkdir()
    (tmp_path / "mamba").mkdir()
    (tmp_path / "mamba/config.json").write_text('{"model_type": "no_such_thing", "architectures": ["Mamba"]}')
    process = await asynclm("serve", "--port", "0", "--local", model, cwd=tmp_path)
    _, err = await process.communicate()
    *progress, line = err.decode().splitlines()
    assert process.returncode == 2
    assert len(progress) <= 1  # that the file is being converted
    assert line.startswith("asynclm: ")
    assert said in line


async def test_local_beside_upstreams_of_the_config(tmp_path: Path) -> None:
    (tmp_path / "asynclm.toml").write_text('[upstreams.main]\nkind = "simulated"\n')
    status, line = await fails("serve", "--local", cwd=tmp_path)
    assert status == 2
    assert "--local" in line


async def test_told_to_stop_while_it_loads(tmp_path: Path) -> None:
    process = await asynclm("serve", "--port", "0", "--local", str(tiny_folder()), cwd=tmp_path)
    assert process.stderr is not None
    await asyncio.sleep(2.0)  # in the middle of its imports, or of loading, or when it serves: whichever
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    assert process.returncode in (0, -signal.SIGTERM)
    assert b"Traceback" not in err
