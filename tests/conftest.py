from collections.abc import Iterator

import pytest
from redis_server import RedisServer, redis_server


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """A server for whoever does it no harm. It begins when it is first used."""
    with redis_server() as server:
        yield server


@pytest.fixture
def fresh_redis(shared_redis: RedisServer) -> RedisServer:
    """The shared server, with nothing in it."""
    shared_redis.client().flushall()
    return shared_redis
