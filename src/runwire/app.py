"""What a user writes actions and datasets with: an ``App`` that names them, and the ``Context`` each run gets.

::

    import runwire
    from pydantic import BaseModel

    app = runwire.App()

    class Greeting(BaseModel):
        name: str

    @app.action("greet")
    async def greet(params: Greeting, ctx: runwire.Context) -> dict:
        ctx.log(f"greeting {params.name}")
        return {"text": f"Hello {params.name}"}

Loaded with ``runwire up --app module:app`` or ``runwire worker --app module:app``.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import JsonValue, TypeAdapter
from pydantic.errors import PydanticUserError

from runwire.blocking import in_thread
from runwire.datasets import Dataset, dataset_of
from runwire.domain.errors import Fail, SetupError
from runwire.domain.run import ErrorCode
from runwire.domain.task import LONGEST_ACTION, LogLevel

Handler = Callable[[Any, "Context"], Awaitable[Any]]
"""What the worker calls."""
Function = TypeVar("Function", bound=Callable[[Any, "Context"], Any])
"""What a user writes."""
Rows = TypeVar("Rows", bound=Callable[..., Any])
"""A generator function that a user writes."""


def _no_secret(name: str, _own: bool) -> str:
    raise Fail(ErrorCode.UNKNOWN_SECRET, f"There is no secret {name!r}.")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an action knows about the run it carries out."""

    run_id: str
    """The same for every attempt of the run: use it as the idempotency key at the other side."""
    attempt: int
    """1 for the first, higher for each further attempt: use it as a fencing token."""
    deadline: datetime
    """When this attempt is cancelled (UTC): its start plus the task's ``timeout``, or the run's ``deadline``."""
    task: int
    """Id of the task."""
    chain: int
    """The tenant the task belongs to."""
    filters: dict[str, JsonValue] = field(default_factory=dict)
    """The filters of the task's trigger: segment, segment_id, user_list, as far as given."""
    traceparent: str | None = None
    """W3C Trace Context for whoever the action calls; None: the run was not asked for in a trace."""
    tracestate: str | None = None
    """What belongs to it."""
    write_log: Callable[[LogLevel, str], None] = field(repr=False, default=lambda _level, _message: None)
    """Where :meth:`log` hands its lines to."""
    write_progress: Callable[[float | None, str], None] = field(repr=False, default=lambda _fraction, _message: None)
    """Where :meth:`progress` hands its reports to."""
    read_secret: Callable[[str, bool], str] = field(repr=False, default=_no_secret)
    """Where :meth:`secret` and :meth:`chain_secret` get theirs from: (name, only the chain's own) -> value."""
    stopped: threading.Event = field(repr=False, compare=False, default_factory=threading.Event)
    """Set when the attempt is over for another reason than its action's end."""

    @property
    def cancelled(self) -> bool:
        """Whether the attempt is over: its time is up, the run was cancelled, or its worker stops.

        A coroutine is stopped by then. A plain function in its thread goes on; one that takes long should ask now and
        then, and return: what comes of it is dropped.
        """
        return self.stopped.is_set()

    @property
    def trace_headers(self) -> dict[str, str]:
        """``traceparent`` and ``tracestate`` as headers, as far as there are."""
        given = {"traceparent": self.traceparent, "tracestate": self.tracestate}
        return {name: value for name, value in given.items() if value is not None}

    def log(self, message: object, level: LogLevel | str = LogLevel.INFO) -> None:
        """Add a line to the task's logs. A plain call that returns at once; may be made from any thread."""
        self.write_log(LogLevel(level), str(message))

    def progress(self, fraction: float | None, message: str = "") -> None:
        """Say how far the run has come: a share between 0 and 1 (None: it cannot be told), and what it is at.

        A plain call that returns at once, as often as one likes; may be made from any thread. About two reports a
        second are passed on, the latest each, and the last one before the end.
        """
        self.write_progress(fraction, message)

    def secret(self, name: str) -> str:
        """A secret from the operator's files: the chain's own, else the one that all chains share.

        Read anew with each call. What is returned is masked wherever the run shows something: in its log, its error
        and its result. Raises Fail ``unknown_secret`` when there is none of this name.
        """
        return self.read_secret(name, False)

    def chain_secret(self, name: str) -> str:
        """As :meth:`secret`, but never one that chains share.

        For actions that do with a secret what a task's parameters say: who writes tasks would get at it.
        """
        return self.read_secret(name, True)


@dataclass(frozen=True)
class Action:
    """A named thing that tasks can do."""

    name: str
    parameters: TypeAdapter[Any]
    """Validates a task's target (without ``action``)."""
    handler: Handler
    description: str = ""
    """For whoever looks for an action."""
    function: Callable[[Any, Context], Any] | None = None
    """What the user wrote, where each call has a process of its own; None: it has not, and ``handler`` is called."""
    memory: int | None = None
    """MB that such a process may take beyond what the loaded app has; None: any amount."""
    concurrency: int | None = None
    """Attempts that one worker carries out at once; None: as many as it has slots."""


