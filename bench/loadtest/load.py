"""One scenario on one target: a closed loop of connections, and what it took of the target's CPU and memory."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from asynclm.bench.loadtest.connection import Connection, now
from asynclm.bench.loadtest.processes import Memory, cpu_s, machine_cpu_s, memory, tree

_CONNECT_S: Final = 10.0
_DRAIN_S: Final = 10.0  # what the streams under way get to end after a timed run
_SAMPLE_S: Final = 0.5  # between two looks at the memory


class Scenario(NamedTuple):
    """A load: `connections` at once, each asking for `model` as soon as its last answer has ended.

    It ends after `seconds`, or after `requests` in all (and then at the latest after `limit_s`). The connections start
    evenly over `spread_s`; `settle_s` is the pause after it, so that the next run finds an idle target. `direct`:
    whether the upstream itself is measured too, as what to compare with.
    """

    name: str
    connections: int
    model: str
    direct: bool
    seconds: float | None = None
    requests: int = 0
    spread_s: float = 0.0
    limit_s: float = 60.0
    settle_s: float = 0.2
    sample_memory: bool = False

    @property
    def chunks(self) -> int:
        """Content chunks of one stream, as the upstream sends it."""
        return int(self.model.split("-")[1])


class Target(NamedTuple):
    """What is measured: a base URL on loopback, and the process (with those below it) that serves it."""

    name: str
    url: str
    process: int

    def request(self, model: str) -> bytes:
        """A streamed chat request, as an official client would send it."""
        system = {"role": "system", "content": "You are a helpful assistant."}
        user = {"role": "user", "content": "Say something short about foxes, please."}
        document = {"model": model, "messages": [system, user], "temperature": 0.7, "stream": True}
        body = msgspec.json.encode(document)
        parts = urlsplit(self.url)
        head = (
            f"POST {parts.path}/chat/completions HTTP/1.1",
            f"Host: {parts.netloc}",
            "Content-Type: application/json",
            "Accept: application/json",
            "User-Agent: loadtest",
            "Authorization: Bearer sk-test-0123456789",
            f"Content-Length: {len(body)}",
        )
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body

    async def connect(self) -> Connection:
        """A connection. Raises OSError."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        async with asyncio.timeout(_CONNECT_S):
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, parts.hostname, parts.port)
            return connection


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one run came to. `streams` counts those still under way at the end by the share that had come.

    Times in the units of the names; `cpu_us_*` is CPU time of the target's processes. `client_cores` is how many cores
    this program kept busy, `other_cores` what is no part of the test: figures taken beside a busy neighbour are worse
    than they need be.
    """

    target: str
    scenario: str
    round: int
    complete: int
    errors: dict[str, int]
    seconds: float
    streams: float
    requests_per_s: float
    chunks_per_s: float
    cpu_us_per_request: float
    cpu_us_per_chunk: float
    first_p50_ms: float | None
    first_p99_ms: float | None
    rss_peak_mib: float
    pss_peak_mib: float
    client_cores: float
    other_cores: float


async def measure(scenario: Scenario, target: Target, bystanders: Sequence[int], round: int = 0) -> Measured:
    """Run a scenario on a target, once. `bystanders` are the other processes of the test.

    Raises OSError if the target can't be reached at the start; what fails later is counted in `errors`.
    """
    clients = _Clients(scenario, target)
    try:
        await clients.connect()
        processes = tree(target.process)
        others = frozenset({os.getpid(), *bystanders}) - processes
        gc.collect()
        gc.disable()  # a collection of the client's would fall into the target's times
        before = _Usage.now(processes, others)
        begin = now()
        clients.start()
        peak = await _watch(clients, scenario, processes)
        seconds = now() - begin
        after = _Usage.now(processes, others)
        complete, streams, firsts_s = clients.progress()
        await clients.drain()
    finally:
        gc.enable()
        await clients.close()
    await asyncio.sleep(scenario.settle_s)
    cpu_us = (after.target_s - before.target_s) * 1e6
    return Measured(
        target=target.name,
        scenario=scenario.name,
        round=round,
        complete=complete,
        errors=dict(clients.errors),
        seconds=seconds,
        streams=streams,
        requests_per_s=streams / seconds,
        chunks_per_s=streams * scenario.chunks / seconds,
        cpu_us_per_request=cpu_us / max(streams, 1),
        cpu_us_per_chunk=cpu_us / max(streams * scenario.chunks, 1),
        first_p50_ms=_quantile_ms(firsts_s, 0.5),
        first_p99_ms=_quantile_ms(firsts_s, 0.99),
        rss_peak_mib=max(before.memory.rss, after.memory.rss, *(memory.rss for memory in peak)),
        pss_peak_mib=max(before.memory.pss, after.memory.pss, *(memory.pss for memory in peak)),
        client_cores=(after.client_s - before.client_s) / seconds,
        other_cores=max(after.rest_s - before.rest_s, 0.0) / seconds,
    )


class _Usage(NamedTuple):
    """What had been used at one moment: CPU seconds of the target, of this program, and of what is not of the test."""

    target_s: float
    client_s: float
    rest_s: float
    memory: Memory

    @classmethod
    def now(cls, target: Set[int], others: Set[int]) -> _Usage:
        target_s = cpu_s(target)
        rest_s = machine_cpu_s() - target_s - cpu_s(others)
        return cls(target_s, time.process_time(), rest_s, memory(target))


async def _watch(clients: _Clients, scenario: Scenario, processes: Set[int]) -> list[Memory]:
    """Wait until the run is over. Returns the memory seen meanwhile, if the scenario asks for that."""
    end = now() + (scenario.seconds or scenario.limit_s)
    seen: list[Memory] = []
    while (left := end - now()) > 0 and not await clients.ended(
        min(left, _SAMPLE_S) if scenario.sample_memory else left
    ):
        if scenario.sample_memory:
            seen.append(memory(processes))
    return seen


class _Clients:
    """The closed loops of one run, each with a connection and a task of its own."""

    def __init__(self, scenario: Scenario, target: Target) -> None:
        self.errors: Counter[str] = Counter()
        self._scenario = scenario
        self._target = target
        self._request = target.request(scenario.model)
        self._connections: list[Connection] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._firsts_s: list[float] = []
        self._events = 0  # of the complete streams
        self._started = 0
        self._stopping = False

    async def connect(self) -> None:
        for _ in range(self._scenario.connections):
            self._connections.append(await self._target.connect())

    def start(self) -> None:
        spread_s = self._scenario.spread_s / self._scenario.connections
        for index in range(self._scenario.connections):
            self._tasks.append(asyncio.create_task(self._run(index, index * spread_s)))

    async def ended(self, seconds: float) -> bool:
        """Whether all the loops end within so many seconds."""
        return not (await asyncio.wait(self._tasks, timeout=seconds))[1]

    def progress(self) -> tuple[int, float, list[float]]:
        """Complete streams; the same with the shares of those under way; the times to the first content, sorted."""
        complete = len(self._firsts_s)
        busy = [connection.events for connection in self._connections if connection.busy]
        # A stream's events are those of the complete ones; without any, what the upstream sends.
        events = self._events / complete if complete else self._scenario.chunks + 2
        return complete, complete + min(len(busy), sum(busy) / events), sorted(self._firsts_s)

    async def drain(self) -> None:
        """Let the streams under way end, so that the next run finds an idle target; what doesn't is an error."""
        self._stopping = True
        _, late = await asyncio.wait(self._tasks, timeout=_DRAIN_S)
        if late:
            self.errors["unfinished"] += len(late)

    async def close(self) -> None:
        """End everything. Raises what a loop failed with, which is a fault of this program."""
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections:
            connection.close()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _run(self, index: int, delay_s: float) -> None:
        """One loop. It ends at the first error: that fails the benchmark anyhow."""
        await asyncio.sleep(delay_s)
        while not self._stopping and (self._scenario.seconds is not None or self._started < self._scenario.requests):
            self._started += 1
            connection = self._connections[index]
            try:
                if not connection.reusable:
                    connection.close()
                    connection = self._connections[index] = await self._target.connect()
                error = await connection.exchange(self._request)
            except OSError as failure:
                error = f"can't connect ({type(failure).__name__})"
            if error is not None:
                self.errors[error] += 1
                return
            assert connection.first_s is not None, "the connection takes an answer without content for an error"
            self._firsts_s.append(connection.first_s)
            self._events += connection.events


def _quantile_ms(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else None
