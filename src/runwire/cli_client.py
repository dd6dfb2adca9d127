"""What the commands share that are clients of the HTTP API: calling, complaining, drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from runwire.settings import Settings, load

if TYPE_CHECKING:  # loaded by the commands: `runwire --help` has to be there at once
    from rich.console import Console

UrlOption = Annotated[
    str | None, typer.Option("--url", help="The adapter (RUNWIRE_URL; else the one on this machine).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The answer as JSON, for programs.")]

PATIENCE = 30
"""Seconds an adapter may take to answer."""
WIDE = 10_000
"""Columns to draw on: a line that is too long for a terminal is broken by it, and stays one line in a pipe."""


def call(method: str, path: str, url: str | None, **request: Any) -> Any:
    """The answer of the adapter; what it refuses ends the command with one line."""
    import httpx  # noqa: PLC0415

    settings = load(url=url)
    base = settings.url or settings.local_url
    headers = {"Authorization": f"Bearer {_credential(settings)}"}
    try:
        # A proxy may be on the way to an adapter elsewhere, not to the one on this machine.
        with httpx.Client(base_url=base, timeout=PATIENCE, trust_env=settings.url is not None) as client:
            answer = client.request(method, path, headers=headers, **request)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"no answer from {base}: {str(error) or type(error).__name__}")
    if not answer.is_success:
        fail(_complaint(answer))
    return answer


def pages(path: str, url: str | None, query: dict[str, Any], *, limit: int | None) -> list[Any]:
    """The rows of a list, page by page; ``limit`` None: all."""
    given = {name: value for name, value in query.items() if value is not None}
    found: list[Any] = []
    while limit is None or len(found) < limit:
        size = 1000 if limit is None else min(1000, limit - len(found))
        page = call("GET", path, url, params={**given, "limit": size, "offset": len(found)}).json()
        found += page
        if len(page) < size:
            break
    return found


def _credential(settings: Settings) -> str:
    """``ID:SECRET`` to call with: the configured one, else the first token of the installation on this machine."""
    if settings.token is not None:
        return settings.token.get_secret_value()
    try:
        return settings.token_path.read_text().strip()
    except OSError:
        fail(f"no access token: set RUNWIRE_TOKEN to ID:SECRET ({settings.token_path} cannot be read)")


def _complaint(answer: Any) -> str:
    """What a problem says, in one line."""
    try:
        problem = answer.json()
        detail = str(problem["detail"])
    except (ValueError, LookupError, TypeError):
        return f"the adapter answered {answer.status_code} {answer.reason_phrase}"
    fields = [f"{e.get('pointer') or e.get('parameter') or 'body'}: {e['detail']}" for e in problem.get("errors", ())]
    return " ".join([detail, "; ".join(fields)]).strip()


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
