"""Packets between a process and the broker are lost: in both directions, in one, or answered with a reset.

Each adapter and worker has a network namespace of its own, joined to ours by a pair of devices, and a packet filter in
it. Callers reach the adapters all the while.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.children import Children
from tests.chaos.history import Fault
from tests.chaos.stack import ACK_WAIT, BROKER, Stack
from tests.chaos.trial import Note, Trial
from tests.faults.ground import Unfit, run
from tests.faults.judge import Options, Outcome, tried

TOOLS = ("iptables|nft",)
SHORTEST, LONGEST = 0.5 * ACK_WAIT, 3 * ACK_WAIT
"""Seconds, from and to."""
FOR_GOOD = 12.0
"""Seconds: longer than it takes to give a connection up on which nothing is heard."""
ROUNDS = 2
PAUSE = (0.5, 1.5)
"""Seconds between two partitions, from and to."""
LATE_AFTER = 20.0
"""Seconds: what was lost is sent again at ever longer intervals."""

NAMESPACES = Path("/run/netns")
"""Where `ip` keeps the names of network namespaces."""
IPTABLES = shutil.which("iptables") is not None
LOST = re.compile(r"(\d+) +\d+ (?:DROP|REJECT)|packets (\d+)")
"""How many packets a rule has taken, in the words of iptables or of nft."""
ENDS = {"out": "dport", "in": "sport"}
HOWS = {"both ways": ("out", "in"), "what it says": ("out",), "what it hears": ("in",), "reset": ("out", "in")}
"""What is lost of a process's packets; *reset*: it is told that its connection is gone."""


def kinds() -> list[str]:
    """Every partition there is."""
    return [f"{how} of {role}" for how in HOWS for role in ("adapter", "worker")]


class Divided(Stack):
    """Every adapter and worker in a network of its own."""

    def __init__(self, children: Children, folder: Path) -> None:
        super().__init__(children, folder, adapters=2, workers=2)
        self._names_apart = [*self.named("adapter"), *self.named("worker")]
        self.lost = 0
        """Packets."""
        NAMESPACES.mkdir(exist_ok=True)
        run("mount", "-t", "tmpfs", "tmpfs", NAMESPACES)  # so that their names go when we do
        for number, name in enumerate(self._names_apart, start=1):
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"to-{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "address", "add", f"10.77.{number}.1/24", "dev", f"to-{number}")
            run("ip", "link", "set", f"to-{number}", "up")
            run(*self._inside(name), "ip", "address", "add", f"10.77.{number}.2/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                run(*self._inside(name), "ip", "link", "set", device, "up")

    @property
    def adapters(self) -> dict[str, str]:
        """Where they are to be called, each in its network."""
        urls = {name: urlsplit(url) for name, url in super().adapters.items()}
        return {name: f"http://{self._address(name, 2)}:{url.port}" for name, url in urls.items()}

    @contextmanager
    def divided(self, name: str, how: str) -> Iterator[None]:
        """Its packets to and from the broker are lost until the block is left."""
        for direction in HOWS[how]:
            run(*self._inside(name), *self._rule(direction, is_reset=how == "reset"))
        try:
            yield
        finally:
            told = run(*self._inside(name), *(["iptables", "-nvxL"] if IPTABLES else ["nft", "list", "ruleset"]))
            self.lost += sum(int(packets or more) for packets, more in LOST.findall(told))
            run(*self._inside(name), *(["iptables", "-F"] if IPTABLES else ["nft", "flush", "ruleset"]))

    def _rule(self, direction: str, *, is_reset: bool) -> list[str]:
        port = str(self._broker_port)
        hook, end = f"{direction}put", ENDS[direction]
        if IPTABLES:
            what = ["REJECT", "--reject-with", "tcp-reset"] if is_reset else ["DROP"]
            return ["iptables", "-A", hook.upper(), "-p", "tcp", f"--{end}", port, "-j", *what]
        chain = f"add table ip faults; add chain ip faults {hook} {{ type filter hook {hook} priority 0; }}"
        what = ["reject", "with", "tcp", "reset"] if is_reset else ["drop"]
        return ["nft", f"{chain}; add rule ip faults {hook} tcp {end} {port} counter {' '.join(what)}"]

    def _inside(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", name]

    def _address(self, name: str, end: int) -> str:
        return f"10.77.{self._names_apart.index(name) + 1}.{end}"

    def _argv(self, name: str) -> list[str]:
        argv = super()._argv(name)
        return argv if name == BROKER else [*self._inside(name), *argv]

    def _env(self, name: str) -> dict[str, str]:
        env = super()._env(name)
        if name == BROKER:  # reached from networks that are all within ours
            return env | {"RUNWIRE_NATS_LISTEN": f'"0.0.0.0:{self._broker_port}"'}
        if name not in self._names_apart:
            return env
        url = urlsplit(self._broker.url)
        netloc = f"{url.username}:{url.password}@{self._address(name, 1)}:{url.port}"
        env["RUNWIRE_NATS_URL"] = url._replace(netloc=netloc).geturl()
        return env | {"RUNWIRE_HTTP_HOST": self._address(name, 2)}


@dataclass(frozen=True, kw_only=True)
class Partitions(Trial):
    """One partition after the other."""

    def stack(self, children: Children, folder: Path) -> Stack:
        """In networks of their own."""
        return Divided(children, folder)

    async def make_faults(self, stack: Stack, note: Note) -> None:
        """Every kind, for a while, some rounds; and for each role one that is long."""
        if not isinstance(stack, Divided):
            raise TypeError(stack)
        dice = random.Random(self.seed)
        planned = [(kind, dice.uniform(SHORTEST, LONGEST)) for _ in range(ROUNDS) for kind in self.kinds]
        planned += [(f"both ways of {role}", FOR_GOOD) for role in ("adapter", "worker")]
        dice.shuffle(planned)
        for kind, seconds in planned:
            await asyncio.sleep(dice.uniform(*PAUSE))
            how, _, role = kind.partition(" of ")
            name = dice.choice(stack.named(role))
            note(Fault(what=kind, whom=name, at=time.time(), seconds=round(seconds, 3)))
            before = stack.lost
            with stack.divided(name, how):
                await asyncio.sleep(seconds)
            self.tell(f"{stack.lost - before} packets lost")
        if stack.lost < len(planned):
            raise Unfit(f"{len(planned)} partitions took {stack.lost} packets")


async def partition(options: Options) -> Outcome:
    """Whatever is lost between a process and the broker, no promise is broken."""
    attempt = Partitions(
        seed=options.seed, seconds=60, kinds=kinds(), late_after=LATE_AFTER, fewest_per_second=2, tell=options.tell
    )
    return await tried(attempt, options, "partition")
