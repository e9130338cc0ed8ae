from pathlib import Path

import pytest
from redis_server import RedisServer


@pytest.fixture(params=["file", "redis"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The config of a store that proxies share."""
    if request.param == "file":
        return f'[store]\npath = "{tmp_path / "store.db"}"\ntimeout_s = 5.0\n'
    server: RedisServer = request.getfixturevalue("fresh_redis")
    return f'[store]\nurl = "{server.url}"\ntimeout_s = 5.0\n'
