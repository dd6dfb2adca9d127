"""Where a client calls, and who it says it is: as it was told, else as the settings of this machine say."""

from __future__ import annotations

from dataclasses import dataclass, field

from runwire.client.errors import NoToken
from runwire.domain.access import parse_credential
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
    if token is not None and parse_credential(token) is None:
        msg = "an access token is ID:SECRET"
        raise ValueError(msg)
    if url is not None and token is not None:
        return Place(url=url, token=token, is_here=False)
    settings = load(url=url)
    return Place(
        url=settings.url or settings.local_url,
        token=token or _kept_token(settings),
        is_here=settings.url is None,
    )


def _kept_token(settings: Settings) -> str:
    if settings.token is not None:
        return settings.token.get_secret_value()
    try:
        return settings.token_path.read_text().strip()
    except OSError:
        raise NoToken(
            f"no access token: set RUNWIRE_TOKEN to ID:SECRET ({settings.token_path} cannot be read)"
        ) from None
