"""Where tools may connect to: judged by the address that is connected to, whatever name led there."""

import socket

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from services import Service

from asynclm.adapters.tools.outbound import Outbound

PRIVATE = {
    "127.0.0.1": "loopback",
    "127.8.8.8": "loopback",
    "::1": "loopback",
    "::ffff:127.0.0.1": "loopback",
    "64:ff9b::7f00:1": "loopback",
    "2002:7f00:1::1": "loopback",
    "10.0.0.1": "private",
    "172.16.0.1": "private",
    "192.168.1.1": "private",
    "fd00::1": "private",
    "fec0::1": "private",
    "::ffff:10.0.0.1": "private",
    "2001:0:53aa:64c:0:fbff:f5ff:fffe": "private",  # Teredo, for 10.0.0.1
    "169.254.169.254": "link-local",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "0.0.0.0": "unspecified",
    "::": "unspecified",
    "::ffff:0.0.0.0": "unspecified",
    "224.0.0.1": "multicast",
    "ff02::1": "multicast",
    "100.64.0.1": "reserved",
    "240.0.0.1": "private",
    "255.255.255.255": "private",
    "::127.0.0.1": "reserved",
}
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public_is_refused(address: str) -> None:
    refusal = Outbound().refusal(address)
    assert refusal is not None
    assert f"{address} is a" in refusal
    assert PRIVATE[address] in refusal
    assert Outbound(True).refusal(address) is None


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_not(address: str) -> None:
    assert Outbound().refusal(address) is None


def test_networks_that_are_allowed() -> None:
    outbound = Outbound(("10.0.0.0/8", "fd00::/8", "192.168.1.7", "[::1]"))
    assert [outbound.refusal(each) for each in ("10.1.2.3", "fd12::1", "192.168.1.7", "::1", "::ffff:10.0.0.1")] == [
        None
    ] * 5
    assert all(map(outbound.refusal, ("127.0.0.1", "192.168.1.8", "fe80::1")))
    assert not outbound.trusts("10.1.2.3")


def test_hosts_that_are_allowed() -> None:
    outbound = Outbound(("Intranet.example.", "localhost"))
    assert outbound.trusts("intranet.EXAMPLE")
    assert outbound.trusts("localhost.")
    assert not outbound.trusts("evil.intranet.example")
    assert outbound.refusal("127.0.0.1") is not None


@pytest.mark.parametrize("wrong", ["10.0.0.0/99", "host/24", " "])
def test_what_is_neither_a_host_nor_a_network(wrong: str) -> None:
    with pytest.raises(ValueError, match="is neither a host nor a network"):
        Outbound((wrong,))


class Rebinding(AbstractResolver):
    """A name server under an attacker's control: each question gets the next answer."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self.addresses.pop(0)
        return [ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


async def get(url: str, outbound: Outbound, resolver: AbstractResolver | None = None) -> int:
    connector = outbound.connector()
    if resolver is not None:
        connector._resolver = resolver
        connector._use_dns_cache = False
    async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as response:
        return response.status


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"])
async def test_no_connection_is_made(host: str) -> None:
    async with Service() as service:
        with pytest.raises(aiohttp.ClientConnectorError, match="allow_private does not allow"):
            await get(f"http://{host}:{service.port}/", Outbound())
        assert service.received == []


async def test_a_name_that_changes_its_mind_gets_nowhere() -> None:
    async with Service() as service:
        url = f"http://rebinding.example:{service.port}/"
        # What is allowed first may be connected to; a check of the name would pass for both.
        outbound = Outbound(("127.0.0.1",))
        resolver = Rebinding("127.0.0.1", "127.0.0.2")
        assert await get(url, outbound, resolver) == 200
        with pytest.raises(aiohttp.ClientConnectorError, match=r"127\.0\.0\.2 is a loopback address"):
            await get(url, outbound, resolver)
        assert len(service.received) == 1
