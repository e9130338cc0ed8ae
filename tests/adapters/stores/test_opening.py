"""URLs of stores: which are good, and what is said of the others."""

import pytest

from asynclm.adapters.stores import BadURLError, check_url, shown


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://ann:hunter2@cache.example.com:6380/1?ssl_cert_reqs=none", "rediss://cache.example.com:6380/1"),
        ("redis://:hunter2@[::1]/", "redis://[::1]/"),
        ("unix://ann:hunter2@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("redis+cluster://:hunter2@node-1:7000", "redis+cluster://node-1:7000"),
        ("rediss+cluster://node-1:7000", "rediss+cluster://node-1:7000"),
    ],
)
async def test_good_ones(url: str, name: str) -> None:
    check_url(url)
    assert shown(url) == name


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "must begin with one of redis://"),
        ("http://hunter2.example.com", "must begin with one of redis://"),
        ("redis:hunter2", "must name a host"),
        ("redis://:hunter2@:6379", "must name a host"),
        ("redis://host:hunter2", "is not an address"),
        ("unix://", "must name a socket"),
        ("redis://host?socket_timeout=hunter2", "can't be used: ValueError"),
        ("redis://host?hunter2=1", "can't be used: TypeError"),
        ("redis://host/hunter2", "must have the number of a database as its path"),
        ("redis+cluster://host/1", "a cluster has no numbers of databases"),
        ("redis://host?decode_responses=true", "must not set decode_responses"),
        ("redis+cluster://host?protocol=3", "must not set protocol"),
    ],
)
async def test_bad_ones(url: str, why: str) -> None:
    with pytest.raises(BadURLError) as error:
        check_url(url)
    assert why in str(error.value)
    assert "hunter2" not in str(error.value)
