from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis_server import RedisServer

from asynclm.adapters.stores import Embedded, Store, connect


@pytest.fixture(params=["file", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of the store."""
    kind: str = request.param
    return kind


@pytest.fixture
def shared(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The config of a store that proxies share."""
    if kind == "file":
        return f'[store]\npath = "{tmp_path / "store.db"}"\ntimeout_s = 5.0\n'
    server: RedisServer = request.getfixturevalue("fresh_redis")
    return f'[store]\nurl = "{server.url}"\ntimeout_s = 5.0\n'


@pytest.fixture
async def shared_store(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Such a store."""
    if kind == "file":
        store = Store(Embedded(tmp_path / "store.db"), name=kind, timeout_s=5.0)
    else:
        server: RedisServer = request.getfixturevalue("fresh_redis")
        store = Store(connect(server.url, timeout_s=5.0), name=kind, timeout_s=5.0)
    yield store
    await store.aclose()
