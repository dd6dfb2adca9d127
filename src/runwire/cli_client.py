"""What the commands share that are clients of the HTTP API: calling, complaining, drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:  # loaded by the commands: `runwire --help` has to be there at once
    from datetime import datetime

    from rich.console import Console

UrlOption = Annotated[
    str | None, typer.Option("--url", help="The adapter (RUNWIRE_URL; else the one on this machine).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The answer as JSON, for programs.")]

WIDE = 10_000
"""Columns to draw on: a line that is too long for a terminal is broken by it, and stays one line in a pipe."""


def call(method: str, path: str, url: str | None, **request: Any) -> Any:
    """The answer of the adapter; a refusal, or no answer, ends the command with one line."""
    from runwire.client import Client, ClientError  # noqa: PLC0415

    try:
        with Client(url, timeout=0) as client:
            return client.request(method, path, **request)
    except (ClientError, ValueError) as error:
        fail(str(error))


def pages(path: str, url: str | None, query: dict[str, Any], *, limit: int | None) -> list[Any]:
    """The rows of a list, page by page; ``limit`` None: all."""
    found: list[Any] = []
    while limit is None or len(found) < limit:
        size = 1000 if limit is None else min(1000, limit - len(found))
        page = call("GET", path, url, params={**query, "limit": size, "offset": len(found)}).json()
        found += page
        if len(page) < size:
            break
    return found


def check_id(task: str) -> int:
    """The task's id; what cannot be one ends the command."""
    if not (task.isascii() and task.isdecimal()):
        fail(f"{task!r} is no task id: a positive integer")
    return int(task)


def fail(message: str, status: int = 1) -> NoReturn:
    """End the command with one line."""
    complain(message)
    raise typer.Exit(status)


def complain(message: str) -> None:
    """Say what is wrong, in one line."""
    typer.echo(f"runwire: {' '.join(message.split())}", err=True)


def tell_of_trouble() -> None:
    """Have the client say when it has to try again, and when all is well again."""
    import logging  # noqa: PLC0415

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            complain(record.getMessage())

    client_log = logging.getLogger("runwire.client")
    client_log.addHandler(Teller())
    client_log.setLevel(logging.INFO)
    client_log.propagate = False


def tell(answer: Any, as_json: bool, in_words: Callable[[Console, Any], None]) -> None:
    """Print the answer: as JSON, or drawn for people."""
    import json  # noqa: PLC0415

    if as_json:
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    in_words(plain_console(width=WIDE), answer)


def plain_console(*, width: int | None = None) -> Console:
    """stdout, on which text is what it is; ``width`` None: that of the terminal."""
    from rich.console import Console  # noqa: PLC0415

    return Console(highlight=False, markup=False, emoji=False, width=width)


def draw(console: Console, head: Iterable[str] | None, rows: Iterable[tuple[str, ...]]) -> None:
    """Aligned columns, one line a row."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, show_header=head is not None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for title in head or ("", ""):
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    with console.capture() as drawn:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def clock_time(instant: datetime) -> str:
    """The time of day, on this machine's clock."""
    return f"{instant.astimezone():%H:%M:%S}"


def printable(text: str) -> str:
    """Without what could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
