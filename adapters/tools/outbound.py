"""Where requests of tools may go: only to known hosts, and never into the network that the proxy stands in.

A name is judged by what it resolves to at the moment of connecting: the very address that is about to be connected to
is checked, so a name that first resolves to a public address and then to a private one (DNS rebinding) gets nowhere.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable
from typing import Final

import aiohttp

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: a public IPv4 address as seen from an IPv6 network


class Outbound:
    """What may be connected to besides public addresses.

    `allow_private` is True for anything, else the host names, addresses and networks (`10.0.0.0/8`) that may be
    private. Raises ValueError for a network that is none.
    """

    def __init__(self, allow_private: bool | Iterable[str] = False) -> None:
        self._anything = allow_private is True
        self._networks: list[Network] = []
        self._hosts: set[str] = set()
        for each in () if isinstance(allow_private, bool) else allow_private:
            try:
                self._networks.append(ipaddress.ip_network(each.strip("[]"), strict=False))
            except ValueError:
                if "/" in each or not each.strip():
                    raise ValueError(f"{each[:100]!r} is neither a host nor a network such as 10.0.0.0/8") from None
                self._hosts.add(each.lower().rstrip("."))

    def connector(self) -> aiohttp.TCPConnector:
        """A connector that refuses every other address, with an OSError (EACCES) that says so."""
        return aiohttp.TCPConnector(socket_factory=self._socket)

    def trusts(self, host: str) -> bool:
        """Whether the config names this very host, which may then resolve to anything."""
        return self._anything or host.lower().rstrip(".") in self._hosts

    def refusal(self, address: str) -> str | None:
        """Why this address may not be connected to; None if it may."""
        parsed = _inner(ipaddress.ip_address(address))
        if self._anything or any(parsed.version == network.version and parsed in network for network in self._networks):
            return None
        kind = _kind(parsed)
        return kind and f"{address} is {kind} address, which allow_private does not allow"

    def _socket(self, info: tuple[int, int, int, str, tuple[str | int, ...]]) -> socket.socket:
        family, type, proto, _, address = info
        refusal = self.refusal(str(address[0]))
        if refusal is not None:
            raise OSError(errno.EACCES, refusal)
        return socket.socket(family, type, proto)


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None) or address


def _kind(address: Address) -> str | None:
    """What is not public about an address, with its article."""
    kinds = {
        "an unspecified": address.is_unspecified,
        "a loopback": address.is_loopback,
        "a link-local": address.is_link_local,
        "a multicast": address.is_multicast,
        "a private": address.is_private or (isinstance(address, ipaddress.IPv6Address) and address.is_site_local),
        "a reserved": address.is_reserved or not address.is_global,
    }
    return next((kind for kind, applies in kinds.items() if applies), None)
