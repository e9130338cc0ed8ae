"""From a URL to a redis-py client."""

from __future__ import annotations

from typing import Any, Final, cast
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

SCHEMES: Final = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
_CLUSTER: Final = "+cluster"
_OURS: Final = frozenset({"decode_responses", "encoding", "encoding_errors", "protocol"})  # replies must be bytes


class BadURLError(ValueError):
    """A store can't be reached by this URL. The message never quotes it: a password may stand in it."""


def check_url(url: str) -> None:
    """Raises `BadURLError` saying what is wrong with a store's URL."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise BadURLError("is not an address") from None
    if parts.scheme not in SCHEMES:
        raise BadURLError(f"must begin with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if parts.scheme == "unix":
        if not parts.path:
            raise BadURLError("must name a socket: unix:///path/to/redis.sock")
    elif not parts.hostname:
        raise BadURLError("must name a host: redis://127.0.0.1:6379/0")
    elif parts.scheme.endswith(_CLUSTER) and parts.path.strip("/") not in ("", "0"):
        raise BadURLError("must end behind the host: a cluster has no numbers of databases")
    elif (path := parts.path.strip("/")) and not path.isdigit():
        raise BadURLError("must have the number of a database as its path, or none: redis://127.0.0.1:6379/0")
    for option, _ in parse_qsl(parts.query, keep_blank_values=True):
        if option in _OURS:
            raise BadURLError(f"must not set {option}: that is asynclm's own")
    try:
        client: Any = connect(url, timeout_s=1.0)
        if not parts.scheme.endswith(_CLUSTER):
            client.connection_pool.make_connection()  # it takes the options, and connects to nothing yet
    except Exception as error:  # the client has errors of its own for some
        raise BadURLError(f"can't be used: {type(error).__name__}") from None


def connect(url: str, *, timeout_s: float) -> Redis:
    """A client for the server or cluster at `url`; it connects when it is first used. Replies are bytes.

    Nothing is retried here, and no wait is longer than `timeout_s`: the guard around it decides what to do. Raises
    ValueError for a URL that is none.
    """
    parts = urlsplit(url)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "protocol": 2,  # as old servers and the embedded store speak
    }
    if parts.scheme.endswith(_CLUSTER):
        plain = urlunsplit(parts._replace(scheme=parts.scheme.removesuffix(_CLUSTER)))
        # A cluster's client also asks another node where a slot has gone: it may try that once.
        cluster = RedisCluster.from_url(plain, retry=Retry(NoBackoff(), 1), **options)
        return cast(Redis, cluster)  # the same commands
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)


def shown(url: str) -> str:
    """The URL for a message: without user, password and options."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
