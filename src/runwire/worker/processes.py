"""Actions in processes of their own, from the worker's side: has each call forked, listens to it, ends it.

What a call prints and logs goes into its run's log as that of other actions does. A call that is cancelled ends when
its process has been killed. The process that all calls are forked from (:mod:`.zygote`) is
started once, and again whenever it is found to have ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json

from runwire.app import Action, Context
from runwire.domain.errors import Fail, Retry
from runwire.domain.run import ErrorCode
from runwire.domain.task import LogLevel
from runwire.process import die_with_parent
from runwire.worker import zygote
from runwire.worker.actions.child import OUT_OF_MEMORY, read, signal_name

log = logging.getLogger("runwire.worker")

LONGEST_MESSAGE = 4 << 20
"""Bytes of a message, without the result behind it: its texts are shorter, as JSON too."""
LINGER = 1.0
"""Seconds in which a process has to end that has answered, or cannot answer any more."""
PATIENCE = 3.0
"""Seconds in which a process has to end that was killed."""
LAST_OUTPUT = 0.5
"""Seconds in which what a process said and printed has to come after its end."""
FULL = 0.01
"""Seconds to the next try when the zygote has more requests than it can take."""
STDERR = 2


class Raised(Exception):
    """What a function raised in its process, as text."""

    def __init__(self, text: str, traceback: str) -> None:
        """``text`` has the name of the exception and its message."""
        super().__init__(text)
        self.traceback = traceback


@dataclass(frozen=True)
class Captured:
    """Takes what a call prints, and what it logs by Python's logging."""

    stdout: Callable[[bytes], object]
    stderr: Callable[[bytes], object]
    record: Callable[[LogLevel, str], object]


class Processes:
    """The processes of one worker. To be used in its event loop's thread, which they die with."""

    def __init__(self, reference: str, *, largest_result: int) -> None:
        """``reference`` names the app, ``MODULE:ATTRIBUTE``; results may have ``largest_result`` bytes of JSON."""
        self._reference = reference
        self._largest_result = largest_result
        self._source: Source | None = None

    def start(self) -> Source:
        """Begin to load the app, unless that was done; calls wait for it."""
        if self._source is None or self._source.has_ended:
            if self._source is not None:
                log.warning("the process that runs are forked from has ended; another one is started",
                            extra={"action": "zygote_restarted"})  # fmt: skip
                self._source.close()
            self._source = Source(self._reference)
        return self._source

    async def stop(self) -> None:
        """End them all."""
        if self._source is not None:
            await self._source.end()
            self._source = None

    async def call(
        self, action: Action, parameters: dict[str, JsonValue], context: Context, captured: Captured
    ) -> object:
        """What the action's function returns. Raises Fail, Retry or Raised; a cancellation kills its process first."""
        try:
            source = self.start()
        except OSError as error:
            raise _not_started(error.strerror or str(error)) from None
        await source.loaded()
        request: dict[str, Any] = {
            "action": action.name,
            "parameters": parameters,
            "memory": action.memory,
            "context": {
                "run_id": context.run_id,
                "attempt": context.attempt,
                "deadline": context.deadline.isoformat(),
                "task": context.task,
                "chain": context.chain,
                "filters": context.filters,
                "traceparent": context.traceparent,
                "tracestate": context.tracestate,
            },
        }
        stop = asyncio.Event()
        life = asyncio.create_task(Call(source, request, context, captured, self._largest_result).live(stop))
        try:
            return await asyncio.shield(life)
        except asyncio.CancelledError:
            stop.set()
            while not life.done():
                with contextlib.suppress(asyncio.CancelledError):  # however often: first it has to end
                    await asyncio.wait({life})
            life.exception()  # nobody wants to know any more
            raise


