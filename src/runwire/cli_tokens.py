"""``runwire token ...`` and ``runwire audit``: a client of the HTTP API like any other.

Only ``token create --as-operator`` goes past it, straight into the broker: somebody has to make the first manager of a
new chain, and who holds the broker's password owns the installation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from runwire.cli_client import JsonOption, UrlOption, call, draw, fail, pages, tell
from runwire.settings import load

if TYPE_CHECKING:  # loaded by the commands: `runwire --help` has to be there at once
    from rich.console import Console

token_cli = typer.Typer(name="token", help="Create, list, rotate and delete access tokens.", no_args_is_help=True)

TokenArgument = Annotated[str, typer.Argument(metavar="TOKEN", help="Id of the access token.")]
DescOption = Annotated[str, typer.Option("--desc", help="What it is for.")]

MOST_SHOWN = 3
"""Chains of a token that a list names."""


@token_cli.command()
def create(
    chain: Annotated[
        list[str], typer.Option("--chain", metavar="CHAIN[=LEVEL]", help="What it reaches; several: an admin token.")
    ],
    level: Annotated[str, typer.Option("--level", help="viewer, operator or manager.")] = "operator",
    admin: Annotated[bool, typer.Option("--admin", help="A person's token, though it has one chain.")] = False,
    desc: DescOption = "",
    days: Annotated[int, typer.Option("--days", min=1, max=36_500, help="How long it is valid.")] = 90,
    as_operator: Annotated[
        bool, typer.Option("--as-operator", help="Straight into the broker: for the first manager of a chain.")
    ] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an access token. Its secret is shown this once."""
    from datetime import UTC, datetime, timedelta  # noqa: PLC0415

    levels = dict(_grant(text, level) for text in chain)
    kind = "admin" if admin or len(levels) > 1 else "privileged"
    expires = datetime.now(UTC) + timedelta(days=days)
    reach: dict[str, Any] = {"levels": levels}
    if kind == "privileged":
        ((only, its_level),) = levels.items()
        reach = {"chain": _number(only), "level": its_level}
    body = {"kind": kind, "desc": desc, "expires": expires.isoformat(), **reach}
    made = _create_as_operator(body) if as_operator else call("POST", "/access_tokens", url, json=body).json()
    tell(made, as_json, _secret_once)


