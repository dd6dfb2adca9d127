"""Every stream, subject, consumer and header name, built and parsed in this one place.

::

    tasks.cmd.<chain>.<task>.execute       COMMANDS     what shall be run
    tasks.evt.<chain>.<task>.<code>        EVENTS       what became of it: ready inprogress done error edited
                                                        skipped deleted
    tasks.log.<chain>.<task>               LOGS         what runs had to say, line by line
    tasks.log.<chain>.<task>.progress      LOGS         how far the latest of them says it has come
    tasks.sch.<chain>.<task>               SCHEDULES    the alarm of a task: when it is due next
    tasks.due.<chain>.<task>               SCHEDULES    an alarm that has rung
    tasks.dlq.<chain>.<task>               DEADLETTERS  commands that could not be run
    tasks.dlq.<chain>.<task>.web_hook      DEADLETTERS  events that could not be sent to a web hook
    tasks.key.<key>                        KEYS         which run or task an Idempotency-Key stands for
    tasks.aud.<chain>                      AUDIT        calls that were refused, and deeds that no event tells of
    tasks.ids                              IDS          the counter of task ids
    api.<chain>.<token>.tasks.<call>       -            requests to ourselves: the calls of the HTTP API (core NATS)
    services.<chain>.<name>                -            requests to a service of the chain (core NATS)
    messages.<chain>.<name>                -            messages for the services of the chain (core NATS)
    replies.<name>                         -            the reply to one request (core NATS)

``<chain>`` and ``<task>`` are positive integers; ``<name>``, which a task brings, is tokens of letters, digits, ``_``
and ``-``, and stands behind the chain of that task. Nothing else a user wrote becomes a part of a subject. (nats-py
takes ``cmd.1.>`` for a literal subject when publishing, so this is checked here and nowhere else.)
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Collection

from runwire.domain.errors import Undecodable
from runwire.domain.ids import LONGEST_SUBJECT_NAME, SUBJECT_NAME
from runwire.domain.lifecycle import Change, Document
from runwire.domain.task import MAX_ID, StateCode

COMMANDS, EVENTS, LOGS, DEADLETTERS = "COMMANDS", "EVENTS", "LOGS", "DEADLETTERS"
SCHEDULES, KEYS, AUDIT, IDS = "SCHEDULES", "KEYS", "AUDIT", "IDS"
STREAMS = (COMMANDS, EVENTS, LOGS, SCHEDULES, DEADLETTERS, KEYS, AUDIT, IDS)

ALL_COMMANDS = "tasks.cmd.*.*.execute"
ALL_EVENTS = "tasks.evt.>"
ALL_ERRORS, ALL_DELETIONS = "tasks.evt.*.*.error", "tasks.evt.*.*.deleted"
DEFINITIONS = ["tasks.evt.*.*.ready", "tasks.evt.*.*.edited", ALL_DELETIONS]
"""The events that may change when a task is due."""
APART = {Change.EDITED, Change.SKIPPED, Change.DELETED}
"""The changes that no run brings about; their events have codes of their own."""
EVENT_CODES = (*(code.value.lower() for code in StateCode), *sorted(change.value for change in APART))
"""What the subject of an event may end with."""
ALL_LOGS = "tasks.log.>"
PROGRESS = ".progress"
ALL_ALARMS, ALL_DUE = "tasks.sch.*.*", "tasks.due.*.*"
ALL_DEADLETTERS, DEAD_COMMANDS = "tasks.dlq.>", "tasks.dlq.*.*"
ALL_KEYS = "tasks.key.*"
ALL_AUDIT = "tasks.aud.*"
ID_COUNTER = "tasks.ids"

SHARED_WORKERS = "workers"
"""The one consumer that all chains shared in earlier versions; its filter stands in the way of those of the chains."""
FORWARDERS, ALARM_SETTERS = "forwarders", "alarm-setters"
"""The durable consumers that all workers share: on SCHEDULES for what is due, on EVENTS for what changes it."""
CONSUMER_CREATED = f"$JS.EVENT.ADVISORY.CONSUMER.CREATED.{COMMANDS}.*"
"""Where the broker tells that COMMANDS has a new consumer."""
SUBSCRIPTION_CHANGES = f"$JS.EVENT.ADVISORY.CONSUMER.*.{EVENTS}.*"
"""Where the broker tells which consumers of EVENTS come and go."""
ROLL_CALL = "tasks.wrk.call"
"""A request here is answered by every worker (core NATS, nothing is stored)."""
HOOK_CHANGES = "tasks.wrk.hooks"
"""Workers are told here which web hook has changed (core NATS, nothing is stored): the broker does not tell."""

LOGINS = "$SYS.REQ.USER.AUTH"
"""Where the broker asks whether to let a client in."""
CONNECTIONS, ALL_CONNECTIONS = "$SYS.REQ.SERVER.{}.CONNZ", "$SYS.REQ.SERVER.PING.CONNZ"
"""Where one server, and where each of them tells its connections."""
KICK = "$SYS.REQ.SERVER.{}.KICK"
"""Where a server is told to close a connection."""
OURSELVES = tuple(f"$SRV.{verb}{kind}" for verb in ("PING", "INFO") for kind in ("", ".runwire"))
"""Where clients ask which services there are, and we answer, too (ADR-32)."""
ACCOUNTS = "$SYS.REQ.SERVER.PING.ACCOUNTZ"
"""Where the servers tell which accounts they have."""
HEALTH = "$SYS.REQ.SERVER.PING.HEALTHZ"
"""Where the servers tell whether their streams are well."""

TOKENS_BUCKET = "runwire-tokens"
TOKENS_STREAM, ALL_TOKENS = f"KV_{TOKENS_BUCKET}", f"$KV.{TOKENS_BUCKET}.*"
"""Where the bucket keeps its entries: every version of every token, up to the bucket's history."""
TOKEN_USE_BUCKET = "runwire-token-use"  # noqa: S105 - a name
SETTINGS_BUCKET = "runwire-settings"
ACTIONS_BUCKET = "runwire-actions"
ACTIONS_STREAM = f"KV_{ACTIONS_BUCKET}"
ARTIFACTS_BUCKET = "runwire-artifacts"

