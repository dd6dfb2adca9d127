"""``runwire task ...``: a client of the HTTP API like any other.

The adapter says when the task runs next; what follows is computed here, from the trigger that it showed.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runwire.cli_client import JsonOption, UrlOption, call, check_id, draw, fail, pages, tell

if TYPE_CHECKING:  # loaded by the commands: `runwire --help` has to be there at once
    from datetime import datetime, tzinfo

    from rich.console import Console

task_cli = typer.Typer(name="task", help="Run tasks, look at them, and cancel runs.", no_args_is_help=True)

UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


@task_cli.callback()
def task() -> None:
    """Run tasks, look at them, and cancel runs."""


@task_cli.command("list")
def list_tasks(
    status: Annotated[str | None, typer.Option("--status", help="Only in this state, such as ERROR.")] = None,
    action: Annotated[str | None, typer.Option("--action", help="Only with this action.")] = None,
    chain: Annotated[int | None, typer.Option("--chain", help="Only of this one of your chains.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many, at most.")] = 50,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the tasks that you may see."""
    query = {"status": status, "action": action, "chain": chain}
    tell(pages("/tasks", url, query, limit=limit), as_json, _task_table)


@task_cli.command("get")
def get(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Id of the task.")],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a task, with its latest log entries."""
    check_id(task)
    tell(call("GET", f"/tasks/{task}", url).json(), as_json, _task_facts)


@task_cli.command("next")
def next_runs(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Id of the task.")],
    number: Annotated[int, typer.Option("-n", min=1, max=1000, help="How many, at most.")] = 10,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show when a task runs next by itself, in its own time zone."""
    check_id(task)
    found = call("GET", f"/tasks/{task}", url, params={"log_limit": 0}).json()
    zone = _zone(found["trigger"].get("time_zone") or "UTC")
    runs = [] if found["trigger"].get("next") is None else list(islice(_runs(found), number))
    answer = {
        "task": found["id"],
        "desc": found["desc"],
        "trigger": found["trigger"],
        "time_zone": str(zone),
        "runs": [{"local": run.astimezone(zone).isoformat(), "utc": _utc(run)} for run in runs],
    }
    tell(answer, as_json, _outlook)


@task_cli.command("cancel")
def cancel(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Id of the task.")],
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only if this is the run.")] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the task's run, queued or running."""
    check_id(task)
    answer = call("POST", f"/tasks/{task}/cancel", url, params={} if run is None else {"run": run})
    state = answer.json()
    ended = {"task": int(task), "run": answer.headers["run-id"], "error": answer.headers["task-error"], **state}
    tell(ended, as_json, lambda _console, found: typer.echo(f"run {found['run']} of task {task} is cancelled"))


def _runs(task: Any) -> chain[datetime]:
    from datetime import datetime  # noqa: PLC0415

    from runwire.domain import upcoming  # noqa: PLC0415

    first = datetime.fromisoformat(task["trigger"]["next"])
    created = datetime.fromisoformat(task["state"]["created_date"])
    return chain([first], upcoming.runs_after(first, task["trigger"], task["id"], created=created))


def _zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo  # noqa: PLC0415

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        fail(f"this machine knows no time zone {name!r}")


def _utc(instant: datetime) -> str:
    return instant.isoformat()[:19] + "Z"


# --- showing -------------------------------------------------------------------------------------------


def _task_table(console: Console, tasks: Any) -> None:
    rows = [
        (
            str(task["id"]),
            task["state"]["code"],
            _minute(task["state"]["last_run_date"]),
            _minute(task["trigger"].get("next")),
            task["target"]["action"],
            task["desc"],
        )
        for task in tasks
    ]
    draw(console, ("ID", "STATE", "LAST RUN", "NEXT RUN", "ACTION", "DESC"), rows)


def _minute(instant: str | None) -> str:
    return "-" if instant is None else instant[: len("2026-05-26T14:35")].replace("T", " ")


def _task_facts(console: Console, task: Any) -> None:
    state, target = task["state"], task["target"]
    told = {"result": task["result"], "retry": task["retry"]}
    facts = [
        ("task", f"{task['id']}  {task['desc']}".rstrip()),
        ("chain", str(task["chain"])),
        ("state", f"{state['code']} since {state['last_modified']}"),
        ("last run", state["last_run_date"] or "never"),
        ("next run", task["trigger"].get("next") or "-"),
        ("trigger", _in_words(task["trigger"])),
        ("action", target["action"]),
        *((f"  {name}", _value(value)) for name, value in target.items() if name != "action"),
        ("timeout", _span(int(task["timeout"]))),
        *((name, _value(value)) for name, value in told.items() if value is not None),
    ]
    draw(console, None, facts)
    if task["logs"]:
        typer.echo()
        draw(console, None, ((entry["date"], f"{entry['level']:<7}  {entry['message']}") for entry in task["logs"]))


def _value(value: Any) -> str:
    import json  # noqa: PLC0415

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _outlook(console: Console, answer: Any) -> None:
    trigger = answer["trigger"]
    facts = [("task", f"{answer['task']}  {answer['desc']}".rstrip()), ("trigger", _in_words(trigger))]
    if "next" in trigger:
        facts.append(("time zone", answer["time_zone"]))
    if trigger.get("jitter"):
        facts.append(
            ("jitter", f"up to {_span(int(trigger['jitter']))}; the times below have this task's share in them")
        )
    draw(console, None, facts)
    typer.echo()
    if answer["runs"]:
        _table(console, answer["runs"])
    elif "next" not in trigger:
        typer.echo("It runs only by hand.")
    elif trigger.get("paused"):
        typer.echo("It is paused, and does not run by itself until `paused` is taken away.")
    else:
        typer.echo("It is over: there is no time left at which it would run by itself.")


def _table(console: Console, runs: Any) -> None:
    from datetime import UTC, datetime  # noqa: PLC0415

    now = datetime.now(UTC)
    rows = []
    for number, run in enumerate(runs, 1):
        local = datetime.fromisoformat(run["local"])
        seconds = round((local - now).total_seconds())
        coming = f"in {_span(seconds)}" if seconds > 0 else "now"
        rows.append((f"{number}", f"{local:%a %Y-%m-%d %H:%M:%S} {run['local'][-6:]}", run["utc"], coming))
    draw(console, ("#", "LOCAL TIME", "UTC", "WHEN"), rows)


def _in_words(trigger: Any) -> str:
    """What the trigger says about when; times as they were given."""
    given = {name: value for name, value in trigger.items() if value is not None}
    match given:
        case {"cron": cron}:
            words = f"cron {cron}"
        case {"every": str(duration)}:
            words = f"every {duration}"
        case {"every": seconds}:
            words = f"every {_span(int(seconds))}"
        case {"repeat": repeat, "once": once}:
            words = f"{repeat}, first at {once}"
        case {"repeat": repeat}:
            words = f"{repeat}"
        case {"once": once}:
            return f"once, at {once}"
        case _:
            return "none"
    bounds = [f"{bound} {given[name]}" for name, bound in (("start", "from"), ("end", "until")) if name in given]
    return ", ".join([words, *bounds])


def _span(seconds: int) -> str:
    """A length of time in its two largest units: ``3 h 12 min``."""
    amounts = []
    for unit, size in UNITS:
        amount, seconds = divmod(seconds, size)
        amounts.append((amount, unit))
    largest = next((place for place, (amount, _) in enumerate(amounts) if amount), len(UNITS) - 1)
    return " ".join(f"{amount} {unit}" for amount, unit in amounts[largest : largest + 2] if amount) or "0 s"
