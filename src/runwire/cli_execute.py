"""``runwire task execute``: run a task, wait for the end, and look on meanwhile.

What is asked for goes to stdout, all the rest to stderr; the exit status says what became of the run. On a terminal
the last line is alive; in a pipe every line is there as soon as it is known, and stays.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from runwire.cli_client import (
    JsonOption,
    UrlOption,
    check_id,
    clock_time,
    complain,
    fail,
    plain_console,
    printable,
    tell_of_trouble,
)

if TYPE_CHECKING:  # loaded by the command: `runwire --help` has to be there at once
    from datetime import datetime

    from rich.console import Console
    from rich.progress import Progress as Bar

    from runwire.client import AsyncClient, Event, Line, Progress, Result, Run

FAILED, NOT_KNOWN, REFUSED, INTERRUPTED = 1, 3, 4, 130
"""Exit statuses. 0: the run ended as DONE; 2: a mistake in the command line."""
PATIENCE = 60.0
"""Seconds that an adapter may be away."""
LAST_LOOK = 5.0
"""Seconds it may take to say where a run stands when the wait is over."""


def execute(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Id of the task.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show states, log and progress as they come.")] = False,
    wait: Annotated[
        float | None, typer.Option("--wait", min=0, help="Seconds to wait for the end, at most; the run goes on.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Idempotency-Key: commands with the same one are one run.")
    ] = None,
    if_running: Annotated[
        Literal["join", "queue"] | None,
        typer.Option("--if-running", help="Of a busy task: join its run, or queue for the next."),
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a task now, and wait for the end.

    Exit status: 0 DONE, 1 ERROR, 3 not known (the wait is over, or no adapter answers), 4 refused, nothing was run.
    """
    import asyncio  # noqa: PLC0415

    from runwire.client import ClientError, NoAnswer  # noqa: PLC0415

    tell_of_trouble()
    order = _Order(check_id(task), follow=follow, wait=wait, key=key, if_running=if_running, url=url)
    shown: _Shown = _AsJson(follow=follow) if as_json else _InWords(order)
    try:
        try:
            status = asyncio.run(_carry_out(order, shown))
        finally:
            shown.close()
    except KeyboardInterrupt:
        _end(order, "stopped waiting", INTERRUPTED)
    except NoAnswer as error:
        _end(order, str(error), NOT_KNOWN)
    except (ClientError, ValueError) as error:
        fail(str(error), REFUSED)
    raise typer.Exit(status)


class _Order:
    """What was asked for, and the run that it became."""

    def __init__(
        self,
        task: int,
        *,
        follow: bool,
        wait: float | None,
        key: str | None,
        if_running: Literal["join", "queue"] | None,
        url: str | None,
    ) -> None:
        self.task, self.follow, self.wait, self.url = task, follow, wait, url
        self.how: dict[str, Any] = {"idempotency_key": key, "if_running": if_running}
        self.run: str | None = None
        self.began = time.monotonic()

    @property
    def time_left(self) -> float | None:
        """Seconds of the wait that are left; None: any number."""
        return None if self.wait is None else max(0.0, self.began + self.wait - time.monotonic())


async def _carry_out(order: _Order, shown: _Shown) -> int:
    """Run the task and show it; the exit status."""
    import asyncio  # noqa: PLC0415

    from runwire.client import AsyncClient, NoAnswer, NotFinished  # noqa: PLC0415

    async with AsyncClient(order.url, timeout=PATIENCE) as client:
        try:
            if order.how["if_running"] == "queue" and not order.follow:  # in one call: it keeps its place
                result = await client.execute(order.task, wait=order.wait, **order.how)
            else:
                order.run = await client.start(order.task, wait=order.wait, **order.how)
                async with asyncio.timeout(order.time_left):
                    result = await _until_ended(client, order, order.run, shown)
        except NoAnswer:
            raise
        except TimeoutError as over:
            if isinstance(over, NotFinished):
                order.run = over.run
            shown.close()
            await _show_unfinished(client, order, shown)
            _end(order, f"not finished within {order.wait:g} s", NOT_KNOWN)
    shown.ended(result)
    return 0 if result.error is None else FAILED


async def _until_ended(client: AsyncClient, order: _Order, run: str, shown: _Shown) -> Result:
    if order.follow:
        shown.accepted(run)
        async for item in client.follow(order.task, run):
            shown.item(item)
    return await client.wait_for(order.task, run)


async def _show_unfinished(client: AsyncClient, order: _Order, shown: _Shown) -> None:
    import asyncio  # noqa: PLC0415

    from runwire.client import ClientError  # noqa: PLC0415

    if order.run is not None:
        with suppress(TimeoutError, ClientError):
            async with asyncio.timeout(LAST_LOOK):
                shown.unfinished(await client.run(order.task, order.run))


def _end(order: _Order, why: str, status: int) -> NoReturn:
    """End the command, though not the run."""
    complain(why)
    if order.run is None:
        typer.echo(f"It is not known whether there is a run. To end it:\n  runwire task cancel {order.task}", err=True)
    else:
        cancel = f"runwire task cancel {order.task} --run {order.run}"
        typer.echo(f"The run goes on. To end it:\n  {cancel}", err=True)
    raise typer.Exit(status)


# --- showing -------------------------------------------------------------------------------------------


