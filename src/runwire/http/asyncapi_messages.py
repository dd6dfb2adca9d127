"""The messages of the AsyncAPI document: the headers and the payload of each, and an example."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from runwire.domain.lifecycle import Document
from runwire.domain.run import RUN_ID
from runwire.http import asyncapi_schemas as schemas
from runwire.http import bus
from runwire.http.asyncapi_schemas import Schemas
from runwire.http.endpoint import TASK_ID, Endpoint
from runwire.http.schemas import Problem
from runwire.messaging import cloudevents, codec, deadletters, subjects

ID = "^[1-9][0-9]{0,15}$"
JSON, CLOUD_EVENT = "application/json", "application/cloudevents+json"
OBJECT: Mapping[str, Any] = {"type": "object"}
DEAD_REASONS = ("undecodable", "no_such_task", "task_deleted")
EVENT_TEXTS = {
    "ready": "A task was created.",
    "inprogress": "A run began, goes on with another attempt, waits for it, or was handed back by a worker that stops.",
    "done": "A run ended well; nothing else is published here.",
    "error": "A run ended as ERROR; nothing else is published here.",
    "edited": "A task got another definition.",
    "skipped": "Ticks of the schedule that were not run; `skipped` says which, and why.",
    "deleted": "A task was deleted: its last event.",
}
EVENT_HEADERS = ("ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "ce-datacontenttype")
TRACE: Mapping[str, Any] = {
    subjects.TRACE_PARENT: {"type": "string", "description": "The place of the run in a trace (W3C Trace Context)."},
    subjects.TRACE_STATE: {"type": "string", "description": "What belongs to it."},
}


def commands(known: Schemas) -> dict[str, Any]:
    """Commands come as they are, or as a CloudEvent in either mode (:mod:`~runwire.messaging.cloudevents`)."""
    body = known.add(codec.CommandBody, "validation")
    attributes = [f"ce-{name}" for name in cloudevents.REQUIRED]
    ours = {
        subjects.MSG_ID: _text("By it the broker knows a message that is repeated within two minutes."),
        subjects.RUN_ID: _text("The run id; the body may say the same.", pattern=f"^{RUN_ID.pattern}$"),
        **TRACE,
    }
    binary = {name: _text("An attribute of the CloudEvent, if it is one in binary mode.") for name in attributes}
    together = {name: [other for other in attributes if other != name] for name in attributes}
    kind = {
        "Content-Type": {"not": {"pattern": f"^{cloudevents.FAMILY}"}, "description": "Anything but a CloudEvent's."}
    }
    event = {
        "type": "object",
        "required": [*cloudevents.REQUIRED],
        "properties": {
            "specversion": {"type": "string", "const": "1.0"},
            **{name: {"type": "string", "minLength": 1} for name in cloudevents.REQUIRED if name != "specversion"},
            "data": {"anyOf": [body, {"type": "null"}]},
        },
    }
    example = {"reason": "the nightly one failed"}
    return {
        "Command": _message(
            "Run the task that the subject names. No payload counts as `{}`.",
            {**_headers({**kind, **ours, **binary}), "dependencies": together},
            body,
            ({subjects.MSG_ID: "order-17"}, example),
        ),
        "CommandEvent": {
            **_message(
                "The same, as a CloudEvent in structured mode.",
                _headers({"Content-Type": _text("How it is told.", pattern=f"^{re.escape(CLOUD_EVENT)}"), **ours},
                         ["Content-Type"]),
                event,
                (
                    {"Content-Type": CLOUD_EVENT},
                    {"specversion": "1.0", "id": "17", "source": "/orders", "type": "order.paid", "data": example},
                ),
            ),
            "contentType": CLOUD_EVENT,
        },
    }  # fmt: skip


def events(known: Schemas) -> dict[str, Any]:
    """One message for each code: a CloudEvent in binary mode."""
    document = known.add(Document)
    found = {}
    for code in subjects.EVENT_CODES:
        example = schemas.events()[code]
        if code in {change.value for change in subjects.APART}:
            which: dict[str, Any] = {"properties": {"change": {"const": code}}}
        else:
            state = {"properties": {"state": {"properties": {"code": {"const": code.upper()}}}}}
            which = {"properties": {"task": state}}
        found[f"Task{code.capitalize()}"] = {
            **_message(
                EVENT_TEXTS[code],
                _headers(_event_headers(code), EVENT_HEADERS),
                {"allOf": [document, which]},
                (schemas.headers_of(example), schemas.payload_of(example)),
            ),
            "correlationId": {
                "location": "$message.header#/ce-subject",
                "description": "The run: what its command, its events and its requests have in common.",
            },
        }
    return found


def _event_headers(code: str) -> dict[str, Any]:
    return {
        "ce-specversion": {"type": "string", "const": "1.0"},
        subjects.EVENT_ID: _text("Of the event; different for each."),
        "ce-source": _text("The task.", pattern="^/chains/[1-9][0-9]*/tasks/[1-9][0-9]*$"),
        "ce-type": {"type": "string", "const": codec.event_type(code)},
        "ce-time": _text("When it happened.", format="date-time"),
        "ce-datacontenttype": {"type": "string", "const": JSON},
        "ce-subject": _text("The latest run of the task; absent before the first.", pattern=f"^{RUN_ID.pattern}$"),
        **TRACE,
        **{f"ce-{name}": {**schema, "description": "The same, as an attribute."} for name, schema in TRACE.items()},
    }


def dead_letters() -> dict[str, Any]:
    """What becomes of a command that cannot be run, and of an event that a web hook cannot be given."""
    return {"DeadLetter": _dead_command(), "UndeliveredEvent": _dead_event()}


def _dead_event() -> dict[str, Any]:
    example = {
        subjects.DEAD_REASON: deadletters.WEB_HOOK,
        subjects.DEAD_DETAIL: "The receiver answered 500, and did 35 times.",
        subjects.DEAD_SUBJECT: "tasks.evt.1764.12345.done",
        subjects.DEAD_SEQUENCE: "4711",
        subjects.DEAD_SUBSCRIPTION: "hook-1764-5f2c",
        subjects.MSG_ID: "dead-hook-1764-5f2c-4711",
    }
    headers = {
        subjects.DEAD_REASON: {"type": "string", "const": deadletters.WEB_HOOK},
        subjects.DEAD_DETAIL: _text("What went wrong with the last try."),
        subjects.DEAD_SUBJECT: _text("Where the event was published."),
        subjects.DEAD_SEQUENCE: _text("Its position in EVENTS.", pattern="^[0-9]+$"),
        subjects.DEAD_SUBSCRIPTION: _text("The web hook."),
        subjects.MSG_ID: _text("`dead-`, the web hook and that position."),
    }
    kept = {name: _text("The event's own.") for name in sorted(deadletters.KEPT)}
    attributes = {"patternProperties": {f"^{cloudevents.PREFIX}": _text("The event's own.")}}
    return _message(
        "An event that a web hook could not be given, as it was.",
        _headers({**headers, **kept}, headers) | attributes, OBJECT, (example, {"task": {"id": 12345}}),
    )  # fmt: skip


def _dead_command() -> dict[str, Any]:
    example = {
        subjects.RUN_ID: "order-17",
        subjects.DEAD_REASON: "no_such_task",
        subjects.DEAD_DETAIL: "There is no task 12345 in chain 1764.",
        subjects.DEAD_SUBJECT: "tasks.cmd.1764.12345.execute",
        subjects.DEAD_SEQUENCE: "17",
        subjects.MSG_ID: "dead-17",
    }
    headers = {
        subjects.RUN_ID: _text("The run that it would have been.", pattern=f"^{RUN_ID.pattern}$"),
        subjects.DEAD_REASON: _text("Why: a stable code.", enum=[*DEAD_REASONS]),
        subjects.DEAD_DETAIL: _text("Why, in a sentence."),
        subjects.DEAD_SUBJECT: _text("Where the command was published."),
        subjects.DEAD_SEQUENCE: _text("Its position in COMMANDS.", pattern="^[0-9]+$"),
        subjects.MSG_ID: _text("`dead-` and that position."),
    }
    kept = {
        **{name: _text("The command's own.") for name in sorted(deadletters.KEPT)},
        subjects.DEAD_RUN_ID: _text("The `Run-Id` of the command, if it had one."),
        subjects.DEAD_MSG_ID: _text("The `Nats-Msg-Id` of the command, if it had one."),
    }
    attributes = {"patternProperties": {f"^{cloudevents.PREFIX}": _text("The command's own.")}}
    text = "A command that could not be run; its payload is as it came, whatever that is."
    return _message(text, _headers({**headers, **kept}, headers) | attributes, {}, (example, {}))


def services() -> dict[str, Any]:
    """What tasks send to the services of their chain."""
    headers = {
        subjects.RUN_ID: _text(
            "The run; the same for all its attempts: an idempotency key.", pattern=f"^{RUN_ID.pattern}$"
        ),
        subjects.RUN_ATTEMPT: _text("1, and higher with each further attempt.", pattern="^[1-9][0-9]*$"),
        subjects.TASK_ID: _text("The task.", pattern=ID),
        subjects.CHAIN_ID: _text("The chain.", pattern=ID),
    }
    deadline = {subjects.RUN_DEADLINE: _text("When nobody waits for the reply any more.", format="date-time")}
    example = {
        subjects.RUN_ID: schemas.RUN, subjects.RUN_ATTEMPT: "1", subjects.TASK_ID: "12345", subjects.CHAIN_ID: "1764",
    }  # fmt: skip
    until = {subjects.RUN_DEADLINE: "2026-05-26T14:40:00.250Z"}
    return {
        "ServiceRequest": _message(
            "The `payload` of the task, as it is.",
            _headers({**headers, **deadline, **TRACE}, [*headers, *deadline]),
            OBJECT,
            ({**example, **until}, {"invoice": 17}),
        ),
        "Message": _message(
            "The `payload` of the task, as it is.",
            _headers({**headers, **TRACE}, headers),
            OBJECT,
            (example, {"invoice": 17}),
        ),
    }


def replies() -> dict[str, Any]:
    """What the broker replies to commands, and what services reply to requests."""
    fault = {
        subjects.SERVICE_ERROR: _text("What went wrong, in a sentence."),
        subjects.SERVICE_ERROR_CODE: _text("From 400 to 499, but for 408 and 429: not to be tried again."),
    }
    about = {
        "type": "object",
        "properties": {
            "code": _text("The error code of the run, instead of `service_error`.", pattern="^[a-z0-9_]{1,64}$"),
            "message": {"type": ["string", "null"], "description": "What went wrong, instead of the header."},
            "retry_after": {"type": ["number", "null"], "minimum": 0, "description": "Seconds before the next try."},
        },
    }
    return {
        "CommandAccepted": _message(
            "The broker has stored the command: the run will end.",
            None,
            {
                "type": "object",
                "required": ["stream", "seq"],
                "properties": {
                    "stream": {"type": "string", "const": subjects.COMMANDS},
                    "seq": {"type": "integer", "description": "The position in COMMANDS."},
                    "duplicate": {"type": "boolean", "description": "It was there already, by its `Nats-Msg-Id`."},
                },
            },
            (None, {"stream": subjects.COMMANDS, "seq": 17}),
        ),
        "CommandRefused": _message(
            "The broker has not stored it; `err_code` says why.",
            None,
            {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["code", "err_code"],
                        "properties": {
                            "code": {"type": "integer", "description": "As HTTP numbers them."},
                            "err_code": {"type": "integer", "description": "The broker's own number."},
                            "description": {"type": "string"},
                        },
                    }
                },
            },
            (None, {"error": {"code": 503, "err_code": 10077, "description": "maximum messages per subject exceeded"}}),
        ),
        "ServiceReply": _message(
            "The result; no payload: there is none.",
            {"type": "object", "not": {"anyOf": [{"required": [name]} for name in fault]}},
            OBJECT,
            (None, {"printed": True}),
        ),
        "ServiceFailure": _message(
            "The service says that it failed (NATS ADR-32). No payload counts as `{}`.",
            {**_headers(fault), "anyOf": [{"required": [name]} for name in fault]},
            about,
            (
                {subjects.SERVICE_ERROR: "printer jammed", subjects.SERVICE_ERROR_CODE: "503"},
                {"code": "printer_jammed", "message": "Tray 2 is open.", "retry_after": 30},
            ),
        ),
    }  # fmt: skip


def requests(known: Schemas) -> dict[str, Any]:
    """What the calls of the API are asked for with."""
    found = {}
    for operation in bus.OPERATIONS:
        endpoint = operation.endpoint
        headers = {
            parameter["name"]: _text(parameter["description"])
            for parameter in endpoint.parameters
            if parameter["in"] == "header" and parameter["name"].lower() in bus.REQUEST_HEADERS
        }
        payload, example = _asked(known, endpoint)
        text = f"The parameters of `{endpoint.method} {endpoint.path}`, in the path and behind it, in one object."
        if endpoint.body is not None:
            text = f"The body of `{endpoint.method} {endpoint.path}`."
        found[f"{operation.name.capitalize()}Request"] = _message(text, _headers(headers), payload, (None, example))
    return found


def _asked(known: Schemas, endpoint: Endpoint) -> tuple[dict[str, Any], Any]:
    """(schema, example) of the payload of a request."""
    if endpoint.body is not None:
        return known.add(endpoint.body, "validation"), known.found[endpoint.body.__name__]["examples"][0]
    fields, needed = {}, []
    if "{id}" in endpoint.path:
        fields, needed = {"id": {**TASK_ID["schema"], "description": TASK_ID["description"]}}, ["id"]
    if endpoint.query is not None:
        known.add(endpoint.query, "validation")
        fields |= known.found.pop(endpoint.query.__name__)["properties"]
    return _headers(fields, needed) | {"additionalProperties": False}, {"id": 12345} if needed else {"status": "READY"}


def answers(known: Schemas) -> dict[str, Any]:
    """What the calls of the API are answered with."""
    found = {}
    for operation in bus.OPERATIONS:
        answers = operation.endpoint.answers
        model = next(iter(answers.values())).model
        (shown,) = get_args(model) or (model,)
        schema: dict[str, Any] = known.add(shown)
        example = known.found[shown.__name__]["examples"][0]
        if shown is not model:
            schema, example = {"type": "array", "items": schema}, [example]
        told = {
            name: _text(about["description"]) for answer in answers.values() for name, about in answer.headers.items()
        }
        statuses = [str(status) for status in answers]
        found[f"{operation.name.capitalize()}Reply"] = _message(
            " ".join(f"{status}: {answer.text}" for status, answer in answers.items()),
            _headers({bus.STATUS: _text("As over HTTP.", enum=statuses), **told}, [bus.STATUS]),
            schema,
            ({bus.STATUS: statuses[0]}, example),
        )
    failed = {
        bus.STATUS: _text("As over HTTP.", pattern="^[45][0-9][0-9]$"),
        subjects.SERVICE_ERROR_CODE: _text("The same."),
        subjects.SERVICE_ERROR: _text("What went wrong, in a sentence."),
    }
    problem = {"type": "/problems/task-not-found", "title": "No such task", "status": 404, "code": "task_not_found",
               "detail": "There is no task 7.", "instance": "/tasks/7"}  # fmt: skip
    headers = {bus.STATUS: "404", subjects.SERVICE_ERROR_CODE: "404", subjects.SERVICE_ERROR: "There is no task 7."}
    found["Failure"] = {
        **_message(
            "The call was refused or could not be carried out.",
            _headers(
                {**failed, "Retry-After": _text("Seconds to wait before the next try."), "Run-Id": _text("The run.")},
                failed,
            ),
            known.add(Problem),
            (headers, problem),
        ),
        "contentType": "application/problem+json",
    }
    return found


def _message(
    text: str, headers: Mapping[str, Any] | None, payload: Mapping[str, Any], example: tuple[Any, Any]
) -> dict[str, Any]:
    """A message; ``example``: (headers or None, payload)."""
    shown = {name: part for name, part in zip(("headers", "payload"), example, strict=True) if part is not None}
    message = {"summary": text, "contentType": JSON, "payload": dict(payload), "examples": [shown]}
    return message if headers is None else {**message, "headers": dict(headers)}


def _headers(properties: Mapping[str, Any], required: Iterable[str] = ()) -> dict[str, Any]:
    needed = {"required": [*required]}
    return {"type": "object", "properties": dict(properties), **(needed if needed["required"] else {})}


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", **more, "description": description}
