"""The ``runwire`` command. What a subcommand needs is imported when it runs: `up` has to start at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from runwire.cli_actions import actions
from runwire.cli_events import events
from runwire.cli_execute import execute
from runwire.cli_subscriptions import subscription_cli
from runwire.cli_tasks import task_cli
from runwire.cli_tokens import audit, token_cli
from runwire.domain.errors import BrokerUnreachable, SetupError
from runwire.process import EXIT_SETUP, set_up_logging
from runwire.settings import Settings, load

cli = typer.Typer(
    name="runwire",
    help="Runs tasks on demand over a message bus and answers with what became of them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

cli.add_typer(task_cli)
cli.add_typer(token_cli)
cli.add_typer(subscription_cli)

AppOption = Annotated[
    str | None, typer.Option("--app", metavar="MODULE:ATTRIBUTE", help="A runwire.App with actions of your own.")
]
DataOption = Annotated[Path | None, typer.Option("--data-dir", help="Data directory (RUNWIRE_DATA_DIR, ./data).")]
PortOption = Annotated[int | None, typer.Option("--port", help="HTTP port (RUNWIRE_HTTP_PORT, 8080).")]


@cli.command()
def up(
    app: AppOption = None,
    port: PortOption = None,
    data_dir: DataOption = None,
    cluster: Annotated[
        int | None,
        typer.Option("--cluster", metavar="3", min=3, max=5, help="Brokers, each with a copy of everything."),
    ] = None,
) -> None:
    """Run broker, adapter and worker in the foreground, with nothing to set up."""
    settings = _start("up", app=app, http_port=port, data_dir=data_dir)
    from runwire.up import run_up  # noqa: PLC0415

    run_up(settings, cluster=cluster)


@cli.command()
def adapter(port: PortOption = None, data_dir: DataOption = None) -> None:
    """Serve the HTTP API over the broker at RUNWIRE_NATS_URL."""
    settings = _start("adapter", http_port=port, data_dir=data_dir)
    from runwire.bootstrap.adapter import serve_adapter  # noqa: PLC0415

    serve_adapter(settings)


@cli.command()
def worker(app: AppOption = None) -> None:
    """Carry out runs from the broker at RUNWIRE_NATS_URL."""
    settings = _start("worker", app=app)
    from runwire.bootstrap.worker import run_worker  # noqa: PLC0415

    run_worker(settings)


@cli.command()
def rebuild(data_dir: DataOption = None) -> None:
    """Build the read model anew from the event stream. The adapter has to be stopped."""
    settings = _start("rebuild", data_dir=data_dir)
    from runwire.rebuild import run_rebuild  # noqa: PLC0415

    run_rebuild(settings)


@cli.command()
def doctor(data_dir: DataOption = None) -> None:
    """Check broker, streams and read model, one line each; exit status 1 when something is wrong."""
    settings = _start("doctor", data_dir=data_dir)
    from runwire.doctor import run_doctor  # noqa: PLC0415

    if not run_doctor(settings):
        raise typer.Exit(1)


@cli.command("bus-key")
def bus_key() -> None:
    """Make a key for the logins of bus clients: the secret half for adapters, the public half for the broker."""
    from runwire.signing import Signer, new_seed  # noqa: PLC0415

    seed = new_seed()
    typer.echo(f"RUNWIRE_BUS_KEY={seed}\nRUNWIRE_BUS_ISSUER={Signer(seed).public_key}")


task_cli.command()(execute)
cli.command()(events)
cli.command()(audit)
cli.command()(actions)


@cli.command()
def version() -> None:
    """Print the version."""
    import runwire  # noqa: PLC0415

    typer.echo(runwire.__version__)


def _start(process: str, **overrides: Any) -> Settings:
    settings = load(**overrides)
    set_up_logging(process, settings.log_level)
    return settings


def main() -> None:
    """Run the command; what cannot work is told in one line."""
    try:
        cli()
    except BrokerUnreachable as error:
        _complain(error)
        sys.exit(1)
    except SetupError as error:
        _complain(error)
        sys.exit(EXIT_SETUP)


def _complain(error: SetupError) -> None:
    typer.echo(f"runwire: {error}", err=True)
