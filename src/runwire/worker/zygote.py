"""The helper process of actions that run in processes: it has imported the app, and forks once per run.

::

    worker  --- control: a byte and the four ends of a run --->  zygote  --- fork --->  the run's process
       ^                                                            |                        |
       |'------------ lifeline: how its process ended --------------'                        |
       '----------------- channel, stdout, stderr -------------------------------------------'

It has one thread and no event loop, so that forking is safe, and no connection to the broker. A run is over when its
process has ended, or when the worker lets go of its lifeline: then its process is killed. Whatever that one had
started becomes a child of the zygote (Linux), as often as it may have forked and into whatever session it went, and
is killed, too. When the worker ends, or is killed, all of them end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from runwire.app import App, load_app
from runwire.domain.errors import SetupError
from runwire.process import EXIT_SETUP, adopt_orphans, die_with_parent, outlive_parent
from runwire.worker import runner

FORK = b"f"
"""The byte on the control socket; lifeline, channel, stdout and stderr come with it."""
ENDS = 4
NICENESS = 5
"""What runs give way by: a worker that gets no CPU sends no heartbeats."""
LAST_WORDS = 1.0
"""Seconds in which everything should have ended when the worker has gone."""
BROKEN = 70
"""Exit status of a run's process when our own part of it fails."""


class Zygote:
    """Forks runs, and buries them."""

    def __init__(self, app: App, control: socket.socket) -> None:
        """``control`` comes from the worker. To be called in the main thread, when everything is imported."""
        self._app = app
        self._control = control
        self._lifelines: dict[int, socket.socket] = {}
        """By the process at their end."""
        self._die = die_with_parent()
        self._helpers = _children()
        """Processes that the app started when it was imported: none of ours."""
        self._child_ended, child_ends = socket.socketpair()
        self._child_ended.setblocking(False)
        child_ends.setblocking(False)
        self._wakers = (self._child_ended, child_ends)
        signal.set_wakeup_fd(child_ends.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the worker decides when its runs end
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._child_ended, selectors.EVENT_READ)

    def serve(self) -> None:
        """Until the worker has gone, and every run with it."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    if not self._take():
                        self._end()
                        return
                elif key.fileobj is self._child_ended:
                    self._child_ended.recv(4096)
                else:
                    self._kill(key.data)
            self._bury()

    def _take(self) -> bool:
        """Fork as asked; False: the worker has gone."""
        asked, ends, _, _ = socket.recv_fds(self._control, 1, ENDS)
        if not asked:
            return False
        for end in ends:
            os.set_inheritable(end, False)
        lifeline, rest = socket.socket(fileno=ends[0]), ends[1:]
        try:
            if len(ends) != ENDS:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # noqa: TRY301 - as if we had tried
            pid = os.fork()
        except OSError as error:
            _tell(lifeline, {"failed": error.strerror})
        else:
            if pid == 0:
                try:
                    self._become_run(lifeline, *rest)
                finally:
                    os._exit(BROKEN)
            with contextlib.suppress(OSError):  # it has done so itself
                os.setpgid(pid, pid)
            self._lifelines[pid] = lifeline
            self._selector.register(lifeline, selectors.EVENT_READ, pid)
        for end in rest:
            os.close(end)
        return True

    def _become_run(self, lifeline: socket.socket, channel: int, out: int, err: int) -> None:
        """Be the process of a run, with nothing left of the zygote but what it imported. Does not return."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._selector.close()
        for ours in (self._control, *self._wakers, lifeline, *self._lifelines.values()):
            ours.close()
        os.setpgid(0, 0)  # not a session: those may be given shares of the CPU whatever their niceness (autogroup)
        self._die()
        adopt_orphans()
        os.nice(NICENESS)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        runner.run(self._app, socket.socket(fileno=channel))
        os._exit(0)

    def _kill(self, pid: int) -> None:
        """The worker has let go of a run."""
        self._selector.unregister(self._lifelines[pid])
        for kill in (os.kill, os.killpg):  # it may have left its group
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)

    def _bury(self) -> None:
        """Tell of the runs whose processes have ended, once what they left behind has been killed."""
        ended: list[tuple[socket.socket, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            lifeline = self._lifelines.pop(pid, None)
            if lifeline is not None:
                ended.append((lifeline, os.waitstatus_to_exitcode(status)))
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        for stray in _children() - self._lifelines.keys() - self._helpers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(stray, signal.SIGKILL)  # its own children come next, when it has ended
        for lifeline, code in ended:
            with contextlib.suppress(KeyError):  # it was killed
                self._selector.unregister(lifeline)
            _tell(lifeline, {"status": code})

    def _end(self) -> None:
        for lifeline in self._lifelines.values():
            with contextlib.suppress(KeyError):
                self._selector.unregister(lifeline)
        for pid in list(self._lifelines):
            for kill in (os.kill, os.killpg):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + LAST_WORDS
        while self._lifelines or _children() - self._helpers:
            self._bury()
            if time.monotonic() > deadline:
                return
            time.sleep(0.005)


def main(reference: str, control: socket.socket) -> int:
    """Load the app, say so, and serve. The exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what is in a buffer would be forked, too
    try:
        app = load_app(reference)
    except SetupError as error:
        control.sendall(json.dumps({"failed": str(error)}).encode())
        return EXIT_SETUP
    adopt_orphans()
    zygote = Zygote(app, control)
    outlive_parent()  # the end of the control socket tells of its end, and leaves time to clear away
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    control.sendall(json.dumps({"threads": threads}).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    zygote.serve()
    return 0


def _tell(lifeline: socket.socket, message: dict[str, object]) -> None:
    with lifeline, contextlib.suppress(OSError):  # the worker has gone
        lifeline.sendall(json.dumps(message).encode())


def _children() -> set[int]:
    """Processes whose parent this one is (Linux; elsewhere none are found)."""
    try:
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    except OSError:
        return set()


if __name__ == "__main__":
    descriptor = int(sys.argv[2])
    os.set_inheritable(descriptor, False)
    status = main(sys.argv[1], socket.socket(fileno=descriptor))
    os._exit(status)  # threads that the app started keep nobody waiting
