"""One attempt's action: called with validated parameters and a context, under a timeout; its end is a value."""

from __future__ import annotations

import asyncio
import io
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timedelta

from nats.js.errors import APIError
from nats.js.errors import Error as JetStreamError
from pydantic import JsonValue, ValidationError
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from runwire import artifacts
from runwire.app import Action, App, Context, Handler
from runwire.domain import lifecycle
from runwire.domain.errors import Fail, Retry, SetupError
from runwire.domain.run import Done, ErrorCode, Failed, Outcome, Run, RunError
from runwire.domain.task import LogLevel, Task
from runwire.messaging.broker import UNAVAILABLE, Bus
from runwire.messaging.events import STREAM_FULL
from runwire.parameters import complaints
from runwire.settings import Settings
from runwire.worker.capture import captured
from runwire.worker.processes import Captured, Processes, Raised
from runwire.worker.redaction import Redact
from runwire.worker.runlog import RunLog, storable
from runwire.worker.vault import RunSecrets, Vault

INLINE_RESULT = 4 * 1024
"""Bytes of JSON a result may have inside the document; a larger one becomes a file."""
DEEPEST_RESULT = 100
"""Arrays and objects inside one another in such a result: nobody reads a document that has 200 of them."""
LARGEST_RESULT = 64 * 1024 * 1024
"""Bytes of JSON a result may have at all."""
TOO_DEEP = f"The action's result has more than {DEEPEST_RESULT} arrays and objects inside one another."
LONGEST_ERROR = 1000
"""Characters of an error's message inside the document."""


class HandedBack(Exception):
    """The worker is being stopped, and the action with it."""


class TakenAway(Exception):
    """The run was ended by somebody else, and its action stopped: nothing about it is this worker's business."""


class Hold:
    """A worker's hold on an attempt, from its claim to the end of its action. It can be taken away."""

    def __init__(self, run: Run) -> None:
        """``run`` as it stands in the claim."""
        self.run = run
        self.since = time.monotonic()
        self.is_taken_away = False
        self.action: asyncio.Task[object] | None = None
        """What carries out the action, while it runs."""

    def take_away(self) -> None:
        """Stop the action, also one that is about to begin. May be called twice."""
        if not self.is_taken_away:
            self.is_taken_away = True
            if self.action is not None:
                self.action.cancel()


