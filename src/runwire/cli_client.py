"""What the commands share that are clients of the HTTP API: calling, complaining, drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:  # loaded by the commands: `runwire --help` has to be there at once
    from rich.console import Console

    from runwire.client import Client

UrlOption = Annotated[
    str | None, typer.Option("--url", help="The adapter (RUNWIRE_URL; else the one on this machine).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The answer as JSON, for programs.")]

WIDE = 10_000
"""Columns to draw on: a line that is too long for a terminal is broken by it, and stays one line in a pipe."""


def call(method: str, path: str, url: str | None, **request: Any) -> Any:
    """The answer of the adapter; a refusal, or no answer, ends the command with one line."""
    with complaining(), connected(url, timeout=0) as client:
        return client.request(method, path, **request)


def connected(url: str | None, *, timeout: float) -> Client:
    """A client of the adapter; ``timeout``: seconds that it may be away."""
    from runwire.client import Client  # noqa: PLC0415

    return Client(url, timeout=timeout)


@contextmanager
def complaining() -> Iterator[None]:
    """What the client raises ends the command with one line."""
    from runwire.client import ClientError  # noqa: PLC0415

    try:
        yield
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


def fail(message: str) -> NoReturn:
    """End the command with one line."""
    typer.echo(f"runwire: {' '.join(message.split())}", err=True)
    raise typer.Exit(1)


def tell(answer: Any, as_json: bool, in_words: Callable[[Console, Any], None]) -> None:
    """Print the answer: as JSON, or drawn for people."""
    import json  # noqa: PLC0415

    if as_json:
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    from rich.console import Console  # noqa: PLC0415

    in_words(Console(highlight=False, markup=False, emoji=False, width=WIDE), answer)


def draw(console: Console, head: Iterable[str] | None, rows: Iterable[tuple[str, ...]]) -> None:
    """Aligned columns, one line a row."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, show_header=head is not None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for title in head or ("", ""):
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    with console.capture() as drawn:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def _printable(text: str) -> str:
    """Without what could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
