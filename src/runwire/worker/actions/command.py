"""``command``: runs a program from the operator's list (``RUNWIRE_COMMANDS``); its exit status decides.

The parameters become arguments (:mod:`.commands_file`), what it prints becomes log lines (:mod:`.output`), and nothing
of it is left when the run is over (:mod:`.child`).
"""

from __future__ import annotations

import json
import resource
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from runwire.app import Context, Handler
from runwire.domain.errors import Fail, Retry
from runwire.domain.run import ErrorCode
from runwire.process import die_with_parent
from runwire.worker.actions.child import OUT_OF_MEMORY, Child, NotStarted, limited, signal_name
from runwire.worker.actions.commands_file import Limits, Program, Unfit
from runwire.worker.actions.output import KEPT, Output

BASE = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
"""The environment of every command; it inherits nothing from the worker."""
MB = 1 << 20
MARK = "RUNWIRE_MARK"
"""A variable that tells the processes of an attempt from all others; run ids may be the same in two installations."""
LONGEST_REASON = 500
"""Characters of the last stderr line that an error quotes."""


class RunCommand(BaseModel):
    """Parameters of ``command``."""

    model_config = ConfigDict(extra="forbid")

    command: str
    """Its name in the operator's list."""
    arguments: dict[str, JsonValue] = {}
    """The values of its parameters."""


def command_action(programs: Mapping[str, Program]) -> Handler:
    """The action over this list. To be called in the process that runs it: the programs die with that one."""
    die = die_with_parent()

    async def command(params: RunCommand, ctx: Context) -> dict[str, Any]:
        """Run the program: ``{exit, seconds}``, and ``output`` where the list says that it prints its result."""
        program = programs.get(params.command)
        if program is None or not program.is_open_to(ctx.chain):
            raise Fail(ErrorCode.UNKNOWN_COMMAND, f"There is no command {params.command[:64]!r} for this chain.")
        try:
            argv = program.filled_in(params.arguments)
        except Unfit as unfit:
            raise Fail(ErrorCode.INVALID_PARAMETERS, str(unfit)) from None
        mark = secrets.token_hex(16)
        child = Child(
            argv=argv,
            env={**BASE, **program.env, **_variables(ctx), MARK: mark},
            mark=f"{MARK}={mark}",
            cwd=program.cwd,
            prepare=_preparation(die, program.limits),
            grace=program.grace,
        )
        output = Output(ctx.log)
        began = time.monotonic()
        try:
            status = await child.run(output)
        except NotStarted as error:
            raise Retry(f"The command could not be started: {error}.", code=ErrorCode.NOT_STARTED) from None
        seconds = round(time.monotonic() - began, 3)
        _check(status, program, output)
        result = {"exit": status, "seconds": seconds}
        return result | {"output": _printed_json(output.stdout.last_line)} if program.result == "json" else result

    return command


def _variables(ctx: Context) -> dict[str, str]:
    """What a command knows about its run."""
    return {name.upper(): value for name, value in ctx.trace_headers.items()} | {
        "RUNWIRE_RUN_ID": ctx.run_id,
        "RUNWIRE_TASK": str(ctx.task),
        "RUNWIRE_CHAIN": str(ctx.chain),
        "RUNWIRE_ATTEMPT": str(ctx.attempt),
        "RUNWIRE_DEADLINE": ctx.deadline.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _preparation(die: Callable[[], None], limits: Limits) -> Callable[[], None]:
    """What is called between fork and exec. Memory comes last: the worker's own may be over the limit already."""
    wanted = (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits.cpu),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.file_size and limits.file_size * MB),
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_AS, limits.memory and limits.memory * MB),
    )
    settings = limited((kind, limit) for kind, limit in wanted if limit is not None)

    def prepare() -> None:
        die()
        for kind, both in settings:
            resource.setrlimit(kind, both)

    return prepare


def _check(status: int, program: Program, output: Output) -> None:
    """Raise Fail or Retry unless the program ended as it should."""
    if status < 0:
        raise Retry(f"The command was killed by {_killer(-status, program.limits)}.", code=ErrorCode.KILLED)
    if status in program.success:
        return
    reason = output.stderr.last_line[: 4 * LONGEST_REASON].decode(errors="replace").strip()[:LONGEST_REASON]
    message = f"The command ended with status {status}{f': {reason}' if reason else '.'}"
    if status in program.retry:
        raise Retry(message, code=ErrorCode.EXIT_STATUS)
    raise Fail(ErrorCode.EXIT_STATUS, message)


def _killer(number: int, limits: Limits) -> str:
    """The signal, and the limit that may be behind it."""
    name = signal_name(number)
    if number == signal.SIGXCPU and limits.cpu:
        return f"{name}: it may use {limits.cpu} s of CPU"
    if number == signal.SIGXFSZ and limits.file_size:
        return f"{name}: a file may have {limits.file_size} MB"
    if number in OUT_OF_MEMORY and limits.memory:
        return f"{name}; it may use {limits.memory} MB of memory"
    return name


def _printed_json(line: bytes) -> JsonValue:
    if len(line) >= KEPT:
        raise Fail(ErrorCode.RESULT_TOO_LARGE, f"The last line of stdout is longer than {KEPT:,} bytes.")
    try:
        found: JsonValue = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Fail(ErrorCode.INVALID_RESULT, f"The last line of stdout is no JSON: {error}") from None
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value")
