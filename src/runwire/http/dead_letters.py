"""``/dead_letters``: commands that could not be run; look at them, ask for the run again, forget them.

Events that a web hook did not take are among them, and are no commands: there is nothing to replay.

A replay is a command of its own: another run of the same task. Of the dead letter it has the reason, if that could be
read; what was wrong with the rest is not repeated.
"""

from __future__ import annotations

import asyncio
import base64
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from runwire.domain.access import AccessLevel, Principal
from runwire.domain.errors import (
    DeadLetterNotFound,
    Draining,
    Forbidden,
    MalformedId,
    NotAccepted,
    NotACommand,
    TaskBusy,
    TaskNotFound,
    TooManyOutstanding,
)
from runwire.domain.ids import uuid7
from runwire.domain.lifecycle import Document
from runwire.domain.task import MAX_ID, whole_seconds
from runwire.http.endpoint import Answer, Endpoint, path_parameter
from runwire.http.execute import RETRY_AFTER, RUN_HEADERS, not_yet, require_open
from runwire.http.lookup import find_task, id_number, readable_chains
from runwire.http.paging import PAGING, page_headers
from runwire.http.query import Page, parse_query
from runwire.http.schemas import ExecuteView, instant, json_bytes
from runwire.http.services import Services, services
from runwire.http.tracing import TRACE, trace_of
from runwire.http.waiting import PUBLISH_PATIENCE, Call
from runwire.messaging import audit, codec, deadletters
from runwire.messaging.deadletters import DeadLetter

PATH = "/dead_letters"
SHOWN_IN_LISTS = 1000
"""Bytes of a body that a list shows."""
EXAMPLE: dict[str, Any] = {
    "id": 17,
    "chain": 1764,
    "task": 12345,
    "run": "order-17",
    "reason": "undecodable",
    "subscription": None,
    "detail": "The body of the command does not fit: run: String should match pattern '^[A-Za-z0-9_-]{1,64}$'.",
    "date": "2026-05-26T14:35:00Z",
    "subject": "tasks.cmd.1764.12345.execute",
    "headers": {"nats-msg-id": "order-17", "content-type": "application/json"},
    "body": '{"run": "order 17"}',
    "body_base64": None,
    "bytes": 19,
}


class DeadLettersQuery(Page):
    """Query parameters of the list."""

    limit: Annotated[int, Field(ge=1, le=100, description="How many, at most.")] = 50
    chain: Annotated[int | None, Field(ge=1, le=MAX_ID, description="Only those of this chain.")] = None
    task: Annotated[int | None, Field(ge=1, le=MAX_ID, description="Only those of the task with this id.")] = None


class DeadLetterView(BaseModel):
    """A command that could not be run, or an event that a web hook did not take."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    id: int
    chain: int
    task: Annotated[int | None, Field(description="null: its subject named none.")]
    run: Annotated[str, Field(description="The run it would have been; empty for an event.")]
    reason: Annotated[str, Field(description="`undecodable`, `no_such_task`, `task_deleted`; `web_hook`.")]
    subscription: Annotated[
        str | None, Field(description="The web hook that did not take this event; null: it is a command.")
    ]
    detail: Annotated[str, Field(description="More about the reason.")]
    date: Annotated[datetime, Field(description="When it was put aside.")]
    subject: Annotated[str, Field(description="Where it was published.")]
    headers: Annotated[dict[str, str], Field(description="Of its headers those that mean something in a command.")]
    body: Annotated[str | None, Field(description="As text, when it is UTF-8. A list shows the beginning.")]
    body_base64: Annotated[str | None, Field(description="When it is not; in Base64.")]
    bytes: Annotated[int, Field(description="How many the body has.")]


async def list_dead_letters(request: Request) -> Response:
    """The commands of the token's chains that could not be run, newest first. Needs viewer."""
    parts = services(request)
    query = parse_query(request, DeadLettersQuery)
    principal = await parts.authenticate(request)
    chains = readable_chains(principal, query.chain)
    found, total = await deadletters.page(parts.bus, chains, task=query.task, limit=query.limit, offset=query.offset)
    headers = page_headers(request, limit=query.limit, offset=query.offset, total=total)
    page = [dead_letter_view(letter, most=SHOWN_IN_LISTS) for letter in found]
    return Response(json_bytes(page), 200, headers, "application/json")


async def get_dead_letter(request: Request) -> Response:
    """A command that could not be run, with its whole body. Needs viewer."""
    parts = services(request)
    number = _number_in(request)
    letter = await _find(parts, await parts.authenticate(request), number, AccessLevel.VIEWER)
    return Response(json_bytes(dead_letter_view(letter)), 200, {"Cache-Control": "no-store"}, "application/json")


