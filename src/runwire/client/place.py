"""Where a client calls, and who it says it is: as it was told, else as the settings of this machine say."""

from __future__ import annotations

from dataclasses import dataclass, field

from runwire.client.errors import NoToken
from runwire.domain.access import parse_credential
from runwire.domain.errors import SetupError
from runwire.settings import Settings, load


@dataclass(frozen=True, kw_only=True)
class Place:
    """An adapter, and an access token for it."""

    url: str
    token: str = field(repr=False)
    """``ID:SECRET``."""
    is_here: bool
    """The adapter of this machine: no proxy is on the way to it."""


def find_place(url: str | None, token: str | None) -> Place:
    """What is not given comes from RUNWIRE_URL and RUNWIRE_TOKEN, else it is the installation on this machine.

    Raises ValueError for a token that is none, NoToken, or SetupError when the settings are invalid.
    """
    _check(token)
    if url is not None and token is not None:
        return Place(url=url, token=token, is_here=False)
    settings = load(url=url)
    return Place(
        url=settings.url or settings.local_url,
        token=token or _kept_token(settings),
        is_here=settings.url is None,
    )


def find_bus(url: str | None, token: str | None) -> tuple[str, str]:
    """(address of the broker, token): what is not given is the installation's on this machine, but for RUNWIRE_TOKEN.

    Raises ValueError for a token that is none, NoToken, or SetupError when no broker is known.
    """
    _check(token)
    if url is not None and token is not None:
        return url, token
    settings = load()
    if url is None:
        path = settings.bus_url_path
        try:
            url = path.read_text().strip()
        except OSError:
            raise SetupError(f"where is the broker? Give its url ({path} cannot be read)") from None
    return url, token or _kept_token(settings)


def _check(token: str | None) -> None:
    if token is not None and parse_credential(token) is None:
        msg = "an access token is ID:SECRET"
        raise ValueError(msg)


def _kept_token(settings: Settings) -> str:
    if settings.token is not None:
        return settings.token.get_secret_value()
    try:
        return settings.token_path.read_text().strip()
    except OSError:
        raise NoToken(
            f"no access token: set RUNWIRE_TOKEN to ID:SECRET ({settings.token_path} cannot be read)"
        ) from None
