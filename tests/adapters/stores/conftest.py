from collections.abc import Iterator

import pytest
from redis_server import RedisServer, redis_server


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(shared_redis: RedisServer) -> RedisServer:
    """A server that is up and holds nothing."""
    shared_redis.client().flushall()
    return shared_redis
