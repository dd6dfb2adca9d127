"""Two networks that only this process and its children see, and a namespace for each server with a link to both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

INSIDE = "RUNWIRE_TEST_NETWORK"
"""Set where the namespaces have been made."""
CLIENTS, ROUTES = "clients", "routes"
PREFIX = {CLIENTS: "10.77.0", ROUTES: "10.77.1"}
OURS = 254
"""Our own host number among the clients; servers count from 1."""


def enter(module: str, arguments: Sequence[str]) -> bool:
    """Run the module again in namespaces of its own, if that can be done: then it does not return.

    Whether this is the process inside.
    """
    if os.environ.get(INSIDE):
        return True
    for who in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *who, "--net", "--mount", "--propagation", "private"]
        if shutil.which("ip") and shutil.which("unshare") and _works([*command, "ip", "link", "set", "lo", "up"]):
            os.execvpe(command[0], [*command, sys.executable, "-m", module, *arguments], os.environ | {INSIDE: "1"})
    return False


class Network:
    """The cables; to be made once, inside."""

    def __init__(self, size: int) -> None:
        _run("mkdir", "-p", "/run/netns")
        _run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
        _ip("link", "set", "lo", "up")
        for network in PREFIX:
            _ip("link", "add", network, "type", "bridge")
            _ip("link", "set", network, "up")
        _ip("addr", "add", f"{PREFIX[CLIENTS]}.{OURS}/24", "dev", CLIENTS)
        for number in range(1, size + 1):
            name = f"b{number}"
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            for network, prefix in PREFIX.items():
                _ip("link", "add", _cable(network, number), "type", "veth", "peer", "name", network, "netns", name)
                _ip("link", "set", _cable(network, number), "master", network, "up")
                _ip("-n", name, "addr", "add", f"{prefix}.{number}/24", "dev", network)
                _ip("-n", name, "link", "set", network, "up")

    @staticmethod
    def within(number: int, argv: Sequence[str]) -> list[str]:
        """What runs a program where this server is."""
        return ["ip", "netns", "exec", f"b{number}", *argv]

    @contextmanager
    def unplugged(self, number: int, networks: Sequence[str]) -> Iterator[None]:
        """Nothing passes between this server and these networks until the block is left."""
        for network in networks:
            _ip("link", "set", _cable(network, number), "down")
        try:
            yield
        finally:
            for network in networks:
                _ip("link", "set", _cable(network, number), "up")


def address(network: str, number: int) -> str:
    """Of a server in a network."""
    return f"{PREFIX[network]}.{number}"


def _cable(network: str, number: int) -> str:
    return f"{network}{number}"


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _works(command: Sequence[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
