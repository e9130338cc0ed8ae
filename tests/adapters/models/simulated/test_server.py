import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp.test_utils import TestServer
from openai.types.chat import ChatCompletionMessageParam

from asynclm.adapters.models.simulated.plan import GREETING
from asynclm.adapters.models.simulated.server import make_app
from asynclm.adapters.models.simulated.settings import Settings
from asynclm.adapters.models.simulated.task import Node, Task, encode_task
from asynclm.cml.render import render_interrupt

QUICK = {"ttft_ms": 0.0, "tpot_ms": 0.0}
TASK = Task((Node("a", "f()", (), 1), Node("b", "g()", ("a",), 1)))
USER: ChatCompletionMessageParam = {"role": "user", "content": encode_task(TASK)}
WRITTEN = "[CALL] a [HEAD] f() [END]\n[TRAP][END]"
TOKENS = 10  # of WRITTEN


@contextlib.asynccontextmanager
async def upstream(**settings: Any) -> AsyncIterator[tuple[str, openai.AsyncOpenAI]]:
    """A simulated upstream on loopback, and the official client for it."""
    async with TestServer(make_app(Settings(**(QUICK | settings)))) as server:
        url = str(server.make_url("/v1"))
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            yield url, client


async def stats(url: str) -> dict[str, int]:
    async with aiohttp.ClientSession() as session, session.get(url.replace("/v1", "/stats")) as response:
        found: dict[str, int] = await response.json()
        return found


async def until_stats(url: str, **wanted: int) -> None:
    async with asyncio.timeout(10):
        while (found := await stats(url)) | wanted != found:
            await asyncio.sleep(0.01)


