"""The datasets that every worker has: what the streams hold of the chain of the task that asks, and of no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, JsonValue

from runwire.app import App, Context
from runwire.datasets import Dataset
from runwire.domain.access import AccessLevel
from runwire.domain.task import Task, whole_seconds
from runwire.messaging import events, trail
from runwire.messaging.broker import Bus


class TaskRow(BaseModel):
    """A task as it stands."""

    id: int
    chain: int
    desc: str
    code: str
    last_run_date: datetime | None
    last_modified: datetime
    created_date: datetime
    action: str
    target: dict[str, JsonValue]
    trigger: dict[str, JsonValue]
    timeout: float
    deadline: float | None
    retry: dict[str, Any] | None
    debug: str | None
    version: int
    result: dict[str, JsonValue] | None


class RunRow(BaseModel):
    """A run that has ended."""

    id: str
    task: int
    chain: int
    code: str
    attempt: int
    source: str
    accepted: datetime
    started: datetime | None
    finished: datetime | None
    result: dict[str, JsonValue] | None
    error_code: str | None
    error_message: str | None


class TrailRow(BaseModel):
    """Something that was done, or refused: as in ``GET /audit``."""

    date: datetime
    chain: int
    by: str
    action: str
    subject: str
    detail: dict[str, Any]


def chain_datasets(bus: Bus) -> dict[str, Dataset]:
    """The datasets ``tasks``, ``runs`` and ``audit``, by their keys."""
    app = App()

    @app.dataset("tasks")
    async def tasks(ctx: Context) -> AsyncIterator[TaskRow]:
        """The chain's tasks as they stand, by id."""
        async with aclosing(events.tasks_of(bus, ctx.chain)) as documents:
            async for document in documents:
                yield _task_row(document.task)

    @app.dataset("runs")
    async def runs(ctx: Context) -> AsyncIterator[RunRow]:
        """The chain's runs that have ended, oldest first."""
        async with aclosing(events.ended_runs(bus, ctx.chain)) as documents:
            async for document in documents:
                if document.run is not None:
                    row = document.run.model_dump()
                    error = row.pop("error") or {}
                    yield RunRow(**row, error_code=error.get("code"), error_message=error.get("message"))

    @app.dataset("audit")
    async def audit(ctx: Context) -> AsyncIterator[TrailRow]:
        """The chain's audit trail, oldest first. Its file is for managers."""
        async with aclosing(trail.read(bus, ctx.chain, now=datetime.now(UTC))) as rows:
            async for row in rows:
                yield TrailRow(
                    date=whole_seconds(row.date),
                    chain=row.chain,
                    by=row.by,
                    action=row.action,
                    subject=row.subject,
                    detail=dict(row.detail),
                )

    app.datasets["audit"] = replace(app.datasets["audit"], needs=AccessLevel.MANAGER)
    return app.datasets


def _task_row(task: Task) -> TaskRow:
    fields = task.model_dump()
    return TaskRow(**fields.pop("state"), **fields, action=task.target.action)
