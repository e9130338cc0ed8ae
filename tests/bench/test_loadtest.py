"""The parts of `bench/wire.py`: an upstream that official clients understand, and a client that sees what is wrong."""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from asynclm.bench import wire
from asynclm.bench.loadtest import fake_upstream
from asynclm.bench.loadtest.connection import Connection
from asynclm.bench.loadtest.limits import CML, DIRECT, LIMITS, PASS, rows, table
from asynclm.bench.loadtest.load import Measured, Scenario, Target, measure
from asynclm.bench.loadtest.servers import ServerError, running
from asynclm.bench.loadtest.verify import WrongAnswerError, verify

QUESTION = [{"role": "user", "content": "hi"}]
EVENTS = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":" the"}}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
)
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def chunked(*parts: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def counted(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    server, url = await fake_upstream.start()
    yield url
    server.close()


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[Target]:
    """A server that gives this answer to whatever it is asked, and then closes the connection."""

    async def answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer_one, "127.0.0.1", 0)
    try:
        yield Target("test", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", os.getpid())
    finally:
        server.close()


def scenario(model: str, requests: int = 8) -> Scenario:
    return Scenario("test", 4, model, direct=True, requests=requests, limit_s=10, settle_s=0, sample_memory=True)


# ---------------------------------------------------------------------- the fake upstream


async def test_the_official_client_reads_a_stream(upstream: str) -> None:
    async with openai.AsyncOpenAI(base_url=upstream, api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="fake-20-1-3-12", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == fake_upstream.expected_text(20, 12)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-2:] == [None, "stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20
    assert len(chunks) == 22


async def test_the_official_client_reads_a_whole_answer_and_the_models(upstream: str) -> None:
    async with openai.AsyncOpenAI(base_url=upstream, api_key="k", max_retries=0) as client:
        answer = await client.chat.completions.create(model="fake-5-1", messages=QUESTION)
        assert answer.choices[0].message.content == fake_upstream.expected_text(5)
        assert "fake-200-0" in [model.id async for model in client.models.list()]


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("err-429", openai.RateLimitError),
        ("err-500", openai.InternalServerError),
        ("gpt-4o", openai.NotFoundError),
        ("fake-0-0", openai.NotFoundError),
        ("fake-one-two", openai.NotFoundError),
    ],
)
async def test_errors_are_errors_to_the_official_client(upstream: str, model: str, error: type[Exception]) -> None:
    async with openai.AsyncOpenAI(base_url=upstream, api_key="k", max_retries=0) as client:
        with pytest.raises(error):
            await client.chat.completions.create(model=model, messages=QUESTION)


# ---------------------------------------------------------------------- the load client


async def test_a_load_is_measured(upstream: str) -> None:
    measured = await measure(scenario("fake-5-1"), Target("test", upstream, os.getpid()), [])
    assert (measured.complete, measured.streams, measured.errors) == (8, 8, {})
    assert measured.cpu_us_per_request == pytest.approx(5 * measured.cpu_us_per_chunk)
    assert measured.cpu_us_per_request > 0
    assert measured.rss_peak_mib >= measured.pss_peak_mib > 1
    assert measured.first_p50_ms is not None


@pytest.mark.parametrize(
    ("model", "error"),
    [("err-500", "status 500"), ("cut-3-0", "connection lost (end of file)"), ("nonsense", "status 404")],
)
async def test_what_the_upstream_does_wrong_is_counted(upstream: str, model: str, error: str) -> None:
    target = Target("test", upstream, os.getpid())
    connection = await target.connect()
    assert await connection.exchange(target.request(model)) == error
    connection.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (chunked(*EVENTS), None),
        (counted(b"200", b"".join(EVENTS)), None),
        (OK + b"\r\n" + b"".join(EVENTS), None),  # ends with its connection
        (counted(b"502", b"{}"), "status 502"),
        (chunked(*EVENTS[:1], *EVENTS[2:]), "no content"),
        (chunked(*EVENTS[:2], b'data: {"error":{"message":"it broke"}}\n\n', EVENTS[3]), "no finish reason"),
        (chunked(*EVENTS[:3]), "no [DONE]"),
        (chunked(*EVENTS)[:-5], "connection lost (end of file)"),
        (counted(b"200", b"".join(EVENTS))[:-9], "connection lost (end of file)"),
        (b"220 mail.example.com ESMTP\r\n\r\n", "not HTTP"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
async def test_every_broken_answer_is_an_error(answer: bytes, error: str | None) -> None:
    async with answering(answer) as target:
        measured = await measure(scenario("fake-1-0"), target, [])
    if error is None:
        assert (measured.complete, measured.errors) == (8, {})
    else:
        assert (measured.complete, measured.errors) == (0, {error: 4})  # each loop ends at its first


class Sink(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_reads_may_cut_an_answer_anywhere(size: int) -> None:
    answer = chunked(*EVENTS).replace(b"Connection: close\r\n", b"")
    connection = Connection()
    connection.connection_made(Sink())
    for _ in range(2):  # the connection is used again
        exchange = asyncio.ensure_future(connection.exchange(b""))
        await asyncio.sleep(0)
        for at in range(0, len(answer), size):
            assert not exchange.done()
            connection.data_received(answer[at : at + size])
        assert await exchange is None
        assert connection.reusable


async def test_an_error_under_load_ends_the_benchmark() -> None:
    async with answering(counted(b"502", b"{}")) as target:
        with pytest.raises(wire.BrokenError, match="test failed in test: 4 x status 502"):
            await wire.run(scenario("fake-1-0"), target, [], 0)


async def test_the_servers_of_the_benchmark_answer_rightly() -> None:
    async with contextlib.AsyncExitStack() as stack:
        targets = await wire.start(stack)
        assert [target.name for target in targets] == [DIRECT, PASS, CML]
        for target in targets:
            await wire.verified(target)
        with pytest.raises(WrongAnswerError, match="this is not the mode to be measured"):
            await wire.verified(targets[1]._replace(name=CML))


async def test_a_target_that_is_not_there_is_an_error() -> None:
    async with answering(b"") as target:
        pass
    with pytest.raises(ConnectionRefusedError):
        await measure(scenario("fake-1-0"), target, [])


# ---------------------------------------------------------------------- verification, servers, table


async def test_verification(upstream: str) -> None:
    await verify("upstream", upstream, 20, 1)
    with pytest.raises(WrongAnswerError, match="no header x-other"):
        await verify("upstream", upstream, 20, 1, header="x-other")
    async with answering(chunked(*EVENTS)) as wrong:
        with pytest.raises(WrongAnswerError, match=re.escape("text of a stream of 2 chunks: ' the'")):
            await verify("wrong", wrong.url, 2, 0)
    with pytest.raises(WrongAnswerError, match="APIConnectionError"):
        await verify("gone", wrong.url, 2, 0)


async def test_a_server_runs_as_long_as_its_block(tmp_path: Path) -> None:
    command = (sys.executable, fake_upstream.__file__)
    async with running("upstream", command, tmp_path) as server:
        await verify("upstream", server.url, 3, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(server.process, 0)


async def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "raise SystemExit('the port is taken')")
    with pytest.raises(ServerError, match="upstream did not come up: the port is taken"):
        async with running("upstream", command, tmp_path):
            pass


def run_of(target: str, scenario: str, round: int, scale: float) -> Measured:
    return Measured(
        target=target,
        scenario=scenario,
        round=round,
        complete=1,
        errors={},
        seconds=1,
        streams=1,
        requests_per_s=1,
        chunks_per_s=1000 / scale,
        cpu_us_per_request=100 * scale,
        cpu_us_per_chunk=10 * scale,
        first_p50_ms=scale,
        first_p99_ms=scale,
        rss_peak_mib=50 * scale,
        pss_peak_mib=50 * scale,
        client_cores=0,
        other_cores=0.25,
    )


def test_rows_are_medians_of_what_each_round_gave() -> None:
    scales = {DIRECT: (1, 2, 4), PASS: (1, 2.5, 8), CML: (2, 6, 8)}
    runs = [
        run_of(target, name, round, scale)
        for target, of_rounds in scales.items()
        for round, scale in enumerate(of_rounds)
        for name in ("chunks", "ttft32")
    ]
    rate, cpu, added = rows(runs)
    assert rate.measured == pytest.approx((0.8, 0.5))  # of 1, 0.8, 0.5 and of 1/2, 1/3, 1/2
    assert (rate.ok, rate.verdict) == (True, "ok")
    assert cpu.measured == (25, 60)
    assert (cpu.ok, cpu.verdict) == (False, f"over: {PASS}, {CML}")
    assert added.measured == (0.5, 4)
    assert (added.ok, added.verdict) == (False, f"over: {CML}")
    printed = table([rate, cpu, added], runs)
    assert [line.split("  ")[-1] for line in printed.splitlines()[2:5]] == [rate.verdict, cpu.verdict, added.verdict]
    assert "Medians of 3 rounds. Other processes kept 0.2 of" in printed


def test_every_limit_has_its_row() -> None:
    names = {limit.scenario for limit in LIMITS}
    runs = [run_of(target, name, 0, 1) for target in (DIRECT, PASS, CML) for name in names]
    assert [row.limits for row in rows(runs)] == [(0.7, 0.4), (15, 30), (200, 250), (1500, 2500), (2, 3), (80, 120)]
