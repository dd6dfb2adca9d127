"""Every setting, read once from ``RUNWIRE_*`` variables; all complaints come together, one line each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from runwire.domain.access import parse_credential
from runwire.domain.addresses import parse_exceptions
from runwire.domain.errors import SetupError

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """The settings of every runwire process; each field is the variable ``RUNWIRE_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="RUNWIRE_", frozen=True, extra="ignore")

    http_host: str = "127.0.0.1"
    """Address the adapter listens on."""
    http_port: Port = 8080
    """Port the adapter listens on."""
    public_url: str | None = None
    """What callers reach the adapter by, when it stands behind a proxy; None: the address it listens on."""
    data_dir: Path = Path("data")
    """Directory of the read model, the embedded broker's store and the first token."""
    nats_url: str | None = None
    """Broker to use, ``nats://USER:PASSWORD@HOST:PORT`` (several: comma-separated). None: the embedded one."""
    nats_port: Port | None = None
    """Port of the embedded broker; None: a free one."""
    nats_sync: str = Field(default="always", pattern=r"^(always|[0-9]+(ms|s|m|h))$")
    """When the embedded broker flushes to disk: ``always`` (before it acknowledges) or a duration such as ``2m``."""
    nats_server: Path | None = None
    """The nats-server binary; None: the one that was installed with runwire."""
    nats_config: Path | None = None
    """The embedded broker's configuration; None: the nats.conf that comes with runwire."""
    bus_key: SecretStr | None = None
    """Key that adapters sign the logins of bus clients with, as ``runwire bus-key`` makes it; None: the embedded
    broker's, or nobody is let onto the bus of a broker of one's own."""
    nats_replicas: Annotated[int, Field(ge=1, le=5)] = 1
    """Copies of every stream that is created: 1 on one node, 3 in a cluster."""
    store_bytes: Annotated[int, Field(ge=64 << 20)] = 8 << 30
    """Disk the streams may take together, in bytes; shared out when they are created."""
    events_history: Annotated[int, Field(ge=2, le=1_000_000)] = 1000
    """Events kept per task and state; also the number of ended runs the read model keeps per task and state."""
    bootstrap_token: SecretStr | None = None
    """``ID:SECRET``: the first token, instead of a generated one. Only looked at on the first start."""
    url: str | None = None
    """Adapter that ``runwire.Client`` and the commands that are clients call; None: the one on this machine."""
    token: SecretStr | None = None
    """``ID:SECRET`` that they call with; None: the first token, where the data directory has it."""
    worker_slots: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Runs one worker process carries out at once."""
    app: str | None = None
    """``module:attribute`` of a runwire.App with actions of your own; also ``--app``."""
    commands: Path | None = None
    """TOML file of the programs that the action ``command`` may run; None: a worker has no such action."""
    http_allow: str = ""
    """Addresses that the action ``http`` may call beside the public ones: NETWORK, ADDRESS:PORT, [IPV6]:PORT, ..."""
    http_max_bytes: Annotated[int, Field(ge=1000, le=64_000_000)] = 4_000_000
    """How large a body the action ``http`` may be told to read; a worker has to hold one for each of its slots."""
    secrets: Path | None = None
    """Directory of the secrets that actions may ask for: a file each, a subdirectory for each chain's own."""
    wait_seconds: Annotated[float, Field(gt=0, le=3600)] = 55
    """How long execute waits for the final state when the caller does not say."""
    ack_wait: Annotated[float, Field(ge=0.5, le=3600)] = 10
    """Seconds without a sign of life after which a worker counts as dead and its run goes to another."""
    max_deliveries: Annotated[int, Field(ge=1, le=1000)] = 5
    """Attempts of one run that may be lost to dying workers."""
    action_wait: Annotated[float, Field(ge=0, le=86_400)] = 30
    """Seconds a run waits for a worker that knows its action."""
    grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 10
    """How long a stopping worker lets its runs finish before it hands them back."""
    max_waiters: Annotated[int, Field(ge=1)] = 10_000
    """Calls that may wait for a run in one adapter; beyond them the answer is 202 at once."""
    max_streams: Annotated[int, Field(ge=1)] = 1000
    """Event streams that may be open at once in one adapter; beyond them the answer is 503."""
    rate_per_token: str | None = None
    """Calls a token may make of one adapter, such as ``100/second``; None: any number."""
    rate_per_chain: str | None = None
    """Calls about a chain's tasks that one adapter takes, such as ``100/second``; None: any number."""
    max_outstanding_per_chain: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Queued and running runs of a chain beyond which an adapter takes no more; None: any number."""
    max_connections: Annotated[int, Field(ge=16, le=1_000_000)] = 12_000
    """Connections one adapter serves at once; more than max_waiters, or those that wait crowd out those that look."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Log lines of at least this level are written to stderr."""

    @field_validator("bootstrap_token", "token")
    @classmethod
    def _is_credential(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and parse_credential(value.get_secret_value()) is None:
            msg = "must be ID:SECRET, the id of letters, digits, - and _ (at most 64)"
            raise ValueError(msg)
        return value

    @field_validator("nats_url")
    @classmethod
    def _is_nats_url(cls, value: str | None) -> str | None:
        for url in (value or "nats://ok").split(","):
            parts = urlsplit(url)
            if parts.scheme not in {"nats", "tls"} or not parts.hostname:
                msg = "must be nats://USER:PASSWORD@HOST:PORT or tls://..."
                raise ValueError(msg)
        return value

    @field_validator("rate_per_token", "rate_per_chain")
    @classmethod
    def _is_rate(cls, value: str | None) -> str | None:
        if value is None:
            return None
        from limits import parse_many  # noqa: PLC0415 - only who limits pays for it

        try:
            rates = parse_many(value)
        except ValueError:
            rates = []
        if len(rates) != 1 or rates[0].amount < 1:
            msg = "must be a number of calls and a time, such as 100/second or 1000/5 minutes"
            raise ValueError(msg)
        return value

    @field_validator("http_allow")
    @classmethod
    def _is_list_of_addresses(cls, value: str) -> str:
        parse_exceptions(value)
        return value

    @property
    def http_url(self) -> str:
        """Where a caller on this machine reaches the adapter."""
        if self.public_url:
            return self.public_url.rstrip("/")
        host = {"0.0.0.0": "localhost", "127.0.0.1": "localhost", "::": "localhost"}.get(self.http_host, self.http_host)  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.http_port}"

    @property
    def local_url(self) -> str:
        """Where a process on this machine reaches the adapter, whatever stands before it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.http_host, self.http_host)  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.http_port}" if ":" in host else f"http://{host}:{self.http_port}"

    @property
    def read_model_path(self) -> Path:
        """The SQLite file of this adapter."""
        return self.data_dir / "readmodel.db"

    @property
    def token_path(self) -> Path:
        """Where the first token is kept for its owner."""
        return self.data_dir / "token"

    @property
    def bus_url_path(self) -> Path:
        """Where the embedded broker's address is kept for clients of the bus."""
        return self.data_dir / "bus.url"


def load(**overrides: object) -> Settings:
    """The settings of this process; ``overrides`` (None: not given) win over the environment. Raises SetupError."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic validates what the caller overrides
    except ValidationError as invalid:
        complaints = [f"RUNWIRE_{str(e['loc'][0]).upper()}: {_sentence(e['msg'])}" for e in invalid.errors()]
        raise SetupError("; ".join(complaints)) from None


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Input should be ").strip()
