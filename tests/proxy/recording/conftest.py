import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Proxy, proxy_for

Serve = Callable[..., contextlib.AbstractAsyncContextManager[Proxy]]


@pytest.fixture(params=["file", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The config's `[store]`: one that outlives the proxies of a test."""
    if request.param == "redis":
        return f'[store]\nurl = "{request.getfixturevalue("fresh_redis").url}"\ntimeout_s = 5\n'
    return f'[store]\npath = "{tmp_path / "store.db"}"\ntimeout_s = 5\n'


@pytest.fixture
def serve(store: str) -> Serve:
    """Makes proxies that share one store."""

    @contextlib.asynccontextmanager
    async def serve(upstream: str | None, *tools: Any, toml: str = "", **options: Any) -> AsyncIterator[Proxy]:
        async with proxy_for(upstream, *tools, toml=f"{toml}\n{store}", **options) as proxy:
            yield proxy

    return serve
