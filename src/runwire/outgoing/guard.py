"""The guard of outgoing connections: a name is looked up once, every answer is checked, and what was checked is called.

Between the check and the connection there is no second look-up whose answer could be another one. What is asked for is
checked here, at the socket, and nowhere before: so whatever way a URL is spelled, and however often it redirects, it is
the address that counts.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address, ip_address

import httpcore

from runwire.blocking import in_thread
from runwire.domain.addresses import Address, Exceptions, may_connect, plain

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""Host and port -> addresses, in the order in which to try them. Raises OSError, or UnicodeError."""


class Forbidden(Exception):
    """The host stands for an address that may not be connected to; which one is nobody's business."""


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


look_up: Resolver = in_thread(_look_up)
"""The system's way: /etc/hosts, DNS, and all the spellings of an address. It may take long, and cannot be stopped."""


def is_own(address: Address) -> bool:
    """Whether this machine would be talking to itself. Nothing is sent for it: a route is looked up."""
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError:  # it cannot be reached at all
            return False
        return plain(ip_address(str(probe.getsockname()[0]).partition("%")[0])) == address


class Guard(httpcore.AsyncNetworkBackend):
    """Opens connections to the addresses that are allowed, and to no others."""

    def __init__(
        self,
        exceptions: Exceptions,
        *,
        resolve: Resolver = look_up,
        is_own: Callable[[Address], bool] = is_own,
    ) -> None:
        """``is_own`` tells the addresses of this machine, which are not public whatever their numbers."""
        self._exceptions = exceptions
        self._resolve = resolve
        self._is_own = is_own
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to one of the host's addresses. Raises Forbidden when any of them is; httpcore's errors else."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._checked(host, port)
                share = timeout and timeout / len(addresses)
                for address in addresses[:-1]:
                    try:
                        return await self._sockets.connect_tcp(str(address), port, share, local_address, socket_options)
                    except (httpcore.ConnectError, httpcore.ConnectTimeout):
                        continue
                return await self._sockets.connect_tcp(str(addresses[-1]), port, None, local_address, socket_options)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error

    async def _checked(self, host: str, port: int) -> list[Address]:
        """The host's addresses, at least one, all of them allowed."""
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(error) from error
        addresses = [plain(ip_address(text.partition("%")[0])) for text in found]
        for address in addresses:
            if not may_connect(address, port, self._exceptions, is_own=self._is_own(address)):
                raise Forbidden
        if not addresses:
            raise httpcore.ConnectError("the name has no address")
        return addresses
