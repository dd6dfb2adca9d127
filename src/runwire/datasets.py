"""What can be exported: a named source of rows, of which each is of one pydantic model."""

from __future__ import annotations

import collections.abc
import inspect
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, RootModel, TypeAdapter
from pydantic.errors import PydanticUserError

from runwire.blocking import iterated_in_thread
from runwire.domain.access import AccessLevel
from runwire.domain.errors import SetupError

OURS = "export_"
"""What the fields of a target begin with that belong to ``export`` itself."""
LONGEST_NAME = 200
"""Characters of a dataset's name."""
ROWS = {collections.abc.AsyncIterator, collections.abc.AsyncIterable, collections.abc.AsyncGenerator}
PLAIN_ROWS = {collections.abc.Iterator, collections.abc.Iterable, collections.abc.Generator}
"""What a generator function may say it returns, with the model of the rows in brackets."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Something that can be exported."""

    name: str
    row: type[BaseModel]
    """What every row is."""
    rows: Callable[[Any, Any], AsyncGenerator[Any, None]]
    """``(parameters, context)`` -> the rows."""
    parameters: TypeAdapter[Any] | None = None
    """Validates the fields of the target that do not begin with ``export_``; None: it takes none."""
    fields: tuple[str, ...] = ()
    """The names of its parameters, as far as they are known."""
    description: str = ""
    """For whoever looks for a dataset."""
    needs: AccessLevel = AccessLevel.VIEWER
    """What a token has to be, to be given the file."""

    @property
    def key(self) -> str:
        """The name by which it is found, whatever the case it is written in."""
        return self.name.lower()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns, in the order of the model's fields."""
        return columns_of(self.row)


def dataset_of(name: str, function: Callable[..., Any], description: str) -> Dataset:
    """The dataset that a generator function makes. Raises SetupError when it has another form."""
    _check_name(name)
    what = f"dataset {name!r}"
    is_plain = inspect.isgeneratorfunction(function)
    if not is_plain and not inspect.isasyncgenfunction(function):
        raise SetupError(f"{what} must be a generator: `async def`, or `def`, with `yield`")
    arguments = list(inspect.signature(function).parameters)
    if len(arguments) not in {1, 2}:
        raise SetupError(f"{what} must take (params, ctx), or (ctx) alone")
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise SetupError(f"{what}: its annotations must be names at module level: {error}") from None
    row = _row_model(what, hints.get("return"), is_plain=is_plain)
    rows = iterated_in_thread(function) if is_plain else function
    if len(arguments) == 1:
        return Dataset(name=name, row=row, rows=lambda _, context: rows(context), description=description)
    parameters = hints.get(arguments[0], dict[str, Any])
    return Dataset(
        name=name,
        row=row,
        rows=rows,
        parameters=_adapter(what, parameters),
        fields=_fields(parameters),
        description=description,
    )


def columns_of(row: type[BaseModel]) -> tuple[str, ...]:
    """What the cells of a row are called: by the model's aliases, and without what it excludes."""
    fields = ((name, field.serialization_alias) for name, field in row.model_fields.items() if not field.exclude)
    computed = ((name, field.alias) for name, field in row.model_computed_fields.items())
    return tuple(alias or name for name, alias in (*fields, *computed))


def _check_name(name: str) -> None:
    """Raise SetupError unless a task could name the dataset."""
    if not name:
        raise SetupError("a dataset needs a name")
    if len(name) > LONGEST_NAME:
        raise SetupError(f"dataset {name[:20]!r}...: a name has at most {LONGEST_NAME} characters")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SetupError(f"dataset {name!r}: a name is text without lone surrogates") from None


def _adapter(what: str, annotation: Any) -> TypeAdapter[Any]:
    taken = [name for name in _fields(annotation) if name.startswith(OURS)]
    if taken:
        raise SetupError(f"{what}: the names of its parameters must not begin with {OURS}: {taken[0]}")
    try:
        return TypeAdapter(annotation)
    except (NameError, PydanticUserError) as error:
        reason = str(error).partition("\n")[0]
        raise SetupError(f"{what}: its first argument must be a pydantic model at module level: {reason}") from None


def _fields(annotation: Any) -> tuple[str, ...]:
    if not (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
        return ()
    return tuple(field.alias or name for name, field in annotation.model_fields.items())


def _row_model(what: str, returned: Any, *, is_plain: bool) -> type[BaseModel]:
    """The model that the generator's return annotation names."""
    is_rows = get_origin(returned) in (PLAIN_ROWS if is_plain else ROWS)
    row = get_args(returned)[0] if is_rows else None
    if not (inspect.isclass(row) and issubclass(row, BaseModel)) or issubclass(row, RootModel):
        example = f"{'Iterator' if is_plain else 'AsyncIterator'}[WalletRow]"
        raise SetupError(f"{what} must say what its rows are, models with fields, as in `-> {example}`")
    columns = columns_of(row)
    if not columns:
        raise SetupError(f"{what}: {row.__name__} has no fields")
    if len(set(columns)) < len(columns):
        raise SetupError(f"{what}: {row.__name__} has two columns of the same name")
    return row
