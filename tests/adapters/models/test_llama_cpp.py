"""`prefill = "tokens"` with a real llama.cpp server over HTTP: exact, and only what is new gets evaluated."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import harness
import pytest

from asynclm.adapters.models import ModelError, OpenAIModel, Request, TextDelta
from asynclm.adapters.models.transformers.source import find
from asynclm.cml.render import STOP
from asynclm.cml.transcript import Segment
from asynclm.cml.usage import Usage

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(300)]

SERVER = Path(harness.__file__).parent / "llama_server.py"
SYSTEM = "You are a helpful assistant. " * 20
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Tell me a story about a fox."}]
TOLD = Segment("runtime", '[INTR] a [HEAD] {"weather": "sunny"} [END]')


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[str]:
    """The address of a server with SmolLM2 and two slots."""
    model = find(None, print).path
    command = [sys.executable, str(SERVER), str(model), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, "the server did not start"
            yield f"{url}/v1"
        finally:
            process.kill()


@pytest.fixture
async def model(llama_cpp: str) -> AsyncIterator[OpenAIModel]:
    model = OpenAIModel(llama_cpp, prefill_style="tokens")
    yield model
    await model.aclose()


def request(transcript: Sequence[Segment] = (), max_tokens: int = 60, **more: Any) -> Request:
    fields = {"messages": MESSAGES, "parameters": {"temperature": 0}} | more
    return Request(model="m", transcript=transcript, max_tokens=max_tokens, **fields)


async def run(model: OpenAIModel, asked: Request, *, pieces: int | None = None) -> tuple[str, Usage | None]:
    """Read an answer, or close it after so many pieces."""
    stream = await model.open(asked)
    text, usage, count = "", None, 0
    async for batch in stream:
        for event in batch:
            if isinstance(event, TextDelta):
                text += event.text
                count += 1
            elif isinstance(event, Usage):
                usage = event
        if pieces is not None and count >= pieces:
            break
    await stream.aclose()
    return text, usage


async def test_a_resume_goes_on_exactly_and_only_what_is_new_is_evaluated(model: OpenAIModel) -> None:
    # The prompt is in the cache from now on: evaluated in one batch, its last token would get other roundings.
    await run(model, request(max_tokens=1))
    whole, counted = await run(model, request())
    assert counted is not None
    prompt = counted.prompt_tokens
    assert counted == Usage(prompt, 60, prompt - 1)
    for pieces in (10, 25):
        begin, _ = await run(model, request(), pieces=pieces)
        rest, usage = await run(model, request([Segment("model", begin)], 60 - pieces))
        assert whole.startswith(begin)
        assert usage is not None
        assert (begin + rest)[: len(whole)] == whole[: len(begin + rest)]
        assert len(begin + rest) >= len(whole) - 20  # some pieces came after the cut was decided, and counted
        # llama.cpp evaluates the last token of every prompt.
        assert usage.prompt_tokens - usage.cached_tokens == 1


async def test_with_an_interrupt_only_its_tokens_are_evaluated(model: OpenAIModel, llama_cpp: str) -> None:
    await run(model, request(max_tokens=1))
    async with aiohttp.ClientSession() as session:
        content = f"x\n{TOLD.text}\n"
        async with session.post(llama_cpp.removesuffix("v1") + "tokenize", json={"content": content}) as response:
            told = len((await response.json())["tokens"])
    transcript: list[Segment] = []
    for pieces in (20, 15, 10):  # each goes on from the one before it, cut while the model is writing
        text, _ = await run(model, request(transcript), pieces=pieces)
        text = text[: len(text) // 2] if pieces == 15 else text
        transcript += [Segment("model", text), TOLD]
        _, usage = await run(model, request(transcript, 3))
        assert usage is not None
        # What was told, and the token in which the cut lies.
        assert told - 1 <= usage.prompt_tokens - usage.cached_tokens <= told + 2
        assert usage.completion_tokens == 3


async def test_a_trap_that_the_stop_sequence_ends(model: OpenAIModel) -> None:
    call = "[CALL] a [HEAD] weather(city='Oslo') [END]\\n[TRAP][END]"
    parameters = {"temperature": 0, "grammar": f'root ::= "{call}"'}
    text, first = await run(model, request(parameters=parameters, stop=(STOP,)))
    written = call.replace("\\n", "\n")
    assert text == written[: -len(STOP)]
    assert first is not None
    transcript = [Segment("model", written), TOLD]
    _, usage = await run(model, request(transcript, 5))
    assert usage is not None
    # All that was written is in the cache, but for the trap, whose tokens are not known where it was cut off.
    assert usage.cached_tokens >= first.prompt_tokens + first.completion_tokens - 8


async def test_a_prompt_that_is_too_long(model: OpenAIModel) -> None:
    with pytest.raises(ModelError) as caught:
        await model.open(request(messages=[{"role": "user", "content": "word " * 3000}]))
    assert caught.value.status == 400
    assert "exceeds the available context size (2048 tokens)" in caught.value.message


async def test_a_closed_stream_stops_the_server(model: OpenAIModel, llama_cpp: str) -> None:
    await run(model, request(max_tokens=1000, parameters={"temperature": 0, "ignore_eos": True}), pieces=3)
    async with aiohttp.ClientSession() as session:

        async def busy() -> int:
            async with session.get(llama_cpp.removesuffix("v1") + "slots") as response:
                return sum(slot["is_processing"] for slot in await response.json())

        while await busy():  # some 1000 tokens would take longer than a test may
            pass


def stock(article: str) -> int:
    """How many there are."""
    return 17


async def test_through_the_whole_proxy(llama_cpp: str) -> None:
    toml = 'prefill = "tokens"\n[models."*"]\npolicy = "coalesce"\n[limits]\nmax_resumes = 1\n'
    grammar = "root ::= \"[CALL] a [HEAD] stock(article='pears') [END]\\n[TRAP][END]\""
    async with harness.proxy_for(llama_cpp, stock, toml=toml) as proxy:
        completion = await proxy.client().chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "How many pears are there?"}],
            temperature=0,
            extra_body={"grammar": grammar},
        )
        assert completion.choices[0].finish_reason == "length"  # it is held to the call again, which is one too many
        async with aiohttp.ClientSession() as session:
            runs = proxy.url.removesuffix("/v1") + "/v1/asynclm/runs"
            async with session.get(runs) as response:
                (listed,) = (await response.json())["data"]
            async with session.get(f"{runs}/{listed['id']}") as response:
                timeline = await response.json()
    entries = timeline["entries"]
    told = next(entry for entry in entries if entry["kind"] == "interrupt")
    assert told["data"]["text"] == "[INTR] a [HEAD] 17 [END]"
    first, second = (entry["data"] for entry in entries if entry["kind"] == "usage")
    assert second["prompt_tokens"] - second["cached_tokens"] < 25
    assert second["cached_tokens"] > first["prompt_tokens"]
