"""Which network addresses a task may make a worker connect to: public ones, and what the operator has let in.

An address is looked at, never a name: whoever owns a name says what it stands for, and may say so differently a moment
later. IPv6 addresses that carry an IPv4 address are as good as the one they carry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

WEB_PORTS = (80, 443)
FIRST_FREE_PORT = 1024
"""Below it only the web's ports are open: the others belong to services that could be talked to by way of HTTP."""

GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All that is assigned for use on the internet (RFC 4291 section 2.4); the rest of IPv6 is special, or will be."""

NAT64 = IPv6Network("64:ff9b::/96")
"""RFC 6052: the last 32 bits are an IPv4 address."""

NOT_PUBLIC: tuple[Network, ...] = (
    IPv4Network("192.0.0.0/24"),  # IETF assignments, among them the metadata of one cloud; Python 3.11 says global
    IPv4Network("192.88.99.0/24"),  # once the relay of 6to4
    IPv4Network("168.63.129.16/32"),  # Azure's own services, in the middle of public addresses
    IPv4Network("100.100.100.200/32"),  # Alibaba's metadata
    IPv6Network("2001::/32"),  # Teredo (RFC 4380)
    IPv6Network("2002::/16"),  # 6to4 (RFC 3056)
)
"""What ``ipaddress`` takes for global, in one version of Python or another, and is not."""

ONLY_BY_NAME: tuple[Network, ...] = (
    IPv4Network("0.0.0.0/8"),  # this machine, by another name
    IPv4Network("169.254.0.0/16"),  # link-local, and the metadata of nearly every cloud
    IPv4Network("168.63.129.16/32"),
    IPv4Network("100.100.100.200/32"),
    IPv4Network("192.0.0.0/24"),
    IPv4Network("224.0.0.0/3"),  # multicast, reserved, broadcast
    IPv6Network("::/128"),
    IPv6Network("64:ff9b:1::/48"),  # translation as the network likes it (RFC 8215): what is inside cannot be told
    IPv6Network("fd00:ec2::254/128"),  # metadata of Amazon
    IPv6Network("fd20:ce::254/128"),  # and of Google
    IPv6Network("fe80::/10"),
    IPv6Network("ff00::/8"),
)
"""Never let in by a network around them: whoever writes 169.254.0.0/16, or ::/0, most likely does not mean these."""

ENDPOINT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)]|([0-9.]+)):([0-9]{1,5})")
"""``ADDRESS:PORT``, IPv6 in brackets."""


@dataclass(frozen=True)
class Exceptions:
    """What the operator has let in beside the public addresses."""

    networks: tuple[Network, ...] = ()
    """On every port that public addresses have; a network of one address names that one."""
    endpoints: frozenset[tuple[Address, int]] = frozenset()
    """On this port, whatever it is."""

    def names(self, address: Address, port: int) -> bool:
        """Whether the very address and port are let in."""
        return (address, port) in self.endpoints

    def covers(self, address: Address) -> bool:
        """Whether a network lets the address in."""
        around = [network for network in self.networks if address in network]
        if any(address in network for network in ONLY_BY_NAME):
            return any(network.num_addresses == 1 for network in around)
        return bool(around)


def parse_exceptions(text: str) -> Exceptions:
    """From ``NETWORK``, ``ADDRESS:PORT`` and ``[V6]:PORT``, separated by commas. Raises ValueError."""
    networks: list[Network] = []
    endpoints: set[tuple[Address, int]] = set()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        try:
            if found := ENDPOINT.fullmatch(entry):
                endpoints.add((plain(ip_address(found[1] or found[2])), _port(found[3])))
            else:
                networks.append(_network(entry))
        except ValueError as error:
            raise ValueError(f"{entry}: must be a network, ADDRESS:PORT or [IPV6]:PORT ({error})") from None
    return Exceptions(tuple(networks), frozenset(endpoints))


def may_connect(address: Address, port: int, exceptions: Exceptions, *, is_own: bool = False) -> bool:
    """Whether a task may make a worker connect there. ``is_own``: the address belongs to the worker's machine."""
    address = plain(address)
    if exceptions.names(address, port):
        return True
    if port not in WEB_PORTS and port < FIRST_FREE_PORT:
        return False
    if not exceptions.covers(address) and (is_own or not is_public(address)):
        return False
    return all(may_connect(inside, port, exceptions) for inside in carried(address))


def is_public(address: Address) -> bool:
    """Whether the address is one of the internet's, for one machine, and nothing else."""
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    )
    if special or not address.is_global or any(address in network for network in NOT_PUBLIC):
        return False
    return isinstance(address, IPv4Address) or address in GLOBAL_UNICAST


def plain(address: Address) -> Address:
    """The address itself, without a zone; of a mapped one (``::ffff:10.0.0.1``) the IPv4 address that it is."""
    if isinstance(address, IPv4Address):
        return address
    return address.ipv4_mapped or IPv6Address(int(address))


def carried(address: Address) -> tuple[Address, ...]:
    """The IPv4 addresses that packets to this one may end up at, or pass by."""
    if isinstance(address, IPv4Address):
        return ()
    if address in NAT64:
        return (IPv4Address(int(address) & 0xFFFF_FFFF),)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    return address.teredo or ()


def _network(text: str) -> Network:
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError("write it as IPv4")
    return network


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:  # noqa: PLR2004 - TCP
        raise ValueError("a port is 1 to 65535")
    return port
