import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from caching import MakeProxy, Proxy
from redis_server import RedisServer

from asynclm.adapters.stores import Embedded, Store, connect


@pytest.fixture(params=["file", "redis"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeProxy]:
    """Makes proxies that share one store."""
    server: RedisServer | None = request.getfixturevalue("fresh_redis") if request.param == "redis" else None
    made: list[Proxy] = []

    def make(*tools: Any, timeout_s: float = 5.0, **settings: Any) -> Proxy:
        client = Embedded(tmp_path / "store.db") if server is None else connect(server.url, timeout_s=timeout_s)
        made.append(Proxy(Store(client, name=request.param, timeout_s=timeout_s), tools, **settings))
        return made[-1]

    yield make
    for proxy in made:
        with contextlib.suppress(asyncio.CancelledError):
            await proxy.close()