# Headers of the broker, as it spells them.
MSG_ID = "Nats-Msg-Id"
EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
INCREMENT = "Nats-Incr"
ROLLUP, ROLLUP_OF_SUBJECT = "Nats-Rollup", "sub"
TTL = "Nats-TTL"
ROLLUP = "Nats-Rollup"
SCHEDULE = "Nats-Schedule"
SCHEDULE_TARGET = "Nats-Schedule-Target"

KEY_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What the name of a key's record looks like: one token of a subject."""

SUBSCRIPTION = "runwire"
"""In the metadata of a consumer on EVENTS: the subscription it is there for."""

STATUS, NO_RESPONDERS = "Status", "503"
"""How the broker answers a request that nobody is there for."""
SERVICE_ERROR, SERVICE_ERROR_CODE = "Nats-Service-Error", "Nats-Service-Error-Code"
"""How a service says that it failed (NATS ADR-32)."""

EVENT_ID = "ce-id"
"""The CloudEvents attribute that tells events apart; by it a writer recognises its own."""

TRACE_PARENT, TRACE_STATE = "traceparent", "tracestate"
"""W3C Trace Context, spelled as over HTTP."""

# Headers of ours, on commands, requests, messages and dead letters.
RUN_ID = "Run-Id"
RUN_SOURCE = "Run-Source"
RUN_TICK = "Run-Tick"
"""``<version of the schedule> <time>``: the tick a command stands for. Its run id proves it."""
RUN_ATTEMPT, RUN_DEADLINE = "Run-Attempt", "Run-Deadline"
TASK_ID, CHAIN_ID = "Task-Id", "Chain-Id"
DEAD_REASON = "Dead-Letter-Reason"
DEAD_DETAIL = "Dead-Letter-Detail"
DEAD_SUBJECT = "Dead-Letter-Subject"
DEAD_SEQUENCE = "Dead-Letter-Sequence"
DEAD_RUN_ID, DEAD_MSG_ID = "Dead-Letter-Run-Id", "Dead-Letter-Msg-Id"
"""What the command itself had as ``Run-Id`` and ``Nats-Msg-Id``."""
DEAD_SUBSCRIPTION = "Dead-Letter-Subscription"


