"""``runwire subscription ...``: a client of the HTTP API like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from runwire.cli_client import JsonOption, UrlOption, call, draw, pages, tell

if TYPE_CHECKING:  # loaded by the commands: `runwire --help` has to be there at once
    from rich.console import Console

subscription_cli = typer.Typer(
    name="subscription", help="Subscribe to events, and see how far subscribers have come.", no_args_is_help=True
)

SubscriptionArgument = Annotated[str, typer.Argument(metavar="SUBSCRIPTION", help="Id of the subscription.")]


@subscription_cli.command()
def create(
    chain: Annotated[int, typer.Option("--chain", min=1, help="Whose events.")],
    web_hook: Annotated[
        str | None, typer.Option("--web-hook", metavar="URL", help="Send them there; else your token pulls them.")
    ] = None,
    task: Annotated[list[int] | None, typer.Option("--task", help="Only of this task; may be repeated.")] = None,
    code: Annotated[
        list[str] | None, typer.Option("--code", help="Only this, such as done or error; may be repeated.")
    ] = None,
    action: Annotated[
        list[str] | None, typer.Option("--action", help="Of a web hook: only tasks with this action; may be repeated.")
    ] = None,
    from_sequence: Annotated[
        int | None, typer.Option("--from-sequence", help="Begin with this event; 1: the oldest there is.")
    ] = None,
    from_time: Annotated[
        str | None, typer.Option("--from-time", help="Begin with the first event since: ISO 8601.")
    ] = None,
    desc: Annotated[str, typer.Option("--desc", help="What it is for.")] = "",
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Subscribe to events of a chain. The secret of a web hook is shown this once."""
    given = {
        "tasks": task, "codes": code, "actions": action, "url": web_hook, "from_sequence": from_sequence,
        "from_time": from_time, "desc": desc,
    }  # fmt: skip
    body: dict[str, Any] = {"kind": "pull" if web_hook is None else "web_hook", "chain": chain}
    body |= {name: value for name, value in given.items() if value not in (None, [], "")}
    tell(call("POST", "/subscriptions", url, json=body).json(), as_json, _secret_once)


@subscription_cli.command("list")
def list_subscriptions(
    chain: Annotated[int | None, typer.Option("--chain", help="Only to events of this chain.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List your subscriptions, and all of the chains that you manage."""
    tell(pages("/subscriptions", url, {"chain": chain}, limit=None), as_json, _table)


@subscription_cli.command()
def get(subscription: SubscriptionArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a subscription, and how far it has come."""
    tell(call("GET", _path(subscription), url).json(), as_json, _facts)


@subscription_cli.command()
def rotate(
    subscription: SubscriptionArgument,
    overlap: Annotated[
        int, typer.Option("--overlap", min=0, max=604_800, help="Seconds that the old secret signs, too.")
    ] = 86_400,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a web hook a new secret, which is shown this once."""
    tell(call("POST", f"{_path(subscription)}/rotate", url, json={"overlap": overlap}).json(), as_json, _secret_once)


@subscription_cli.command()
def resume(subscription: SubscriptionArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Send to a web hook again whose receiver had said 410 Gone."""
    tell(call("POST", f"{_path(subscription)}/resume", url).json(), as_json, _facts)


@subscription_cli.command()
def delete(subscription: SubscriptionArgument, url: UrlOption = None) -> None:
    """End a subscription, and forget how far it has come."""
    call("DELETE", _path(subscription), url)


def _path(subscription: str) -> str:
    return f"/subscriptions/{quote(subscription, safe='')}"


# --- showing -------------------------------------------------------------------------------------------


def _secret_once(console: Console, subscription: Any) -> None:
    if subscription["secret"] is not None:
        console.print(subscription["secret"], style="bold")
        console.print("That is the secret of its signatures. It is shown this once: keep it now.", style="dim")
        console.print()
    _facts(console, subscription)


def _table(console: Console, subscriptions: Any) -> None:
    rows = [
        (
            subscription["id"],
            subscription["kind"],
            str(subscription["chain"]),
            ", ".join(subscription["codes"]) or "all",
            _state(subscription),
            str(subscription["pending"]),
            _minute(subscription["last_active"]),
            subscription["desc"],
        )
        for subscription in subscriptions
    ]
    draw(console, ("ID", "KIND", "CHAIN", "CODES", "STATE", "LAG", "LAST EVENT", "DESC"), rows)


def _facts(console: Console, subscription: Any) -> None:
    begins = subscription["from_time"] or subscription["from_sequence"] or f"after {subscription['created']}"
    facts = [
        ("id", subscription["id"]),
        ("kind", subscription["kind"]),
        ("chain", str(subscription["chain"])),
        ("desc", subscription["desc"] or "-"),
        ("made by", subscription["token"]),
        ("tasks", _named(subscription["tasks"])),
        ("codes", _named(subscription["codes"])),
        *((("url", subscription["url"]), ("actions", _named(subscription["actions"]))) if subscription["url"] else ()),
        ("begins", str(begins)),
        ("state", _state(subscription)),
        *((("old secret", f"signs until {subscription['previous_until']}"),) if subscription["previous_until"] else ()),
        ("lag", f"{subscription['pending']} events, and {subscription['unacknowledged']} that are being processed"),
        ("redelivered", str(subscription["redelivered"])),
        ("acknowledged", f"up to {subscription['acknowledged']}" if subscription["acknowledged"] else "nothing yet"),
        ("last event", subscription["last_active"] or "never"),
    ]
    draw(console, None, facts)


def _named(values: Any) -> str:
    return ", ".join(str(value) for value in values) or "all"


def _state(subscription: Any) -> str:
    if subscription["disabled"]:
        return f"gone since {_minute(subscription['disabled'])}"
    return "somebody is there" if subscription["waiting"] else "nobody is there"


def _minute(instant: str | None) -> str:
    return "-" if instant is None else instant[: len("2026-05-26T14:35")].replace("T", " ")
