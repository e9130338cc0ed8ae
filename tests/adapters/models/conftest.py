import asyncio
from collections.abc import AsyncIterator

import loopback
import pytest


@pytest.fixture
async def upstream() -> AsyncIterator[loopback.LoopbackUpstream]:
    upstream, server = await loopback.start()
    yield upstream
    server.close()


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time."""
    waited: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", record)
    return waited