async def replay_dead_letter(request: Request) -> Response:
    """Ask for a run of the task again, under a new run id; the dead letter stays. Needs operator."""
    parts = services(request)
    number = _number_in(request)
    principal = await parts.authenticate(request)
    letter = await _find(parts, principal, number, AccessLevel.OPERATOR, counts=False)  # it counts with its task
    if letter.subscription:
        raise NotACommand("This is an event that a web hook did not take; there is no run to ask for.")
    document = await _task_of(parts, principal, letter)
    require_open(parts)
    run, task = uuid7(), document.task
    call = Call(
        request=request,
        parts=parts,
        document=document,
        deadline=asyncio.get_running_loop().time() + PUBLISH_PATIENCE,
        trace=trace_of(request),
        reason=codec.reason_of_command(letter.headers, letter.body) or f"replay of dead letter {letter.id}",
    )
    await call.publish(run)
    await parts.refusals.record(_deed(letter, principal, "replayed", run=run, task=task.id))
    headers = {"Run-Id": run, "Location": f"/tasks/{task.id}/runs/{run}", "Cache-Control": "no-store"}
    return await not_yet(parts, document, run, headers)


async def delete_dead_letter(request: Request) -> Response:
    """Forget a command that could not be run. Needs manager."""
    parts = services(request)
    number = _number_in(request)
    principal = await parts.authenticate(request)
    letter = await _find(parts, principal, number, AccessLevel.MANAGER)
    if parts.draining:
        raise Draining("This adapter is stopping; try again.")
    done = _deed(letter, principal, "deleted", reason=letter.reason, bytes=len(letter.body))
    await audit.record(parts.bus, done, message_id=f"dead-letter-deleted-{letter.id}")  # first: nothing goes untold
    await deadletters.delete(parts.bus, letter)
    return Response(None, 204, {"Cache-Control": "no-store"})


def dead_letter_view(letter: DeadLetter, *, most: int | None = None) -> dict[str, Any]:
    """The dead letter as the API shows it; ``most``: bytes of the body (None: all of it)."""
    shown = letter.body[:most]
    try:
        letter.body.decode()
    except UnicodeDecodeError:
        body = {"body": None, "body_base64": base64.b64encode(shown).decode()}
    else:
        body = {"body": shown.decode(errors="ignore"), "body_base64": None}  # half a letter at the cut is left out
    return {
        "id": letter.id,
        "chain": letter.chain,
        "task": letter.task or None,
        "run": letter.run,
        "reason": letter.reason,
        "subscription": letter.subscription or None,
        "detail": letter.detail,
        "date": instant(whole_seconds(letter.date)),
        "subject": letter.subject,
        "headers": dict(letter.headers),
        **body,
        "bytes": len(letter.body),
    }


def _number_in(request: Request) -> int:
    """The id in the path. Raises MalformedId."""
    number = id_number(request.path_params["id"])
    if not number:
        raise MalformedId("The id of a dead letter is a positive integer.")
    return number


async def _find(
    parts: Services, principal: Principal, number: int, level: AccessLevel, *, counts: bool = True
) -> DeadLetter:
    """The dead letter, if the principal may do this with it. Raises DeadLetterNotFound, Forbidden or RateLimited."""
    letter = await deadletters.get(parts.bus, number)
    if letter is None or not principal.reaches(letter.chain):
        raise DeadLetterNotFound(f"There is no dead letter {number}.", chain=letter.chain if letter else None)
    principal.require(level, letter.chain)
    if parts.rates is not None and counts:
        await parts.rates.count_task(principal, letter.chain)
    return letter


async def _task_of(parts: Services, principal: Principal, letter: DeadLetter) -> Document:
    """The task that the command was for, as it is now. Raises TaskNotFound."""
    if letter.task:
        document = await find_task(parts, principal, letter.task, AccessLevel.OPERATOR)
        if document.task.chain == letter.chain:
            return document
    raise TaskNotFound(f"There is no task {letter.task} in chain {letter.chain}.")


def _deed(letter: DeadLetter, principal: Principal, what: str, **detail: Any) -> audit.Deed:
    return audit.deed(
        letter.chain, by=principal.token, action=f"dead_letter.{what}", subject=f"{PATH}/{letter.id}", **detail
    )


DEAD_LETTER = path_parameter(
    "id", "Id of the dead letter.", {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_ID}, 17
)

ENDPOINTS = (
    Endpoint(
        method="GET", path=PATH, handle=list_dead_letters, tag="dead letters", query=DeadLettersQuery,
        answers={200: Answer(text="A page of dead letters.", model=list[DeadLetterView], headers=PAGING)},
        problems=(Forbidden,),
    ),
    Endpoint(
        method="GET", path=f"{PATH}/{{id}}", handle=get_dead_letter, tag="dead letters", parameters=(DEAD_LETTER,),
        answers={200: Answer(text="The dead letter.", model=DeadLetterView)},
        problems=(Forbidden, DeadLetterNotFound),
    ),
    Endpoint(
        method="POST", path=f"{PATH}/{{id}}/replay", handle=replay_dead_letter, tag="dead letters",
        parameters=(DEAD_LETTER, *TRACE),
        answers={202: Answer(text="The run is accepted.", model=ExecuteView, headers=RUN_HEADERS | RETRY_AFTER)},
        problems=(
            Forbidden, DeadLetterNotFound, NotACommand, TaskNotFound, TaskBusy, TooManyOutstanding, NotAccepted,
            Draining,
        ),
    ),
    Endpoint(
        method="DELETE", path=f"{PATH}/{{id}}", handle=delete_dead_letter, tag="dead letters",
        parameters=(DEAD_LETTER,),
        answers={204: Answer(text="Forgotten.")},
        problems=(Forbidden, DeadLetterNotFound, Draining),
    ),
)  # fmt: skip
