"""The AsyncAPI 3.0 document: what clients may exchange with runwire over the bus.

Made of the code that does it: addresses of :mod:`~runwire.messaging.subjects`, payloads of the models, streams as
they are provisioned, headers by the names that writers and readers use. What goes over subjects that no client may use
(logs, alarms, keys) is not in it. The document says it from our side: runwire ``receive``s commands, and ``send``s
events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nats.js.api import DiscardPolicy, RetentionPolicy, StreamConfig

from runwire.domain.access import TOKEN_ID
from runwire.domain.ids import SUBJECT_NAME
from runwire.http import asyncapi_messages as messages
from runwire.http import bus
from runwire.http.asyncapi_messages import ID, JSON
from runwire.http.asyncapi_schemas import Schemas
from runwire.messaging import commands, streams, subjects
from runwire.settings import Settings

DESCRIPTION = """\
What services exchange with runwire over NATS: they ask for calls of the HTTP API, publish commands, see events and dead
letters, answer requests and hear messages. It is told from runwire's side: it *receives* commands and *sends* events.

User is the id of an access token, password its secret, and replies come to the inbox prefix `_INBOX_<id>`. A client
belongs to one chain, and sees nothing of another; what its token lets it do is the same as over HTTP.

Fields and headers that are not described here may be there all the same: they are runwire's own, and may change.
"""
PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "chain": {
        "description": "The chain: a positive integer, as JSON writes it.",
        "examples": ["1764"],
        "x-pattern": ID,
    },
    "task": {"description": "The task: a positive integer, as JSON writes it.", "examples": ["12345"], "x-pattern": ID},
    "code": {"description": "What the event is about.", "enum": [*subjects.EVENT_CODES]},
    "token": {"description": "The id of the client's own access token.", "x-pattern": f"^{TOKEN_ID.pattern}$"},
    "name": {
        "description": "What a task calls it: one or more tokens of letters, digits, `_` and `-`, joined by dots.",
        "examples": ["invoices.render"],
        "x-pattern": f"^{SUBJECT_NAME}$",
    },
}
OR_NONE: Mapping[str, Any] = {
    "description": "The task; 0: the subject of the command names none.",
    "examples": ["12345"],
    "x-pattern": f"^(0|{ID.strip('^$')})$",
}
REFUSALS = {
    str(commands.REFUSED): "The task has a command that is queued or running; or the stream is full.",
    str(commands.TOO_LARGE): "The command is too large.",
}


def build_document(settings: Settings, *, version: str) -> dict[str, Any]:
    """The whole document."""
    known = Schemas()
    kept = {str(config.name): _stream(config) for config in streams.stream_configs(settings)}
    asked, events = messages.commands(known), messages.events(known)
    calls, answers = messages.requests(known), messages.answers(known)
    replies = {**messages.replies(), **answers}
    every = {**asked, **events, **messages.dead_letters(), **messages.services(), **calls, **replies}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "runwire on the bus",
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": JSON,
        "servers": {"bus": _server()},
        "channels": {
            "commands": _channel(
                subjects.command(1, 2), asked,
                "Published here, with JetStream, to have a task run.", kept[subjects.COMMANDS] | {"errors": REFUSALS},
            ),
            "events": _channel(
                subjects.events_of(1, 2), events,
                "What becomes of tasks and runs. All of a chain: `tasks.evt.<chain>.>`.", kept[subjects.EVENTS],
            ),
            "deadLetters": _channel(
                subjects.dead_letter(1, 2), ["DeadLetter"],
                "Commands that could not be run, as they came.", kept[subjects.DEADLETTERS],
                {**PARAMETERS, "task": OR_NONE},
            ),
            "undeliveredEvents": _channel(
                subjects.dead_event(1, 2), ["UndeliveredEvent"],
                "Events that a web hook could not be given.", kept[subjects.DEADLETTERS],
            ),
            "services": _channel(
                subjects.service(1, "name"), ["ServiceRequest"],
                "Requests to a service of the chain, which tasks send with the action `request`. They are not stored.",
            ),
            "messages": _channel(
                subjects.message(1, "name"), ["Message"],
                "Messages for whoever listens, which tasks send with the action `publish`. They are not stored.",
            ),
            **{
                operation.name: _channel(
                    operation.subject.replace("*", "1", 1).replace("*", "token"),
                    [f"{operation.name.capitalize()}Request"],
                    f"The call `{operation.endpoint.method} {operation.endpoint.path}` of the HTTP API.",
                )
                for operation in bus.OPERATIONS
            },
            "replies": {
                "address": None,
                "title": "replies",
                "description": "The reply subject that the request names.",
                "messages": _references("#/components/messages", replies),
            },
        },
        "operations": {
            **{
                operation.name: _operation(
                    "receive", operation.name, [f"{operation.name.capitalize()}Request"],
                    (operation.endpoint.handle.__doc__ or "").splitlines()[0],
                    replies=[f"{operation.name.capitalize()}Reply", "Failure"],
                ) | {"bindings": {"nats": {"queue": bus.QUEUE, "bindingVersion": "0.1.0"}}}
                for operation in bus.OPERATIONS
            },
            "command": _operation(
                "receive", "commands", asked,
                "Run a task. The reply is the broker's: accepted means that the run is stored, and will end.",
                replies=["CommandAccepted", "CommandRefused"],
            ),
            "announce": _operation("send", "events", events, "Tell what has become of a task and its run."),
            "bury": _operation("send", "deadLetters", ["DeadLetter"], "Put a command aside that cannot be run."),
            "giveUp": _operation(
                "send", "undeliveredEvents", ["UndeliveredEvent"], "Put an event aside that no receiver took."
            ),
            "request": _operation(
                "send", "services", ["ServiceRequest"],
                "Ask a service. Its one reply becomes the result of the run, or says why there is none.",
                replies=["ServiceReply", "ServiceFailure"],
            ),
            "publish": _operation("send", "messages", ["Message"], "Tell the services of the chain something."),
        },
        "components": {
            "schemas": dict(sorted(known.found.items())),
            "messages": every,
            "securitySchemes": {
                "accessToken": {
                    "type": "userPassword",
                    "description": "The id of an access token (`ID.CHAIN` for one of several chains), and its secret.",
                }
            },
        },
    }  # fmt: skip


# --- what goes where -----------------------------------------------------------------------------------------


def _server() -> dict[str, Any]:
    return {
        "host": "{host}:{port}",
        "protocol": "nats",
        "description": "The broker. `runwire up` writes the address of its own to `data/bus.url`.",
        "variables": {
            "host": {"default": "localhost", "description": "Where the broker is."},
            "port": {"default": "4222", "description": "Its port."},
        },
        "security": [{"$ref": "#/components/securitySchemes/accessToken"}],
    }


def _channel(
    example: str,
    names: Iterable[str],
    text: str,
    stream: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] = PARAMETERS,
) -> dict[str, Any]:
    """A channel by one of its subjects, in which 1 is the chain, 2 the task, and ``name`` a name."""
    parts = {"1": "chain", "2": "task", "*": "code", "name": "name", "token": "token"}
    tokens = [parts.get(token, token) for token in example.split(".")]
    named = [token for token in tokens if token in PARAMETERS]
    channel = {
        "address": ".".join(f"{{{token}}}" if token in PARAMETERS else token for token in tokens),
        "description": text,
        "servers": [{"$ref": "#/servers/bus"}],
        "parameters": {name: dict(parameters[name]) for name in named},
        "messages": _references("#/components/messages", names),
    }
    return channel if stream is None else {**channel, "x-jetstream": dict(stream)}


def _operation(
    action: str, channel: str, names: Iterable[str], text: str, *, replies: Iterable[str] = ()
) -> dict[str, Any]:
    operation = {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": text,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in names],
    }
    reply = {
        "channel": {"$ref": "#/channels/replies"},
        "messages": [{"$ref": f"#/channels/replies/messages/{name}"} for name in replies],
    }
    return {**operation, "reply": reply} if reply["messages"] else operation


def _references(where: str, names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"{where}/{name}"} for name in names}


def _stream(config: StreamConfig) -> dict[str, Any]:
    """How a stream keeps what is published there, when it is created; an operator may change that."""
    facts = {
        "stream": config.name,
        "subjects": config.subjects,
        "retention": (config.retention or RetentionPolicy.LIMITS).value,
        "discard": (config.discard or DiscardPolicy.OLD).value,
        "max_msgs_per_subject": config.max_msgs_per_subject,
        "max_msg_size": config.max_msg_size,
        "max_age_seconds": config.max_age,
        "duplicate_window_seconds": config.duplicate_window,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}