async def test_the_official_client_streams() -> None:
    async with upstream() as (_, client):
        stream = await client.chat.completions.create(
            model="m1", messages=[USER], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    assert choices[0].delta.role == "assistant"
    assert [choice.delta.role for choice in choices[1:]] == [None] * (len(choices) - 1)
    assert "".join(choice.delta.content or "" for choice in choices) == WRITTEN
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert chunks[-1].choices == []
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens == -(-len(str(USER["content"])) // 4)
    assert usage.completion_tokens == TOKENS == len(chunks) - 3  # all but role, finish and usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert {chunk.model for chunk in chunks} == {"m1"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


async def test_the_stream_is_not_followed_by_usage_unless_asked() -> None:
    async with upstream() as (_, client):
        stream = await client.chat.completions.create(model="m", messages=[USER], stream=True)
        chunks = [chunk async for chunk in stream]
    assert all(chunk.choices for chunk in chunks)


async def test_the_official_clients_stream_helper_accepts_it() -> None:
    async with upstream() as (_, client), client.chat.completions.stream(model="m", messages=[USER]) as stream:
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == WRITTEN


async def test_not_streamed() -> None:
    async with upstream() as (_, client):
        completion = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert completion.choices[0].message.content == GREETING
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 1


async def test_a_whole_run_by_resuming() -> None:
    results = {"a": '{"x": 1}', "b": '"[END]"'}
    messages: list[ChatCompletionMessageParam] = [USER]
    async with upstream() as (_, client):
        for name, value in results.items():
            completion = await client.chat.completions.create(model="m", messages=messages, stop=["P][END]"])
            text = completion.choices[0].message.content or ""
            assert f"[CALL] {name} [HEAD]" in text
            assert text.endswith("[TRA")
            messages.append({"role": "assistant", "content": text})
            messages.append({"role": "user", "content": render_interrupt(name, value)})
        completion = await client.chat.completions.create(model="m", messages=messages)
    assert completion.choices[0].message.content == 'Done.\na = {"x": 1}\nb = "\\u005bEND]"'


async def test_models_and_health() -> None:
    async with upstream() as (url, client):
        assert [model.id async for model in client.models.list()] == ["simulated"]
        async with aiohttp.ClientSession() as session, session.get(url.replace("/v1", "/healthz")) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    ("extra", "text", "reason"),
    [
        ({"max_tokens": 2}, "[CALL] a", "length"),
        ({"max_completion_tokens": 2}, "[CALL] a", "length"),
        ({"stop": "a"}, "[CALL] ", "stop"),
        ({"stop": ["1", "2", "3", "END"]}, "[CALL] a [HEAD] f() [", "stop"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
async def test_bounds(extra: dict[str, Any], text: str, reason: str, streamed: bool) -> None:
    async with upstream() as (_, client):
        if streamed:
            stream = await client.chat.completions.create(model="m", messages=[USER], stream=True, **extra)
            choices = [chunk.choices[0] async for chunk in stream]
            assert "".join(choice.delta.content or "" for choice in choices) == text
            assert choices[-1].finish_reason == reason
        else:
            completion = await client.chat.completions.create(model="m", messages=[USER], **extra)
            assert completion.choices[0].message.content == text
            assert completion.choices[0].finish_reason == reason


MESSAGES = json.dumps([USER])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "not valid JSON"),
        (b'{"model": "\xff", "messages": []}', "not valid JSON"),
        ('{"model": "m"}', "missing required field `messages`"),
        ('{"model": "m", "messages": []}', "messages must not be empty"),
        ('{"model": "m", "messages": "hi"}', "$.messages"),
        (f'{{"messages": {MESSAGES}}}', "missing required field `model`"),
        (f'{{"model": "m", "messages": {MESSAGES}, "stop": ["1", "2", "3", "4", "5"]}}', "up to 4 sequences, not 5"),
        (f'{{"model": "m", "messages": {MESSAGES}, "stop": 5}}', "$.stop"),
        (f'{{"model": "m", "messages": {MESSAGES}, "n": 2}}', "n must be 1"),
        (f'{{"model": "m", "messages": {MESSAGES}, "max_tokens": 0}}', "max_tokens must be at least 1"),
        (f'{{"model": "m", "messages": {MESSAGES}, "stream": "yes"}}', "$.stream"),
        ('{"model": "m", "messages": [{"role": "user", "content": "<task>"}]}', "not closed"),
    ],
)
async def test_bad_input_is_a_400_in_openais_shape(body: str | bytes, says: str) -> None:
    async with upstream() as (url, _), aiohttp.ClientSession() as session:
        async with session.post(f"{url}/chat/completions", data=body) as response:
            assert response.status == 400
            error = (await response.json())["error"]
        assert says in error["message"]
        assert error["type"] == "invalid_request_error"
        assert set(error) == {"message", "type", "param", "code"}
        assert (await stats(url))["refused"] == 1


async def test_unknown_paths_and_methods_have_openais_error_shape() -> None:
    async with upstream() as (url, client):
        with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings"):
            await client.embeddings.create(model="m", input="x")
        async with aiohttp.ClientSession() as session, session.get(f"{url}/chat/completions") as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")
            assert (await response.json())["error"]["type"] == "invalid_request_error"


# ---------------------------------------------------------------------- faults


async def test_an_error_status_for_the_first_requests_which_the_client_retries() -> None:
    async with upstream(error_status=429, error_times=2, retry_after=0.01) as (url, client):
        with pytest.raises(openai.RateLimitError, match="simulated error 429") as caught:
            await client.chat.completions.create(model="m", messages=[USER])
        assert caught.value.response.headers["retry-after"] == "0.01"
        completion = await client.with_options(max_retries=1).chat.completions.create(model="m", messages=[USER])
        assert completion.choices[0].message.content == WRITTEN
        found = await stats(url)
        assert (found["requests"], found["failed"], found["completed"]) == (3, 2, 1)


async def test_an_error_rate_is_the_same_for_the_same_seed() -> None:
    async def outcomes(seed: int) -> list[bool]:
        found = []
        async with upstream(error_status=503, error_rate=0.5, seed=seed) as (_, client):
            for _ in range(20):
                try:
                    await client.chat.completions.create(model="m", messages=[USER])
                    found.append(True)
                except openai.InternalServerError:
                    found.append(False)
        return found

    first = await outcomes(1)
    assert first == await outcomes(1) != await outcomes(2)
    assert 0 < sum(first) < 20


async def streamed_text(client: openai.AsyncOpenAI, header: str | None = None) -> tuple[str, BaseException | None]:
    """What arrives of a stream, and what then goes wrong."""
    text = ""
    headers = {"x-simulate": header} if header else {}
    try:
        stream = await client.chat.completions.create(model="m", messages=[USER], stream=True, extra_headers=headers)
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    except Exception as error:
        return text, error
    return text, None


@pytest.mark.parametrize("by_header", [True, False])
@pytest.mark.parametrize("tokens", [0, 3, TOKENS - 1])
async def test_an_error_event_in_the_stream(tokens: int, by_header: bool) -> None:
    async with upstream(**({} if by_header else {"error_at": tokens})) as (url, client):
        text, error = await streamed_text(client, f"error_at={tokens}" if by_header else None)
        assert isinstance(error, openai.APIError)
        assert error.message == f"simulated error after {tokens} tokens"
        assert WRITTEN.startswith(text)
        assert bool(text) == bool(tokens)
        assert (await stats(url))["failed"] == 1


async def test_faults_of_answers_that_are_not_streamed() -> None:
    async with upstream() as (url, client):
        with pytest.raises(openai.InternalServerError, match="after 2 tokens"):
            await client.chat.completions.create(model="m", messages=[USER], extra_headers={"x-simulate": "error_at=2"})
        with pytest.raises(openai.APIConnectionError):
            await client.chat.completions.create(model="m", messages=[USER], extra_headers={"x-simulate": "break_at=2"})
        assert (await stats(url))["failed"] == 2


async def test_a_dropped_connection() -> None:
    async with upstream(break_at=3) as (url, client):
        text, error = await streamed_text(client)
        assert error is not None
        assert text == "[CALL] a [HE"
        await until_stats(url, failed=1, active=0)
        # Past the fault's token the stream is whole.
        assert await streamed_text(client, "break_at=500") == (WRITTEN, None)


async def test_a_stall_lasts_until_the_client_leaves() -> None:
    async with upstream(stall_at=3) as (url, client):
        stream = await client.chat.completions.create(model="m", messages=[USER], stream=True)
        chunks = [await anext(stream) for _ in range(4)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "[CALL] a [HE"
        await until_stats(url, active=1)
        await stream.close()
        await until_stats(url, active=0, aborted=1)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_before_the_first_token_is_noticed(streamed: bool) -> None:
    async with upstream(ttft_ms=3_600_000) as (url, client):
        request: Any = client.chat.completions.create(model="m", messages=[USER], stream=streamed)
        reader = asyncio.create_task(_first(request) if streamed else request)
        await until_stats(url, active=1)
        reader.cancel()
        await asyncio.wait([reader])
        await until_stats(url, active=0, aborted=1)


async def _first(request: Any) -> Any:
    return await anext(await request)


async def test_connections_are_counted_and_kept() -> None:
    async with upstream() as (url, client):
        for _ in range(3):
            await streamed_text(client)
        found = await stats(url)
        assert (found["connections"], found["requests"], found["completed"]) == (2, 3, 3)  # one is that of stats()
        await client.close()
        await until_stats(url, open=1)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("ttft_ms", "'ttft_ms' is not key=value"),
        ("nonsense=1", "'nonsense=1' is not key=value"),
        ("error_times=1", "one of the keys ttft_ms"),
        ("ttft_ms=soon", "ttft_ms"),
        ("break_at=-1", "break_at must not be negative"),
        ("error_status=200", "from 400 to 599"),
    ],
)
async def test_a_bad_header_is_refused(header: str, says: str) -> None:
    async with upstream() as (_, client):
        text, error = await streamed_text(client, header)
        assert isinstance(error, openai.BadRequestError)
        assert says in error.message
        assert text == ""


