"""What is wrong with an http(s) address in the config. Never quotes it: a key may stand in it."""

from __future__ import annotations

from urllib.parse import urlsplit


def address_problem(url: str, *, example: str, keys: str, forbidden: str = " ") -> str | None:
    """What is wrong with `url`; None if nothing is. `keys` names what to use instead of a user name in it."""
    wanted = f"must be an http:// or https:// address, such as {example}"
    try:
        parts = urlsplit(url)
        port = parts.port  # raises ValueError where it is no port
    except ValueError:
        return wanted
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return wanted
    if not url.isascii() or not url.isprintable() or set(forbidden) & set(url):
        return f"{wanted}; this one holds characters that an address can't have"
    if parts.username is not None or parts.password is not None:
        return f"must not hold a user name or password: use {keys}"
    return None