class Actor:
    """Calls actions, and can stop those that are running."""

    def __init__(self, bus: Bus, app: App, settings: Settings, vault: Vault, *, clock: Callable[[], datetime]) -> None:
        """``clock`` tells the time in UTC."""
        self._bus = bus
        self._actions = app.actions
        self._settings = settings
        self._clock = clock
        self._vault = vault
        self._processes = _processes_for(app, settings)
        self._acting: set[asyncio.Task[object]] = set()
        self._handing_back = False

    def start(self) -> None:
        """Make ready what actions need. May be called twice."""
        if self._processes is not None:
            self._processes.start()

    async def stop(self) -> None:
        """Let go of it."""
        if self._processes is not None:
            await self._processes.stop()

    def knows(self, task: Task) -> bool:
        """Whether there is such an action here."""
        return task.target.action in self._actions

    def hand_back(self) -> None:
        """Stop the actions that are running now, and begin no other."""
        self._handing_back = True
        for task in self._acting:
            task.cancel()

    async def act(self, task: Task, hold: Hold, line_log: RunLog, *, accepted: datetime) -> Outcome:
        """Run the task's action under its timeout; whatever happens comes back as an outcome.

        ``accepted``: when the run was, for its deadline.

        Raises HandedBack when the worker is being stopped, TakenAway when the attempt is over for another reason,
        and nothing else.
        """
        run = hold.run
        action = self._actions.get(task.target.action)
        if action is None:
            waited = self._settings.action_wait
            return _failed(
                ErrorCode.UNKNOWN_ACTION, f"No worker knew the action {task.target.action!r} within {waited:g} s."
            )
        try:
            parameters = action.parameters.validate_python(task.target.parameters)
        except ValidationError as invalid:
            return _failed(ErrorCode.INVALID_PARAMETERS, complaints(invalid))
        now = self._clock()
        left = lifecycle.time_left(task, accepted, now=now)
        seconds = task.timeout if left is None else min(task.timeout, left)
        secrets = self._vault.open_for(task.chain)
        line_log.redact = redact = secrets.redact
        context = Context(
            run_id=run.id,
            attempt=run.attempt,
            deadline=now + timedelta(seconds=seconds),
            task=task.id,
            chain=task.chain,
            filters=task.filters,
            traceparent=run.trace.parent if run.trace else None,
            tracestate=run.trace.state if run.trace else None,
            write_log=line_log.write,
            write_progress=line_log.report,
            read_secret=secrets.get,
        )
        try:
            async with asyncio.timeout(seconds) as limit:
                result = await self._interruptible(
                    self._handler(action, task, line_log), parameters, context, hold, line_log
                )
        except (HandedBack, TakenAway):
            raise
        except Fail as fail:
            return _failed(_redacted_code(fail.code, redact), redact(str(fail)))
        except Retry as retry:
            code = _redacted_code(retry.code, redact)
            return _failed(code, redact(str(retry)), retryable=True, after=retry.after)
        except Raised as raised:
            line_log.note(LogLevel.DEBUG, raised.traceback)
            return _failed(ErrorCode.HANDLER_ERROR, redact(str(raised)), retryable=True)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the action raises is its outcome
            if limit.expired() and seconds < task.timeout:
                return Failed(lifecycle.beyond(task))
            if limit.expired():
                return _failed(ErrorCode.TIMEOUT, f"The action took longer than {task.timeout:g} s.", retryable=True)
            line_log.note(LogLevel.DEBUG, "".join(traceback.format_exception(error)))
            return _failed(ErrorCode.HANDLER_ERROR, redact(f"{type(error).__name__}: {error}"), retryable=True)
        return await self._keep_result(run, result, secrets)

    def _handler(self, action: Action, task: Task, line_log: RunLog) -> Handler:
        """What calls the action, here or in a process of its own, where the parameters are validated again."""
        processes = self._processes
        if action.function is None or processes is None:
            return action.handler
        captured_there = Captured(line_log.stdout.feed_bytes, line_log.stderr.feed_bytes, line_log.capture)
        return lambda _, context: processes.call(action, task.target.parameters, context, captured_there)

    async def _interruptible(
        self, handler: Handler, parameters: object, context: Context, hold: Hold, line_log: RunLog
    ) -> object:
        """Call the action. :meth:`hand_back` ends it with HandedBack, the loss of its hold with TakenAway.

        Whatever else ends it is its own doing.
        """
        task = asyncio.current_task()
        if hold.is_taken_away:
            raise TakenAway
        if task is None or self._handing_back:
            raise HandedBack
        self._acting.add(task)
        hold.action = task
        try:
            with captured(line_log):
                return await handler(parameters, context)
        except asyncio.CancelledError as cancelled:
            context.stopped.set()
            if hold.is_taken_away:
                raise TakenAway from None
            if self._handing_back:
                raise HandedBack from None
            if task.cancelling():  # the timeout
                raise
            raise RuntimeError("the action was cancelled from within") from cancelled
        finally:
            hold.action = None
            self._acting.discard(task)

    async def _keep_result(self, run: Run, result: object, secrets: RunSecrets) -> Outcome:
        """The result as it goes into the document: small JSON objects as they are, larger ones as a file."""
        if result is None:
            return Done(None)
        try:
            value: JsonValue = to_jsonable_python(result)
            value = await secrets.redact_json(value)
            encoded = to_json(value)
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            return _failed(ErrorCode.INVALID_RESULT, secrets.redact(f"The action's result is no JSON: {error}"))
        if not isinstance(value, dict):
            return _failed(
                ErrorCode.INVALID_RESULT, f"The action's result is no JSON object but {type(value).__name__}."
            )
        if len(encoded) > LARGEST_RESULT:
            message = f"The action's result has {len(encoded):,} bytes; at most {LARGEST_RESULT:,} can be kept."
            return _failed(ErrorCode.RESULT_TOO_LARGE, message)
        if len(encoded) <= INLINE_RESULT:
            return Done(value) if _depth(value) <= DEEPEST_RESULT else _failed(ErrorCode.INVALID_RESULT, TOO_DEEP)
        file = f"Result-{run.task}.json"
        name = artifacts.object_name(run.chain, run.task, run.id, file)
        refusal = await self._put_surely(name, encoded)
        if refusal is not None:
            return _failed(ErrorCode.RESULT_TOO_LARGE, f"The action's result could not be stored: {refusal}")
        return Done({"file": file, "bytes": len(encoded)})

    async def _put_surely(self, name: str, content: bytes) -> str | None:
        """Store a file; a broker that is away is waited for. Why it was refused; None: it was not."""
        while True:
            try:
                await artifacts.put(self._bus, name, io.BytesIO(content))
            except APIError as error:
                if error.err_code in STREAM_FULL:
                    return str(error.description)
            except (*UNAVAILABLE, JetStreamError):
                pass
            else:
                return None
            await asyncio.sleep(0.5)


def _processes_for(app: App, settings: Settings) -> Processes | None:
    """Where actions with ``process=True`` are called; None: there are none. Raises SetupError."""
    names = [action.name for action in app.actions.values() if action.function is not None]
    if not names:
        return None
    if settings.app is None:
        raise SetupError(f"action {names[0]!r} runs in processes, which load it by name: say --app MODULE:ATTRIBUTE")
    return Processes(settings.app, largest_result=LARGEST_RESULT)


def _failed(code: str, message: str, *, retryable: bool = False, after: float | None = None) -> Failed:
    text = message if len(message) <= LONGEST_ERROR else f"{message[:LONGEST_ERROR]}..."
    return Failed(RunError(code=str(code), message=storable(text)), retryable=retryable, retry_after=after)


def _depth(value: JsonValue) -> int:
    """How many arrays and objects are inside one another."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _redacted_code(code: str, redact: Redact) -> str:
    return code if redact(code) == code else ErrorCode.HANDLER_ERROR
