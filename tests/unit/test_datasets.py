"""Datasets as an App takes them, and plain generators that run in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, computed_field

import runwire
from runwire.app import App
from runwire.blocking import AHEAD, BATCH, iterated_in_thread
from runwire.datasets import columns_of
from runwire.domain.errors import SetupError
from tests.support import eventually


class Row(BaseModel):
    id: int
    name: str


class Filter(BaseModel):
    at_least: int = 0


class Bad(BaseModel):
    export_month: str


class Empty(BaseModel):
    pass


class Twice(BaseModel):
    a: int
    b: int = Field(serialization_alias="a")


class Listed(RootModel[list[int]]):
    pass


async def good(ctx: runwire.Context) -> AsyncIterator[Row]:
    """The rows."""
    yield Row(id=1, name="a")


def test_it_is_known_by_its_name_in_whatever_case_and_told_by_its_docstring() -> None:
    app = App()
    assert app.dataset("Wallet")(good) is good
    found = app.datasets["wallet"]
    assert (found.name, found.columns, found.fields, found.description) == ("Wallet", ("id", "name"), (), "The rows.")
    with pytest.raises(SetupError, match="dataset 'wallet' is registered twice"):
        app.dataset("wallet")(good)


def test_an_included_app_brings_its_datasets_along_and_they_win() -> None:
    one, two = App(), App()
    one.dataset("a", description="one")(good)
    two.dataset("A", description="two")(good)
    two.dataset("b")(good)
    one.include(two)
    assert {name: found.description for name, found in one.datasets.items()} == {"a": "two", "b": "The rows."}


def test_columns_are_what_the_model_calls_its_fields() -> None:
    class Named(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        plain: int
        renamed: int = Field(serialization_alias="With a blank")
        both: int = Field(alias="Both")
        hidden: int = Field(exclude=True)

        @computed_field
        @property
        def total(self) -> int:
            return self.plain + self.renamed

    assert columns_of(Named) == ("plain", "With a blank", "Both", "total")


async def no_arguments() -> AsyncIterator[Row]:
    yield Row(id=1, name="")


async def no_annotation(ctx: runwire.Context):
    yield Row(id=1, name="")


async def no_model(ctx: runwire.Context) -> AsyncIterator[dict[str, Any]]:
    yield {}


async def no_fields(ctx: runwire.Context) -> AsyncIterator[Empty]:
    yield Empty()


async def no_object(ctx: runwire.Context) -> AsyncIterator[Listed]:
    yield Listed([1])


async def two_of_a_name(ctx: runwire.Context) -> AsyncIterator[Twice]:
    yield Twice(a=1, b=2)


async def no_generator(ctx: runwire.Context) -> AsyncIterator[Row]:
    raise NotImplementedError


async def wrong_kind(ctx: runwire.Context) -> Iterator[Row]:
    yield Row(id=1, name="")


async def its_prefix_is_taken(params: Bad, ctx: runwire.Context) -> AsyncIterator[Row]:
    yield Row(id=1, name="")


async def no_such_name(params: Missing, ctx: runwire.Context) -> AsyncIterator[Row]:  # noqa: F821 - the mistake
    yield Row(id=1, name="")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (no_arguments, "must take (params, ctx), or (ctx) alone"),
        (no_annotation, "must say what its rows are"),
        (no_model, "must say what its rows are"),
        (no_object, "must say what its rows are"),
        (wrong_kind, "must say what its rows are"),
        (no_fields, "Empty has no fields"),
        (two_of_a_name, "Twice has two columns of the same name"),
        (no_generator, "must be a generator"),
        (Row, "must be a generator"),
        (its_prefix_is_taken, "must not begin with export_"),
        (no_such_name, "names at module level"),
    ],
)
def test_what_is_no_dataset_is_refused_in_one_line(function: Any, reason: str) -> None:
    with pytest.raises(SetupError) as refused:
        App().dataset("odd")(function)
    assert reason in str(refused.value)
    assert str(refused.value).startswith("dataset 'odd'")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["", "x" * 201, "\ud800"])
def test_a_name_that_no_task_could_write_is_refused(name: str) -> None:
    with pytest.raises(SetupError):
        App().dataset(name)(good)


async def generator(ctx: runwire.Context) -> AsyncGenerator[Row, None]:
    yield Row(id=1, name="")


def plain(ctx: runwire.Context) -> Iterator[Row]:
    yield Row(id=1, name="")


def plain_iterable(ctx: runwire.Context) -> Iterable[Row]:
    yield Row(id=1, name="")


def plain_generator(params: Filter, ctx: runwire.Context) -> Generator[Row, None, None]:
    yield Row(id=params.at_least, name="")


@pytest.mark.parametrize("function", [good, generator, plain, plain_iterable, plain_generator])
async def test_every_way_to_write_one_gives_its_rows(function: Callable[..., Any]) -> None:
    app = App()
    app.dataset("a")(function)
    async with aclosing(app.datasets["a"].rows(Filter(), None)) as rows:
        assert [type(row) async for row in rows] == [Row]


# --- plain generators ------------------------------------------------------------------------------------


async def test_the_items_of_a_plain_generator_come_in_order_from_one_thread() -> None:
    threads = set()

    def count(limit: int) -> Iterator[int]:
        for number in range(limit):
            threads.add(threading.current_thread())
            yield number

    assert [number async for number in iterated_in_thread(count)(1234)] == list(range(1234))
    assert len(threads) == 1
    assert threading.current_thread() not in threads


async def test_what_a_plain_generator_raises_reaches_whoever_takes_its_items() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        assert [number async for number in iterated_in_thread(broken)()] == [1]


async def test_a_plain_generator_is_not_far_ahead_and_is_closed_when_nobody_wants_more() -> None:
    given, closed = [], threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                given.append(None)
                yield len(given)
        finally:
            closed.set()

    async with aclosing(iterated_in_thread(endless)()) as items:
        assert await anext(items) == 1
        await eventually(lambda: len(given) >= (AHEAD + 1) * BATCH, what="the thread has worked ahead")
        await asyncio.sleep(0.05)  # in which it could have got further
        assert len(given) == (AHEAD + 1) * BATCH
    await eventually(closed.is_set)