async def test_a_header_changes_one_request_only() -> None:
    async with upstream(error_status=500) as (_, client):
        assert isinstance((await streamed_text(client, "error_status=401; ttft_ms=1"))[1], openai.AuthenticationError)
        assert isinstance((await streamed_text(client))[1], openai.InternalServerError)


# ---------------------------------------------------------------------- the command


async def start(*flags: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "asynclm.adapters.models.simulated", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_serves_and_stops_cleanly(number: signal.Signals) -> None:
    process = await start("--port", "0", "--ttft-ms", "0", "--stall-at", "2")
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.startswith("asynclm simulate: listening on http://127.0.0.1:")
        async with openai.AsyncOpenAI(base_url=line.split()[-1], api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(model="m", messages=[USER], stream=True)
            await anext(stream)  # a stream is open, and stays so
            process.send_signal(number)
            out, errors = await process.communicate()
            assert (process.returncode, out, errors) == (0, b"", b"")
            await stream.close()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_port_that_is_taken_is_one_line() -> None:
    async with upstream() as (url, _):
        process = await start("--port", url.split(":")[-1].removesuffix("/v1"))
        out, errors = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert errors.startswith(b"asynclm simulate: can't listen on 127.0.0.1:")
    assert errors.count(b"\n") == 1


async def test_flags_that_make_no_sense_are_one_line() -> None:
    process = await start("--error-status", "200")
    out, errors = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert errors == b"asynclm simulate: error_status must be from 400 to 599\n"
