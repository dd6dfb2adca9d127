"""Who asks for runs, over HTTP and on the bus, and writes down what was answered.

A call whose outcome is unknown is repeated with the same key, at whatever adapter, until something is known: that is
what the documentation tells callers to do.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any
from uuid import UUID

import httpx
import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from runwire.messaging import subjects
from tests.chaos.history import Call
from tests.chaos.stack import CREDENTIAL, Stack

WAIT = 15.0
"""Seconds a caller waits for the end of its run."""
PATIENCE = 60.0
"""Seconds for which a call is repeated whose outcome is unknown."""
BUSY = 10077
"""The broker's refusal of a second command for a task."""
RECENT = 8
"""Runs of a task that may be asked for again; fewer than a document remembers, as others begin meanwhile."""


class Callers:
    """Everybody who calls, as tasks of one event loop."""

    def __init__(
        self,
        stack: Stack,
        chain: int,
        tasks: list[int],
        seed: int,
        note: Callable[[Call], None],
        *,
        ticking: Collection[int] = (),
        pause: float = 0.1,
    ) -> None:
        """``tasks``: those that are called, some of which are ``ticking``: they run by themselves as well.

        ``note`` is given every call; ``pause``: seconds between two, at most.
        """
        self._stack = stack
        self._chain = chain
        self._tasks = tasks
        # Of a task that runs every second a document soon remembers none of the runs that were asked for.
        self._repeatable = [task for task in tasks if task not in ticking]
        self._dice = random.Random(seed)
        self._pause = pause
        self._note = note
        self._http = httpx.AsyncClient(
            trust_env=False,
            headers={"Authorization": f"Bearer {':'.join(CREDENTIAL)}"},
            timeout=httpx.Timeout(WAIT + 5, connect=2),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=50),
        )
        self._recent: dict[int, deque[tuple[str, str]]] = defaultdict(lambda: deque(maxlen=RECENT))
        """(door, run) of the latest accepted runs of a task."""
        self._edits = 0
        self._open = True
        self._callers: list[asyncio.Task[None]] = []

    def start(self, *, http: int, bus: int) -> None:
        """Begin to call."""
        loops = [*(self._call_over_http() for _ in range(http)), *(self._call_on_the_bus() for _ in range(bus))]
        loops += [self._change(), self._repeat_late()]
        self._callers = [asyncio.create_task(loop) for loop in loops]

    async def finish(self) -> None:
        """Ask for nothing new, and return when every call has come to its end."""
        self._open = False
        await asyncio.gather(*self._callers)
        await self._http.aclose()

    async def create(self, task: int, body: dict[str, Any]) -> None:
        """Create a task before anything happens. Raises HTTPError."""
        url = self._some_adapter()
        answer = await self._http.post(f"{url}/tasks", json={"id": task, "chain": self._chain, **body})
        answer.raise_for_status()

    # --- over HTTP -------------------------------------------------------------------------------------

    async def _call_over_http(self) -> None:
        while self._open:
            task = self._dice.choice(self._tasks)
            key = None if self._dice.random() < 0.1 else self._new_id()
            wait = 0.0 if self._dice.random() < 0.1 else WAIT
            query = self._dice.choice(["", "", "?if_running=join", "?if_running=queue"])
            await self._until_known(task, key, wait, query)
            await asyncio.sleep(self._dice.uniform(0, self._pause))

    async def _until_known(self, task: int, key: str | None, wait: float, query: str) -> None:
        """Call, and again as long as nothing is known; once only without a key."""
        deadline, was_unknown = time.monotonic() + PATIENCE, False
        while True:
            url = self._some_adapter()
            call = await self._execute(url, task, key, wait, query)
            self._note(call)
            if call.outcome == "accepted":
                if not call.joined and call.run:
                    self._recent[task].append(("http", call.run))
                if call.code is not None and self._dice.random() < 0.3:
                    await self._read(url, task, call.run)
                if key is not None and self._dice.random() < 0.1:  # it has its answer, and asks again all the same
                    self._note(await self._execute(self._some_adapter(), task, key, wait, query))
                return
            was_unknown |= call.outcome == "unknown"
            if key is None or not was_unknown or time.monotonic() > deadline:
                return
            await asyncio.sleep(self._dice.uniform(0.05, 0.4))

    async def _execute(self, url: str, task: int, key: str | None, wait: float, query: str) -> Call:
        headers = {"Prefer": f"wait={wait:g}"} | ({"Idempotency-Key": key} if key else {})
        return await self._request(
            "POST", f"{url}/tasks/{task}/execute{query}", task, "execute", headers=headers, key=key, wait=wait
        )

    async def _read(self, url: str, task: int, run: str | None) -> None:
        """What the next GET shows at the adapter that has answered."""
        sent = time.time()
        with suppress(httpx.HTTPError):
            answer = await self._http.get(f"{url}/tasks/{task}/runs/{run}")
            if answer.status_code in {200, 404}:
                shown = answer.json()
                self._note(
                    Call(
                        door="http", what="read", task=task, run=run, sent=sent, answered=time.time(),
                        outcome="accepted", status=str(answer.status_code), code=shown.get("code", "MISSING"),
                        error=(shown.get("error") or {}).get("code"), finished=shown.get("finished"),
                    )
                )  # fmt: skip

    async def _change(self) -> None:
        """Cancel and edit now and then."""
        while self._open:
            await asyncio.sleep(self._dice.uniform(0.1, 0.5))
            task, url = self._dice.choice(self._tasks), self._some_adapter()
            if self._dice.random() < 0.6:
                self._note(await self._request("POST", f"{url}/tasks/{task}/cancel", task, "cancel"))
            else:
                self._edits += 1
                desc = f"edit {self._edits}"
                kind = {"Content-Type": "application/merge-patch+json"}
                self._note(
                    await self._request("PATCH", f"{url}/tasks/{task}", task, "edit", headers=kind, json={"desc": desc})
                )

    async def _request(
        self, method: str, url: str, task: int, what: Any, *, key: str | None = None, wait: float = 0, **request: Any
    ) -> Call:
        sent = time.time()
        fields: dict[str, Any] = {"door": "http", "what": what, "task": task, "key": key, "wait": wait, "sent": sent}
        try:
            answer = await self._http.request(method, url, **request)
        except httpx.HTTPError as error:
            return Call(**fields, answered=time.time(), outcome="unknown", status=type(error).__name__)
        fields |= {"answered": time.time(), "status": str(answer.status_code)}
        if answer.status_code >= 500:
            return Call(**fields, outcome="unknown")
        if not answer.is_success:
            return Call(**fields, outcome="refused")
        body, headers = answer.json(), answer.headers
        if what == "edit":
            return Call(**fields, outcome="accepted", version=body["version"], desc=body["desc"])
        ended = answer.status_code == 200
        return Call(
            **fields,
            outcome="accepted",
            run=headers.get("run-id"),
            joined=headers.get("run-joined") == "true",
            code=body["code"] if ended else None,
            error=headers.get("task-error") if ended else None,
            finished=body["last_modified"] if ended else None,
        )

    def _some_adapter(self) -> str:
        return self._dice.choice(list(self._stack.adapters.values()))

    def _new_id(self) -> str:
        return str(UUID(int=self._dice.getrandbits(128), version=4))

    # --- on the bus ------------------------------------------------------------------------------------

    async def _call_on_the_bus(self) -> None:
        client: Client | None = None
        while self._open:
            client = await self._connected(client)
            if client is not None:
                await self._until_acknowledged(client, self._dice.choice(self._tasks), self._new_id())
            await asyncio.sleep(self._dice.uniform(0.05, 0.3))
        if client is not None:
            await client.close()

    async def _connected(self, client: Client | None) -> Client | None:
        """The connection, or a new one when it has been given up; None: not now."""
        if client is not None and not client.is_closed:
            return client
        with suppress(nats.errors.Error, OSError, TimeoutError):
            return await nats.connect(
                self._stack.bus_urls,
                user=CREDENTIAL[0],
                password=CREDENTIAL[1],
                inbox_prefix=f"_INBOX_{CREDENTIAL[0]}",
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,
                connect_timeout=3,
                error_cb=_ignore,
            )
        return None

    async def _until_acknowledged(self, client: Client, task: int, run: str, *, tries: int = 1000) -> None:
        """Publish, and again with the same id as long as nothing is known; a refusal of the first try is one."""
        deadline, was_unknown = time.monotonic() + PATIENCE, False
        for _ in range(tries):
            call = await self._publish(client, task, run)
            self._note(call)
            if call.outcome == "accepted":
                self._recent[task].append(("bus", run))
                return
            was_unknown |= call.outcome == "unknown"
            if client.is_closed or not was_unknown or time.monotonic() > deadline:
                return
            await asyncio.sleep(self._dice.uniform(0.05, 0.4))

    async def _publish(self, client: Client, task: int, run: str) -> Call:
        sent = time.time()
        fields: dict[str, Any] = {"door": "bus", "what": "execute", "task": task, "run": run, "sent": sent}
        try:
            await client.jetstream().publish(
                subjects.command(self._chain, task), b"{}", headers={subjects.MSG_ID: run}, timeout=2
            )
        except nats.js.errors.APIError as error:
            outcome = "refused" if error.err_code == BUSY and not self._stack.is_split else "unknown"
            return Call(**fields, answered=time.time(), outcome=outcome, status=str(error.err_code))
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError) as error:
            return Call(**fields, answered=time.time(), outcome="unknown", status=type(error).__name__)
        return Call(**fields, answered=time.time(), outcome="accepted", status="ack")

    async def _repeat_late(self) -> None:
        """Publish once more what was accepted a while ago, as somebody does who never got the acknowledgement.

        A broker that has crashed meanwhile has forgotten the ids of commands that are done, and a task that runs by
        itself too soon has more runs than its document remembers.
        """
        client: Client | None = None
        while self._open:
            await asyncio.sleep(self._dice.uniform(0.05, 0.2))
            client = await self._connected(client)
            task = self._dice.choice(self._repeatable)
            earlier = [run for door, run in list(self._recent[task])[:-1] if door == "bus"]
            if client is None or not earlier:
                continue
            call = await self._publish(client, task, self._dice.choice(earlier))
            self._note(call)
        if client is not None:
            await client.close()


async def _ignore(_error: Exception) -> None:
    """What goes wrong on the way is what the callers are here for."""