class App:
    """A set of actions, and of datasets for the action ``export``."""

    def __init__(self) -> None:
        """Begin with none."""
        self.actions: dict[str, Action] = {}
        self.datasets: dict[str, Dataset] = {}
        """By their names in lower case."""

    def action(
        self,
        name: str,
        *,
        description: str | None = None,
        process: bool = False,
        memory: int | None = None,
        concurrency: int | None = None,
    ) -> Callable[[Function], Function]:
        """Register ``async def f(params: SomePydanticModel, ctx: Context) -> dict``, or a plain ``def``, under a name.

        A plain function runs in a thread of its own, so it may block. The parameter model sees the fields of the
        task's target beside ``action``. What the function returns, a JSON object or None, becomes the run's result;
        what it raises makes the run an ERROR. ``description`` None: the first paragraph of the function's docstring.

        ``process``: each call runs in a process of its own, which is killed when its attempt is over; ``memory`` is the
        MB it may take beyond what the loaded app has. ``concurrency``: as many attempts at once in one worker, further
        runs stay READY. Raises SetupError when the name is taken or is none, the function has another form, or an
        option makes no sense.
        """

        def register(handler: Function) -> Function:
            _check_name(name)
            if name in self.actions:
                raise SetupError(f"action {name!r} is registered twice")
            _check_options(name, process=process, memory=memory, concurrency=concurrency)
            self.actions[name] = Action(
                name,
                _parameters_of(name, handler),
                handler if inspect.iscoroutinefunction(handler) else in_thread(handler),
                _first_paragraph(handler) if description is None else description,
                function=handler if process else None,
                memory=memory,
                concurrency=concurrency,
            )
            return handler

        return register

    def dataset(self, name: str, *, description: str | None = None) -> Callable[[Rows], Rows]:
        """Register ``async def f(params: SomePydanticModel, ctx: Context) -> AsyncIterator[SomeRow]`` under a name.

        Tasks export it with the action ``export``; ``export_index`` names it, in whatever case. ``SomeRow`` is a
        pydantic model, whose fields are the columns, in their order. ``params`` may be left out; its model sees the
        fields of the task's target beside ``action`` that do not begin with ``export_``. The generator is closed in
        any case; a plain one runs in a thread of its own, so it may block. ``description`` None: the first paragraph
        of the function's docstring. Raises SetupError when the name is taken or is none, or the function has another
        form.
        """

        def register(rows: Rows) -> Rows:
            about = _first_paragraph(rows) if description is None else description
            found = dataset_of(name, rows, about)
            if found.key in self.datasets:
                raise SetupError(f"dataset {name!r} is registered twice")
            self.datasets[found.key] = found
            return rows

        return register

    def include(self, other: App) -> None:
        """Take over the actions and datasets of another app; its own win over those it has already."""
        self.actions |= other.actions
        self.datasets |= other.datasets


def load_app(reference: str) -> App:
    """The App that ``module:attribute`` names; the working directory is searched, too. Raises SetupError."""
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise SetupError(f"--app {reference}: must be MODULE:ATTRIBUTE, such as mymodule:app")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        app = getattr(importlib.import_module(module_name), attribute)
    except SetupError:
        raise
    except Exception as error:  # whatever the user's module raises on import
        raise SetupError(f"--app {reference}: {type(error).__name__}: {error}") from error
    if not isinstance(app, App):
        raise SetupError(f"--app {reference}: is a {type(app).__name__}, not a runwire.App")
    return app


def _check_name(name: str) -> None:
    """Raise SetupError unless a task could name the action."""
    if not name:
        raise SetupError("an action needs a name")
    if len(name) > LONGEST_ACTION:
        raise SetupError(f"action {name[:20]!r}...: a name has at most {LONGEST_ACTION} characters")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SetupError(f"action {name!r}: a name is text without lone surrogates") from None


def _check_options(name: str, *, process: bool, memory: int | None, concurrency: int | None) -> None:
    for option, value in (("memory", memory), ("concurrency", concurrency)):
        if value is not None and (type(value) is not int or value < 1):
            raise SetupError(f"action {name!r}: {option} must be a whole number from 1 on")
    if memory is not None and not process:
        raise SetupError(f"action {name!r}: memory needs process=True")


def _first_paragraph(handler: Callable[..., Any]) -> str:
    paragraph = (inspect.getdoc(handler) or "").partition("\n\n")[0]
    return " ".join(paragraph.replace("``", "`").split())


def _parameters_of(name: str, handler: Callable[..., Any]) -> TypeAdapter[Any]:
    """The type of the handler's first parameter, ready to validate with."""
    if not inspect.isroutine(handler) or inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise SetupError(f"action {name!r} must be a function, `async def` or `def`, that returns its result")
    arguments = list(inspect.signature(handler).parameters)
    if len(arguments) != 2:  # noqa: PLR2004 - (params, ctx)
        raise SetupError(f"action {name!r} must take two arguments: (params, ctx)")
    try:
        annotation = get_type_hints(handler).get(arguments[0], dict[str, Any])
        return TypeAdapter(annotation)
    except (NameError, PydanticUserError) as error:
        raise SetupError(
            f"action {name!r}: its first argument must be a pydantic model at module level: {error}"
        ) from None
