import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis_server import RedisServer, redis_server

# No test speaks TLS to a host outside. Every client that is made, here or in a process that a test starts, would load
# the system's hundreds of authorities, which takes as long as a test. This file holds one, whose key nobody has.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "support/authority.pem")

# A machine with other work is no fault of a test: nothing asserts how long something took.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests stay together when several processes share the work.

    Those marked `heavy` do, so that a model is loaded once, and those that share what is made once for their file.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is not None or not isinstance(item, pytest.Function):
            continue
        if item.get_closest_marker("heavy") is not None:
            item.add_marker(pytest.mark.xdist_group("heavy"))
            continue
        fixtures = [defined[-1] for defined in item._fixtureinfo.name2fixturedefs.values()]
        if any(fixture.scope in ("class", "module", "package") for fixture in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


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