@token_cli.command("list")
def list_tokens(
    chain: Annotated[int | None, typer.Option("--chain", help="Only tokens that reach this chain.")] = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted ones instead.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the access tokens of the chains that you manage."""
    found = pages("/access_tokens", url, {"chain": chain, "deleted": deleted or None}, limit=None)
    tell(found, as_json, _token_table)


@token_cli.command()
def show(
    token: Annotated[
        str, typer.Argument(metavar="[TOKEN]", help="Id of the access token; left out: your own.")
    ] = "self",  # noqa: S107 - a name
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an access token."""
    tell(call("GET", _path(token), url).json(), as_json, _token_facts)


@token_cli.command()
def deactivate(token: TokenArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Switch an access token off; `activate` switches it on again."""
    tell(call("PATCH", _path(token), url, json={"active": False}).json(), as_json, _token_facts)


@token_cli.command()
def activate(token: TokenArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Switch an access token on."""
    tell(call("PATCH", _path(token), url, json={"active": True}).json(), as_json, _token_facts)


@token_cli.command()
def rotate(
    token: TokenArgument,
    overlap: Annotated[
        int, typer.Option("--overlap", min=0, max=604_800, help="Seconds the old secret stays valid.")
    ] = 3600,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an access token a new secret, which is shown this once, and another 90 days."""
    tell(call("POST", f"{_path(token)}/rotate", url, json={"overlap": overlap}).json(), as_json, _secret_once)


@token_cli.command()
def delete(token: TokenArgument, url: UrlOption = None) -> None:
    """Delete an access token for good; the audit trail keeps it."""
    call("DELETE", _path(token), url)


def audit(
    chain: Annotated[int | None, typer.Option("--chain", help="Only this chain.")] = None,
    action: Annotated[str | None, typer.Option("--action", help="Only this, such as token.created.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Only from this time on: ISO 8601.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many, at most.")] = 50,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who changed what, and which calls were refused; newest first."""
    query = {"chain": chain, "action": action, "since": since}
    tell(pages("/audit", url, query, limit=limit), as_json, _audit_table)


# --- calling -------------------------------------------------------------------------------------------


def _create_as_operator(body: dict[str, Any]) -> dict[str, Any]:
    """A token made by whoever holds the broker's password, of the body that the API takes; as the API answers it."""
    import asyncio  # noqa: PLC0415
    import json  # noqa: PLC0415
    from datetime import UTC, datetime  # noqa: PLC0415

    from runwire.domain import access  # noqa: PLC0415
    from runwire.domain.errors import InvalidFields  # noqa: PLC0415
    from runwire.http.token_schemas import parse_new, token_view  # noqa: PLC0415

    try:
        wanted = parse_new(json.dumps(body).encode())
    except InvalidFields as invalid:
        fail(f"{invalid} {'; '.join(f'{error.pointer}: {error.detail}' for error in invalid.errors)}")
    token_id, secret = access.new_credential()
    token = access.create_token(
        token_id,
        secret,
        kind=access.TokenKind(wanted.kind),
        levels=wanted.granted(),
        by=access.OPERATOR,
        now=datetime.now(UTC),
        expires=wanted.expires,
        desc=wanted.desc,
    )
    asyncio.run(_store(token))
    return token_view(token, token.levels) | {"secret": secret, "token": f"{token_id}:{secret}"}


async def _store(token: Any) -> None:
    from nats.js.errors import Error as JetStreamError  # noqa: PLC0415

    from runwire.domain.errors import NotAccepted  # noqa: PLC0415
    from runwire.embedded import with_running_broker  # noqa: PLC0415
    from runwire.messaging import tokens  # noqa: PLC0415
    from runwire.messaging.broker import Bus  # noqa: PLC0415

    bus = Bus(with_running_broker(load()), "runwire token")
    await bus.connect()
    try:
        await tokens.create_surely(bus, token)
    except NotAccepted as error:
        fail(str(error))
    except JetStreamError as error:
        fail(f"the broker at {bus.address} has no access tokens yet, start an adapter first ({error})")
    finally:
        await bus.nc.close()


def _grant(text: str, level: str) -> tuple[str, str]:
    """``CHAIN`` or ``CHAIN=LEVEL`` -> (chain, level)."""
    chain, _, own = text.partition("=")
    wanted = own or level
    if wanted not in {"viewer", "operator", "manager"}:
        fail(f"{wanted!r} is no access level: viewer, operator or manager")
    return str(_number(chain)), wanted


def _number(chain: str) -> int:
    from runwire.domain.task import MAX_ID  # noqa: PLC0415

    if not (chain.isascii() and chain.isdecimal()) or not 1 <= int(chain[:20]) <= MAX_ID:
        fail(f"{chain!r} is no chain: a positive integer")
    return int(chain)


def _path(token: str) -> str:
    return f"/access_tokens/{quote(token, safe='')}"


# --- showing -------------------------------------------------------------------------------------------


def _secret_once(console: Console, token: Any) -> None:
    console.print(token["token"], style="bold")
    console.print("That is the access token. Its secret is shown this once: keep it now.", style="dim")
    console.print()
    _token_facts(console, token)


def _token_facts(console: Console, token: Any) -> None:
    facts = [
        ("id", token["id"]),
        ("kind", token["kind"]),
        ("reaches", _reach(token)),
        ("desc", token["desc"] or "-"),
        ("state", _state(token)),
        ("created", token["created"]),
        ("expires", token["expires"] or "never"),
        ("last used", token["last_used"] or "never"),
        ("changed", f"{token['changed']} {token['change']} by {token['by']}"),
    ]
    if token["previous_until"]:
        facts.insert(7, ("old secret", f"valid until {token['previous_until']}"))
    draw(console, None, facts)


def _token_table(console: Console, tokens: Any) -> None:
    rows = [
        (
            token["id"],
            token["kind"],
            _reach(token, MOST_SHOWN),
            _state(token),
            (token["expires"] or "never")[: len("2026-05-26")],
            (token["last_used"] or "never")[: len("2026-05-26T14:35")].replace("T", " "),
            token["desc"],
        )
        for token in tokens
    ]
    draw(console, ("ID", "KIND", "REACHES", "STATE", "EXPIRES", "LAST USED", "DESC"), rows)


def _audit_table(console: Console, rows: Any) -> None:
    shown = [(row["date"], str(row["chain"]), row["action"], *_what(row), row["by"]) for row in rows]
    draw(console, ("DATE", "CHAIN", "ACTION", "SUBJECT", "DETAIL", "BY"), shown)


def _what(row: Any) -> tuple[str, str]:
    """What a row of the audit trail is about, and what is worth knowing of it."""
    detail = row["detail"]
    if row["action"] == "call.refused":
        times = "" if detail["count"] == 1 else f", {detail['count']} times since {detail['first']}"
        return f"{detail['method']} {row['subject']}", f"{detail['code']}{times}"
    facts = (f"{name.replace('_', ' ')} {value}" for name, value in detail.items() if value is not None)
    return row["subject"], ", ".join(facts)


def _reach(token: Any, most: int | None = None) -> str:
    """The token's chains and levels, the first ``most`` of them."""
    named = [f"{chain} {level}" for chain, level in token["levels"].items()]
    more = len(named) - len(named[:most])
    return ", ".join(named[:most]) + (f" and {more} more" if more else "")


def _state(token: Any) -> str:
    from datetime import UTC, datetime  # noqa: PLC0415

    if token["deleted"]:
        return f"deleted {token['deleted']}"
    if not token["active"]:
        return "inactive"
    if token["expires"] and datetime.fromisoformat(token["expires"]) <= datetime.now(UTC):
        return "expired"
    return "active"