class Call:
    """One call of a function in a process."""

    def __init__(
        self, source: Source, request: dict[str, Any], context: Context, captured: Captured, largest_result: int
    ) -> None:
        self._source = source
        self._request = request
        self._context = context
        self._captured = captured
        self._largest_result = largest_result
        self._is_cut_off = False
        """It was killed, since it had said all it could, and yet did not end."""

    async def live(self, stop: asyncio.Event) -> object:
        """What the function returns. When this returns or raises, its process has ended; ``stop`` has it killed."""
        ends = await self._start()
        reading = {
            asyncio.create_task(read(pipe, feed))
            for pipe, feed in ((ends.out, self._captured.stdout), (ends.err, self._captured.stderr))
        }
        life, lifeline = await asyncio.open_unix_connection(sock=ends.lifeline)
        said, channel = await asyncio.open_unix_connection(sock=ends.channel, limit=LONGEST_MESSAGE)
        talking, ending = asyncio.create_task(self._talk(said, channel)), asyncio.create_task(life.read())
        await self._watch(talking, ending, lifeline, stop)
        await asyncio.wait({talking, *reading}, timeout=LAST_OUTPUT)
        for task in (talking, ending, *reading):
            task.cancel()
        answer, end, *_ = await asyncio.gather(talking, ending, *reading, return_exceptions=True)
        for writer in (lifeline, channel):
            writer.close()
        return self._outcome(answer, end)

    async def _start(self) -> Ends:
        """Have a process forked. What comes back is the caller's to close."""
        try:
            with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
                (lifeline, its_lifeline), (channel, its_channel) = (_socket_pair(ours, theirs) for _ in range(2))
                (out, its_out), (err, its_err) = (_pipe(ours, theirs) for _ in range(2))
                await self._source.fork([its_lifeline.fileno(), its_channel.fileno(), its_out, its_err])
                ours.pop_all()
        except OSError as error:
            raise _not_started(error.strerror or str(error)) from None
        return Ends(lifeline, channel, out, err)

    async def _talk(self, said: asyncio.StreamReader, channel: asyncio.StreamWriter) -> dict[str, Any] | None:
        """Ask, and listen; the answer, None if there is none."""
        channel.write(json.dumps(self._request).encode() + b"\n")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while line := await said.readline():
                message: dict[str, Any] = from_json(line)
                match message:
                    case {"log": [level, text]}:
                        self._context.log(text, level)
                    case {"record": [level, text]}:
                        self._captured.record(LogLevel(level), text)
                    case {"progress": [fraction, text]}:
                        self._context.progress(fraction, text)
                    case {"secret": [name, own]}:
                        channel.write(json.dumps(self._secret(name, own)).encode() + b"\n")
                    case {"result": size}:
                        return await self._take(size, said)
                    case _:
                        return message
        return None

    def _secret(self, name: str, own: bool) -> dict[str, Any]:
        try:
            return {"value": self._context.read_secret(name, own)}
        except Fail as fail:
            return {"fail": [fail.code, str(fail)]}
        except Retry as retry:
            return {"retry": [retry.code, str(retry), retry.after]}

    async def _take(self, size: int, said: asyncio.StreamReader) -> dict[str, Any]:
        if size > self._largest_result:
            message = f"The action's result has {size:,} bytes; at most {self._largest_result:,} can be kept."
            return {"fail": [ErrorCode.RESULT_TOO_LARGE, message]}
        return {"value": from_json(await said.readexactly(size)) if size else None}

    async def _watch(
        self,
        talking: asyncio.Task[Any],
        ending: asyncio.Task[bytes],
        lifeline: asyncio.StreamWriter,
        stop: asyncio.Event,
    ) -> None:
        """Until the process has ended: by itself, or killed, since it has said all it can or the caller wants it."""
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({talking, ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done() and not stopping.done():
            await asyncio.wait({ending, stopping}, timeout=LINGER, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ending.done():
            self._is_cut_off = not stop.is_set()
            lifeline.write_eof()
            await asyncio.wait({ending}, timeout=PATIENCE)
        if not ending.done():
            log.warning("the process of run=%s does not end", self._context.run_id, extra={"action": "not_killed"})

    def _outcome(self, answer: object, end: object) -> object:
        """``answer`` and ``end`` are what came of listening: also what was raised by it."""
        match answer:
            case {"value": value}:
                return value
            case {"fail": [code, message]}:
                raise Fail(code, message)
            case {"retry": [code, message, after]}:
                raise Retry(message, after=after, code=code)
            case {"raised": [text, traceback]}:
                raise Raised(text, traceback)
            case Exception():
                raise Retry(f"The process said what nobody understands: {answer}", code=ErrorCode.KILLED)
        last_words = from_json(end) if isinstance(end, bytes) and end else {}
        if "failed" in last_words:
            raise _not_started(last_words["failed"])
        raise Retry(self._way_it_ended(last_words.get("status")), code=ErrorCode.KILLED)

    def _way_it_ended(self, status: int | None) -> str:
        """``status`` None: nobody was there to see it."""
        if status is None:
            return "The process was killed, since the one that it was forked from has ended."
        if self._is_cut_off:
            return "The process was killed, since it had closed its connection to the worker."
        if status >= 0:
            return f"The process ended with status {status} without an answer."
        memory = self._request["memory"]
        hint = f"; it may take {memory} MB of memory" if memory and -status in OUT_OF_MEMORY else ""
        return f"The process was killed by {signal_name(-status)}{hint}."


@dataclass(frozen=True)
class Ends:
    """The worker's ends of a call."""

    lifeline: socket.socket
    channel: socket.socket
    out: int
    err: int


class Source:
    """A zygote that was started."""

    def __init__(self, reference: str) -> None:
        """Start it, with the app that ``reference`` names. Needs a running event loop."""
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        with theirs, contextlib.ExitStack() as failed:
            failed.callback(self._control.close)
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", zygote.__name__, reference, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=STDERR,
                pass_fds=[theirs.fileno()],
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - two system calls
                start_new_session=True,
            )
            failed.pop_all()
        self._loading = asyncio.create_task(self._load())

    @property
    def has_ended(self) -> bool:
        """Whether another one is needed."""
        return self._loading.done() and self._process.poll() is not None

    async def loaded(self) -> None:
        """Wait until it can fork. Raises Retry when it cannot."""
        problem = await asyncio.shield(self._loading)
        if problem is not None:
            raise _not_started(problem)

    async def _load(self) -> str | None:
        """Why it cannot fork; None: it can."""
        said = await asyncio.get_running_loop().sock_recv(self._control, LONGEST_MESSAGE)
        if not said:
            return "the process that loads the app has ended"
        message = from_json(said)
        if message.get("threads"):
            log.warning("threads that the app starts when it is imported (%s) are not there in its process actions",
                        ", ".join(message["threads"]), extra={"action": "threads"})  # fmt: skip
        failure: str | None = message.get("failed")
        return failure

    async def fork(self, ends: Sequence[int]) -> None:
        """Ask for a process that has these. Raises OSError when it has ended."""
        while True:
            try:
                socket.send_fds(self._control, [zygote.FORK], ends)
            except BlockingIOError:
                await asyncio.sleep(FULL)
            else:
                return

    def close(self) -> None:
        """Let go of one that has ended."""
        self._control.close()

    async def end(self) -> None:
        """End it, and all it has forked."""
        self._loading.cancel()
        await asyncio.wait({self._loading})
        self.close()
        try:
            await asyncio.to_thread(self._process.wait, PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)


def _socket_pair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    our, their = socket.socketpair()
    return ours.enter_context(our), theirs.enter_context(their)


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    our, their = os.pipe()
    ours.callback(os.close, our)
    theirs.callback(os.close, their)
    return our, their


def _not_started(why: str) -> Retry:
    return Retry(f"The process could not be started: {why}.", code=ErrorCode.NOT_STARTED)
