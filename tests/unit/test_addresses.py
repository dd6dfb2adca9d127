"""Which addresses may be connected to, and what the operator's exceptions let in."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from runwire.domain.addresses import Exceptions, carried, is_public, may_connect, parse_exceptions, plain

NONE = Exceptions()


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "93.184.215.14", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "11.0.0.0",
     "2606:4700:4700::1111", "2a00:1450:4001:80b::200e", "2400::1"],
)  # fmt: skip
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))
    assert may_connect(ip_address(address), 443, NONE)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254",
        "169.254.1.1", "169.254.169.254", "168.63.129.16", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192",
        "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
        "239.255.255.250", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::1.1.1.1", "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:101:101::", "5f00::1",
        "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1",
    ],
)  # fmt: skip
def test_any_other_address_is_not(address: str) -> None:
    assert not may_connect(ip_address(address), 443, NONE)


def test_a_mapped_address_is_the_one_it_maps() -> None:
    assert may_connect(ip_address("::ffff:1.1.1.1"), 443, NONE)
    assert may_connect(ip_address("::ffff:10.1.2.3"), 443, parse_exceptions("10.0.0.0/8"))
    assert may_connect(ip_address("10.1.2.3"), 443, parse_exceptions("[::ffff:10.1.2.3]:443"))


def test_a_zone_says_nothing() -> None:
    assert plain(ip_address("fe80::1%eth0")) == ip_address("fe80::1")
    assert may_connect(ip_address("fd00::1%1"), 443, parse_exceptions("fd00::/16"))


def test_what_is_public_by_its_number_and_belongs_to_the_worker_is_not_public() -> None:
    address = ip_address("1.1.1.1")
    assert not may_connect(address, 443, NONE, is_own=True)
    assert may_connect(address, 443, parse_exceptions("1.1.1.1:443"), is_own=True)
    assert may_connect(address, 443, parse_exceptions("1.1.1.0/24"), is_own=True)


@pytest.mark.parametrize(
    ("port", "allowed"), [(80, True), (443, True), (1024, True), (65535, True), (22, False), (25, False), (1023, False)]
)
def test_low_ports_but_the_webs_are_closed(port: int, allowed: bool) -> None:
    assert may_connect(ip_address("1.1.1.1"), port, NONE) is allowed
    assert may_connect(ip_address("10.0.0.1"), port, parse_exceptions("10.0.0.0/8")) is allowed
    assert may_connect(ip_address("10.0.0.1"), port, parse_exceptions(f"10.0.0.1:{port}"))


def test_exceptions_let_in_what_they_name_and_nothing_else() -> None:
    exceptions = parse_exceptions(" 10.1.0.0/16, 192.168.7.7:8080 ,[fd00::7]:9000,127.0.0.1,")
    allowed = [("10.1.2.3", 80), ("10.1.2.3", 8443), ("192.168.7.7", 8080), ("fd00::7", 9000), ("127.0.0.1", 4222)]
    refused = [("10.2.0.1", 80), ("192.168.7.7", 8081), ("192.168.7.8", 8080), ("fd00::8", 9000), ("fd00::7", 9001),
               ("127.0.0.2", 4222)]  # fmt: skip
    assert [pair for pair in allowed if not may_connect(ip_address(pair[0]), pair[1], exceptions)] == []
    assert [pair for pair in refused if may_connect(ip_address(pair[0]), pair[1], exceptions)] == []


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "0.0.0.0", "100.100.100.200", "168.63.129.16", "192.0.0.192", "255.255.255.255", "224.0.0.1",
     "::", "fe80::1", "fd00:ec2::254", "fd20:ce::254", "64:ff9b:1::1", "ff02::1"],
)  # fmt: skip
def test_a_delicate_address_is_let_in_only_by_its_own_name(address: str) -> None:
    target = ip_address(address)
    whole = "0.0.0.0/0, 169.254.0.0/16, ::/0, fd00::/8, 169.254.169.252/30"
    assert not may_connect(target, 80, parse_exceptions(whole))
    assert may_connect(target, 80, parse_exceptions(address))
    endpoint = f"[{address}]:80" if ":" in address else f"{address}:80"
    assert may_connect(target, 80, parse_exceptions(endpoint))
    assert not may_connect(target, 8080, parse_exceptions(endpoint))


@pytest.mark.parametrize(
    ("network", "good", "bad"),
    [
        ("64:ff9b::/96", "64:ff9b::101:101", "64:ff9b::7f00:1"),
        ("2002::/16", "2002:101:101::1", "2002:7f00:1::1"),
        ("2001::/32", "2001:0:101:101::fefe:fefe", "2001:0:101:101::80ff:fffe"),
        ("2001::/32", "2001:0:101:101::fefe:fefe", "2001:0:a00:1::fefe:fefe"),
    ],
)
def test_what_an_address_carries_has_to_be_allowed_too(network: str, good: str, bad: str) -> None:
    exceptions = parse_exceptions(network)
    assert carried(ip_address(good))
    assert may_connect(ip_address(good), 80, exceptions)
    assert not may_connect(ip_address(bad), 80, exceptions)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("localhost", "localhost: must be a network, ADDRESS:PORT or [IPV6]:PORT"),
        ("10.0.0.1/8", "host bits set"),
        ("10.0.0.1:0", "a port is 1 to 65535"),
        ("10.0.0.1:99999", "a port is 1 to 65535"),
        ("10.0.0.0/8:80", "10.0.0.0/8:80: must be"),
        ("fd00::1:80x", "fd00::1:80x: must be"),
        ("::ffff:10.0.0.0/104", "write it as IPv4"),
        ("10.0.0.0/8, 2130706433x", "2130706433x: must be"),
        ("[10.0.0]:80", "[10.0.0]:80: must be"),
    ],
)
def test_an_exception_that_is_none_is_told(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="must be a network") as refused:
        parse_exceptions(text)
    assert says in str(refused.value)
