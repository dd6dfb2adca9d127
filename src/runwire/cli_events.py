"""``runwire events``: a client of the HTTP API like any other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from runwire.cli_client import (
    JsonOption,
    UrlOption,
    check_id,
    clock_time,
    fail,
    plain_console,
    printable,
    tell_of_trouble,
)

if TYPE_CHECKING:  # loaded by the command: `runwire --help` has to be there at once
    from rich.console import Console

    from runwire.client import Event

PATIENCE = 600.0
"""Seconds that an adapter may be away."""
INTERRUPTED = 130
"""Exit status after Ctrl-C."""
STYLES = {"done": "green", "error": "red", "inprogress": "cyan", "skipped": "yellow", "deleted": "yellow"}


def events(
    task: Annotated[str | None, typer.Option("--task", metavar="TASK", help="Only of this task.")] = None,
    chain: Annotated[int | None, typer.Option("--chain", help="Only of this one of your chains.")] = None,
    code: Annotated[
        list[str] | None,
        typer.Option(
            "--code", help="Only ready, inprogress, done, error, edited, skipped or deleted; several: each of them."
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--after", metavar="ID", help="Go on after this event; 0: from the first on."),
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what happens to tasks, as it happens, until Ctrl-C; with --json an event on each line."""
    from runwire.client import Client, ClientError  # noqa: PLC0415

    wanted = {name.lower() for name in code or ()}
    number = None if task is None else check_id(task)
    tell_of_trouble()
    console = plain_console()
    try:
        with Client(url, timeout=PATIENCE) as client:
            only = next(iter(wanted)) if len(wanted) == 1 else None
            for event in client.events(number, chain=chain, code=only, after=after):
                if wanted and event.code not in wanted:
                    continue
                if as_json:
                    typer.echo(json.dumps(event.plain(), ensure_ascii=False))
                else:
                    _show(console, event)
    except KeyboardInterrupt:
        typer.echo(err=True)  # after the ^C of a terminal
        raise typer.Exit(INTERRUPTED) from None
    except (ClientError, ValueError) as error:
        fail(str(error))


def _show(console: Console, event: Event) -> None:
    """One line: when, which task, into which state, and what is worth knowing of it."""
    from rich.text import Text  # noqa: PLC0415

    when = Text(f"{event.time.astimezone():%Y-%m-%d %H:%M:%S}", "dim")
    task = Text(f"{event.task.chain}/{event.task.id:<6}")
    code = Text(f"{event.code.upper():<10}", STYLES.get(event.code, ""))
    console.print(Text("  ").join([when, task, code, Text(printable(_in_words(event)))]), soft_wrap=True)


def _in_words(event: Event) -> str:
    run = event.run
    failed = "" if run is None or run.error is None else f"{run.error.code}: {run.error.message}".rstrip(": ")
    match event.change:
        case "claimed" if run is not None:
            return f"started ({run.source})" if run.attempt == 1 else f"attempt {run.attempt} started"
        case "retrying" if run is not None:
            again = "" if run.next_attempt is None else f"; the next begins at {clock_time(run.next_attempt)}"
            return f"attempt {run.attempt} failed: {failed}{again}"
        case "concluded" if run is not None:
            return failed or json.dumps(run.result, ensure_ascii=False)
        case "created" | "edited":
            return f"{event.change}: {event.task.desc}"
        case "skipped" if event.skipped is not None and event.skipped.error is not None:
            return event.skipped.error.message
    return event.change