class _Shown:
    """What the command prints."""

    def accepted(self, run: str) -> None:
        """The run is there."""

    def item(self, item: Event | Line | Progress) -> None:
        """Something of it happened."""
        raise NotImplementedError

    def ended(self, result: Result) -> None:
        """The end."""
        raise NotImplementedError

    def unfinished(self, run: Run) -> None:
        """Where it stands, as the wait is over."""

    def close(self) -> None:
        """Nothing is alive any more."""


class _AsJson(_Shown):
    """For programs: one document; with ``follow`` one on each line, the last of which tells the end."""

    def __init__(self, *, follow: bool) -> None:
        self._follow = follow

    def item(self, item: Event | Line | Progress) -> None:
        typer.echo(json.dumps({"event": _name(item), **item.plain()}, ensure_ascii=False))

    def ended(self, result: Result) -> None:
        self._last(result.run, result, result.value)

    def unfinished(self, run: Run) -> None:
        self._last(run.id, run, run.result)

    def _last(self, run: str, shown: Result | Run, result: dict[str, Any] | None) -> None:
        told = shown.model_dump(mode="json", include={"task", "code", "error", "started", "finished"})
        document = {"task": told.pop("task"), "run": run, "code": told.pop("code"), "result": result, **told}
        if self._follow:
            typer.echo(json.dumps({"event": "result", **document}, ensure_ascii=False))
        else:
            typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _name(item: Event | Line | Progress) -> str:
    """As the stream calls it."""
    from runwire.client import Event, Line  # noqa: PLC0415

    if isinstance(item, Event):
        return "task.state"
    return "task.log" if isinstance(item, Line) else "task.progress"


class _InWords(_Shown):
    """For people: what happens line by line, and at the end how it ended."""

    def __init__(self, order: _Order) -> None:
        self._order = order
        self._console = plain_console()
        self._bar: Bar | None = None
        if order.follow and self._console.is_terminal:
            self._bar = _bar(self._console)
            self._bar.add_task("READY", total=None, message="")
            self._bar.start()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def accepted(self, run: str) -> None:
        self._print((f"run {run}", "dim"))

    def item(self, item: Event | Line | Progress) -> None:
        from runwire.client import Event, Line  # noqa: PLC0415

        if isinstance(item, Line):
            self._line(item.date, item.message, item.level)
        elif isinstance(item, Event):
            self._state(item)
        else:
            self._progress(item)

    def ended(self, result: Result) -> None:
        self.close()
        seconds = time.monotonic() - self._order.began
        style = "bold green" if result.error is None else "bold red"
        self._print((result.code.value, style), (f"run {result.run}  {seconds:.1f} s", ""))
        if result.error is not None:
            self._print((f"{result.error.code}: {result.error.message}".rstrip(": "), ""))
        elif result.value is not None:
            self._print((json.dumps(result.value, ensure_ascii=False), ""))

    def _state(self, event: Event) -> None:
        """What its log does not say."""
        run = event.run
        if run is None:
            return
        if event.change == "claimed":
            self._line(event.time, "started" if run.attempt == 1 else f"attempt {run.attempt} started")
        elif event.change == "released":
            self._line(event.time, "given back by a worker that stops", "warning")
        self._update(run.code.value if run.next_attempt is None else "WAITING", None, "")

    def _progress(self, progress: Progress) -> None:
        if self._bar is None:
            share = "" if progress.fraction is None else f"{progress.fraction * 100:.0f} %"
            self._line(progress.date, f"{share} {progress.message}".strip())
        self._update(None, progress.fraction, progress.message)

    def _update(self, state: str | None, fraction: float | None, message: str) -> None:
        """What the bar shows; ``state`` None: as before."""
        if self._bar is not None:
            task = self._bar.tasks[0]
            task.total = None if fraction is None else 1.0
            self._bar.update(
                task.id, description=state or task.description, completed=fraction or 0.0, message=printable(message)
            )

    def _line(self, date: datetime, text: str, level: str = "info") -> None:
        of_note = [] if level == "info" else [(level, STYLES.get(level, ""))]
        self._print((clock_time(date), "dim"), *of_note, (text, ""))

    def _print(self, *parts: tuple[str, str]) -> None:
        """One line, however long: a terminal breaks it, and a pipe does not."""
        from rich.text import Text  # noqa: PLC0415

        line = Text("  ").join(Text(printable(text), style) for text, style in parts)
        self._console.print(line, soft_wrap=True)


STYLES = {"warning": "yellow", "error": "red", "critical": "red", "debug": "dim"}
BESIDE_MESSAGE = 52
"""Columns that the bar takes without the message; at the end some are left for the ^C of a terminal."""


def _bar(console: Console) -> Bar:
    """A line that lives while the run does: its state, how far it has come, what it says, and since when."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    class Share(BarColumn):
        """Nothing while the run has not said how far it is."""

        def render(self, task: Task) -> Any:
            return "" if task.total is None else super().render(task)

    class Percentage(TextColumn):
        def render(self, task: Task) -> Any:
            return "" if task.total is None else super().render(task)

    room = max(10, console.width - BESIDE_MESSAGE)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        Share(bar_width=20),
        Percentage("{task.percentage:.0f} %", markup=False),
        TextColumn("{task.fields[message]}", markup=False, table_column=Column(no_wrap=True, max_width=room)),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