def command(chain: int, task: int) -> str:
    """Where the execute command of a task is published."""
    return f"tasks.cmd.{_id(chain)}.{_id(task)}.execute"


def commands_of(chain: int) -> str:
    """All commands of a chain."""
    return f"tasks.cmd.{_id(chain)}.*.execute"


def workers(chain: int) -> str:
    """The durable consumer on COMMANDS through which all workers take the chain's commands."""
    return f"workers-{_id(chain)}"


def chain_of_workers(consumer: str) -> int | None:
    """The chain whose commands this consumer takes; None: it is none of ours."""
    return id_of_token(consumer.removeprefix("workers-")) if consumer.startswith("workers-") else None


def id_of_token(token: str) -> int | None:
    """The id a part of a subject names; None: it names none.

    One spelling counts: a task that also answered to ``007`` would have as many commands outstanding as it has names.
    """
    with contextlib.suppress(ValueError):
        number = int(token)
        if str(number) == token:
            return _id(number)
    return None


def event(document: Document) -> str:
    """Where this version of a task is published."""
    task = document.task
    return f"tasks.evt.{_id(task.chain)}.{_id(task.id)}.{event_code(document)}"


def event_code(document: Document) -> str:
    """What an event is about: the task's state; ``edited``, ``skipped`` or ``deleted`` when no run brought it about.

    So each event on ``done`` and ``error`` is the end of a run, and the stream keeps as many ends as it is told to.
    """
    if document.change in APART:
        return document.change.value
    return document.task.state.code.value.lower()


def events_of(chain: int, task: int) -> str:
    """All events of a task: the filter of its last event and of the fence."""
    return f"tasks.evt.{_id(chain)}.{_id(task)}.*"


def events_of_chain(chain: int, code: str = "*") -> str:
    """All events of a chain's tasks, or those that brought them into one state."""
    return f"tasks.evt.{_id(chain)}.*.{code.lower()}"


def events_of_any_chain(task: int) -> str:
    """All events of the task with this id, whatever its chain."""
    return f"tasks.evt.*.{_id(task)}.*"


def whole_chain(chain: int) -> str:
    """All events of a chain, as its clients on the bus subscribe to them."""
    return f"tasks.evt.{_id(chain)}.>"


def inbox_of(token: str) -> str:
    """Where a client of the bus may receive answers: subjects that begin with the id of its token."""
    return f"_INBOX_{token}.>"


def subscribed(chain: int, tasks: Collection[int], codes: Collection[str]) -> list[str]:
    """The events of these tasks with these codes, as filters that do not overlap; none of either: of all."""
    return [
        f"tasks.evt.{_id(chain)}.{task}.{code}"
        for task in ([str(_id(task)) for task in tasks] or ["*"])
        for code in (list(codes) or ["*"])
    ]


def pulling(consumer: str) -> list[str]:
    """Where a client of the bus publishes to use a consumer on EVENTS: to look at it, to fetch, to acknowledge."""
    return [
        f"$JS.API.CONSUMER.INFO.{EVENTS}.{consumer}",
        f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.{consumer}",
        f"$JS.ACK.{EVENTS}.{consumer}.>",
    ]


def ended_runs_of(chain: int) -> list[str]:
    """The final events of all tasks of a chain."""
    return [f"tasks.evt.{_id(chain)}.*.done", f"tasks.evt.{_id(chain)}.*.error"]


def alarm(chain: int, task: int) -> str:
    """Where the one alarm of a task is published; another one takes its place."""
    return f"tasks.sch.{_id(chain)}.{_id(task)}"


def due(chain: int, task: int) -> str:
    """Where the broker publishes the alarm when its time has come."""
    return f"tasks.due.{_id(chain)}.{_id(task)}"


def log(chain: int, task: int) -> str:
    """Where the log lines of a task's runs are published."""
    return f"tasks.log.{_id(chain)}.{_id(task)}"


def progress(chain: int, task: int) -> str:
    """Where a task's runs report how far they have come; each report takes the place of the one before."""
    return f"{log(chain, task)}{PROGRESS}"


def is_progress(subject: str) -> bool:
    """Whether a message of LOGS is a report and no line."""
    return subject.endswith(PROGRESS)


def audit(chain: int) -> str:
    """Where the calls that were refused in a chain are published, and what else its audit trail has to be told."""
    return f"tasks.aud.{_id(chain)}"


def dead_letter(chain: int, task: int) -> str:
    """Where commands that could not be run end up; 0 for what their subject did not name."""
    return f"tasks.dlq.{int(chain)}.{int(task)}"


def dead_letters_of(chain: int) -> str:
    """All dead letters of a chain."""
    return f"tasks.dlq.{_id(chain)}.>"


def dead_letters_of_task(chain: int, task: int) -> list[str]:
    """All dead letters of a task."""
    return [dead_letter(_id(chain), _id(task)), dead_event(chain, task)]


def dead_event(chain: int, task: int) -> str:
    """Where events end up that a web hook could not be given; apart from the commands."""
    return f"tasks.dlq.{_id(chain)}.{_id(task)}.web_hook"


def service(chain: int, name: str) -> str:
    """Where requests to a service of the chain are published. Raises ValueError."""
    return f"services.{_id(chain)}.{_name(name)}"


def message(chain: int, name: str) -> str:
    """Where messages for the services of the chain are published. Raises ValueError."""
    return f"messages.{_id(chain)}.{_name(name)}"


def reply(name: str) -> str:
    """Where one reply of a service is received; the name is unguessable."""
    return f"replies.{name}"


def api(chain: int | str, token: str, call: str) -> str:
    """Where a client with this token asks for a call of the API; ``*`` for any chain, any token."""
    return f"api.{chain}.{token}.{call}"


def api_of(chain: int, token: str) -> str:
    """All calls that this client may ask for."""
    return api(_id(chain), token, "tasks.*")


def parse_api(subject: str) -> tuple[int, str]:
    """(chain, token) of a request for a call."""
    _, chain, token, *_ = subject.split(".")
    return int(chain), token


def services_of(chain: int) -> str:
    """All requests to services of the chain."""
    return f"services.{_id(chain)}.>"


def messages_of(chain: int) -> str:
    """All messages for services of the chain."""
    return f"messages.{_id(chain)}.>"


def key(name: str) -> str:
    """Where the record of an Idempotency-Key is kept, under a name that is derived from it."""
    if not KEY_NAME.fullmatch(name):
        msg = f"{name!r} is no name of a key"
        raise ValueError(msg)
    return f"tasks.key.{name}"


def action_key(name: str) -> str:
    """The key of an action in its bucket: the name may be any text."""
    return hashlib.sha256(name.encode()).hexdigest()


def parse(subject: str) -> tuple[int, int]:
    """The (chain, task) a subject of ours names. Raises Undecodable."""
    tokens = subject.split(".")
    if len(tokens) < 4 or tokens[0] != "tasks":  # noqa: PLR2004 - tasks.<kind>.<chain>.<task>
        raise Undecodable(f"{subject!r} is no subject of a task")
    chain, task = id_of_token(tokens[2]), id_of_token(tokens[3])
    if chain is None or task is None:
        raise Undecodable(f"{subject!r} does not name a chain and a task by positive integers")
    return chain, task


def _id(number: int) -> int:
    if not 1 <= number <= MAX_ID:
        msg = f"{number} is no id"
        raise ValueError(msg)
    return number


def _name(name: str) -> str:
    if len(name) > LONGEST_SUBJECT_NAME or not re.fullmatch(SUBJECT_NAME, name):
        msg = f"{name[:LONGEST_SUBJECT_NAME]!r} is no name for a part of a subject"
        raise ValueError(msg)
    return name
