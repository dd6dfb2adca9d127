"""The schema that is enforced never refuses what the model accepts, and still refuses the plain mistakes."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    AnyUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Json,
    RootModel,
    Strict,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)
from typing_extensions import TypedDict

from runwire.parameters import MOST_NODES, enforced, shown


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Shy(Enum):
    A = "a"

    @classmethod
    def _missing_(cls, value: object) -> Shy:
        return cls.A


class Lax(BaseModel):
    n: int
    f: float = 0.5
    b: bool | None = None
    s: str = ""


class Strictly(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    n: Annotated[int, Field(ge=0, le=10)]
    s: Annotated[str, Field(min_length=1, max_length=3)] = "x"
    inner: Lax | None = None


class Squeezed(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True, coerce_numbers_to_str=True, str_max_length=5)
    s: Annotated[str, Field(max_length=2, pattern="^[a-z]*$")]


class Aliased(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_by_name=True)
    a: Annotated[int, Field(alias="Alpha")]
    b: Annotated[int, Field(validation_alias=AliasChoices("beta", AliasPath("list", 0)))] = 1


class Renamed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: Annotated[int, Field(alias="Alpha")]


class Prepared(BaseModel):
    n: int
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _anything(cls, value: object) -> object:
        return {"n": 1}


class OwnInit(BaseModel):
    n: int

    def __init__(self, **given: Any) -> None:
        super().__init__(n=given.get("m", 1))


class FromAttributes(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    real: float


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: Annotated[int, Field(gt=0, lt=10)] = 9


class Dog(BaseModel):
    kind: Literal["dog", "hound"]
    name: str


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    other: Cat | Dog | None = None


class Tree(BaseModel):
    v: int
    kids: list[Tree] = []


class Movie(TypedDict, total=False):
    n: int
    s: str


@dataclass
class Point:
    n: int
    f: float = 0


TYPES: dict[str, Any] = {
    "int": int,
    "bounded int": Annotated[int, Field(ge=0, lt=10)],
    "huge int": Annotated[int, Field(le=2**70)],
    "strict int": Annotated[int, Strict()],
    "float": float,
    "bounded float": Annotated[float, Field(gt=0, le=1)],
    "far float": Annotated[float, Field(le=2**53)],
    "strict float": Annotated[float, Strict()],
    "bool": bool,
    "strict bool": Annotated[bool, Strict()],
    "str": str,
    "bounded str": Annotated[str, Field(min_length=2, max_length=3)],
    "pattern": Annotated[str, Field(pattern="^[0-9]+$")],
    "digits": Annotated[str, Field(pattern=r"^\d+$")],
    "compiled pattern": Annotated[str, Field(pattern=re.compile("^a$"))],
    "none": None,
    "decimal": Decimal,
    "date": date,
    "time": time,
    "datetime": datetime,
    "timedelta": timedelta,
    "uuid": uuid.UUID,
    "url": AnyUrl,
    "bytes": bytes,
    "path": Path,
    "json": Json[int],
    "any": Any,
    "list": list[int],
    "bounded list": Annotated[list[Any], Field(min_length=1, max_length=2)],
    "set": Annotated[set[str], Field(min_length=1, max_length=1)],
    "frozenset": frozenset[int],
    "tuple": tuple[int, str],
    "iterable": Iterable[Any],
    "dict": dict[str, int],
    "dict of ints": Annotated[dict[int, str], Field(min_length=1, max_length=1)],
    "words": Literal["red", "blue"],
    "numbers": Literal[1, 2],
    "mixed": Literal["red", 1] | None,
    "true": Literal[True, "no"],
    "str enum": Colour,
    "int enum": Size,
    "enum that takes anything": Shy,
    "optional": Optional[Annotated[int, Field(ge=5)]],  # noqa: UP045 - one of the spellings
    "optional words": Literal["red"] | None,
    "union": Union[int, list[int], None],  # noqa: UP007 - one of the spellings
    "before": Annotated[int, BeforeValidator(lambda _value: 1)],
    "after": Annotated[int, AfterValidator(lambda value: value + 1)],
    "lax": Lax,
    "strictly": Strictly,
    "squeezed": Squeezed,
    "aliased": Aliased,
    "renamed": Renamed,
    "prepared": Prepared,
    "own init": OwnInit,
    "attributes": FromAttributes,
    "owner": Owner,
    "tree": Tree,
    "root": RootModel[list[int]],
    "typed dict": Movie,
    "dataclass": Point,
    "callable tag": Annotated[
        Annotated[int, Tag("i")] | Annotated[str, Tag("s")],
        Discriminator(lambda value: "i" if isinstance(value, int) else "s"),
    ],
    "made up by default": Annotated[int, Field(default=1), BeforeValidator(lambda value: value)],
}

SCALARS: list[Any] = [
    None, True, False, 0, 1, 2, 5, 10, -1, 2**53 + 1, 2**70, 2**70 + 1, 10**400, 0.5, 1.0, 0.0, 5.0, 1e300,
    "", " ", "a", "ab", "abc", "abcd", " ab ", "  x  ", "red", "RED", "5", " 5 ", "5.0", "1_000", "+5", "-5",
    "5\n", "٣", "0.5", "1e3", "inf", "-Infinity", "nan", "true", "FALSE", "on", "Off", "y", "No", "t", "F", "10",
    "P1D", "PT5S",
    "-P1DT1H", "00:00:01", "2026-05-26", "2026-05-26T14:35:00Z", "2026-05-26 14:35", "1590000000", "12:00",
    "12345678-1234-5678-1234-567812345678",
    "{12345678-1234-5678-1234-567812345678}", "12345678123456781234567812345678",
    "urn:uuid:12345678-1234-5678-1234-567812345678", "http://example.com", "/tmp", "cat", "null", "\x00", "é", "ﬁ",
]  # fmt: skip

STRUCTURES: list[Any] = [
    [], [1], ["1", 2.0, True], [1, 2, 3], ["a", "a"], [1, "a"], [[1]], [None], [0, [1, 2], 3], [{"n": 1}],
    {}, {"n": 1}, {"n": "1"}, {"n": None}, {"n": 10}, {"n": 11}, {"n": True, "s": "abc"}, {"n": 1, "s": ""}, {"m": 2},
    {"n": 1, "extra": 1}, {"n": 1, "inner": {"n": "5"}}, {"n": 1, "inner": {"n": "x"}}, {"n": 1, "inner": {"n": 5}},
    {"s": " ab "}, {"s": 12}, {"s": "AB"}, {"Alpha": 1}, {"a": 1}, {"a": 1, "beta": "2"}, {"a": 1, "list": [3]},
    {"Alpha": 1, "a": 2}, {"Alpha": 1, "b": 1}, {"real": 1.5}, {"1": "a", "1.0": "b"}, {"1": 1}, {"x": "1"},
    {"pet": {"kind": "cat"}}, {"pet": {}}, {"pet": {"kind": "hound", "name": "R"}}, {"pet": {"kind": "dog"}},
    {"pet": {"kind": "cat", "lives": "3"}, "other": {}}, {"pet": {"kind": "cat"}, "other": {"name": "x"}},
    {"pet": {"kind": "cat"}, "other": {"kind": "dog", "name": "x"}}, {"pet": {"kind": "cat"}, "other": None},
    {"v": "1", "kids": [{"v": 2, "kids": [{"v": 3.0}]}]}, {"v": 1, "kids": [{}]}, {"f": "nan", "n": 3},
]  # fmt: skip


def checker(kind: Any) -> jsonschema_rs.Draft202012Validator:
    options = jsonschema_rs.RegexOptions()
    return jsonschema_rs.Draft202012Validator(enforced(TypeAdapter(kind)), pattern_options=options, offline=True)


def accepts(validate: Callable[..., object], value: object, **how: object) -> bool:
    try:
        validate(value, **how)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", TYPES)
def test_whatever_the_model_accepts_passes(name: str) -> None:
    """As the worker validates it, in pydantic's strict mode, and as JSON."""
    adapter, check = TypeAdapter(TYPES[name]), checker(TYPES[name])
    accepted = 0
    for value in [*SCALARS, *STRUCTURES]:
        how = {
            "as Python": accepts(adapter.validate_python, value),
            "strictly": accepts(adapter.validate_python, value, strict=True),
            "as JSON": accepts(adapter.validate_json, json.dumps(value)),
        }
        if any(how.values()):
            accepted += 1
            assert check.is_valid(value), (value, how, [str(error.message) for error in check.iter_errors(value)])
    assert accepted, "a type that accepts nothing here tests nothing"


SCALAR = (
    st.sampled_from([value for value in SCALARS if value != 10**400])
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    | st.from_regex(r"\A[ \t]?[-+]?[0-9_]{1,4}([.][0-9]{0,2})?[ \n]?\Z")
    | st.from_regex(r"\A[tTfFyYnNoO][a-zA-Z]{0,4}\Z")
)
NAMES = st.sampled_from(
    ["n", "s", "f", "b", "inner", "Alpha", "a", "beta", "kind", "lives", "name", "pet", "v", "kids"]
)
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=8
)


@settings(max_examples=1500, deadline=None)
@given(name=st.sampled_from(list(TYPES)), value=VALUE)
def test_whatever_the_model_accepts_of_random_json_passes(name: str, value: object) -> None:
    check, adapter = CHECKS[name]
    if accepts(adapter.validate_python, value):
        assert check.is_valid(value)


CHECKS = {name: (checker(kind), TypeAdapter(kind)) for name, kind in TYPES.items()}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Lax, {}),
        (Lax, []),
        (Lax, {"n": "soon"}),
        (Lax, {"n": None}),
        (Lax, {"n": 0.5}),
        (Lax, {"n": 1, "f": {}}),
        (Lax, {"n": 1, "b": "maybe"}),
        (Lax, {"n": 1, "s": 5}),
        (Strictly, {"n": "5"}),
        (Strictly, {"n": 11}),
        (Strictly, {"n": 1, "s": "long"}),
        (Strictly, {"n": 1, "typo": 1}),
        (Strictly, {"n": 1, "inner": {}}),
        (Owner, {"pet": {"kind": "cow"}}),
        (Owner, {"pet": {"kind": "dog"}}),
        (Owner, {"pet": {"kind": "cat", "lives": 10}}),
        (Renamed, {"a": 1}),
        (Tree, {"v": 1, "kids": {}}),
        (Movie, {"n": []}),
        (Colour, "green"),
        (datetime, "tomorrow"),
        (uuid.UUID, "12"),
        (Literal["red"] | None, "blue"),
        (Annotated[list[Any], Field(max_length=1)], [1, 2]),
        (dict[str, int], {"x": []}),
    ],
)
def test_a_plain_mistake_is_refused(kind: Any, value: object) -> None:
    assert not accepts(TypeAdapter(kind).validate_python, value)
    assert not checker(kind).is_valid(value)


def test_a_model_that_branches_without_end_gives_a_schema_of_bounded_size() -> None:
    class Leaf(BaseModel):
        v: int

    kind: Any = Leaf
    for depth in range(12):
        kind = type(
            f"Level{depth}", (BaseModel,), {"__annotations__": {"left": kind, "right": kind, "other": kind | int}}
        )
    text = json.dumps(enforced(TypeAdapter(kind)))
    assert text.count('"type"') <= 2 * MOST_NODES


def test_a_body_that_is_wrong_all_over_gives_few_complaints_for_each_value() -> None:
    """So that a check ends soon: with one for each name or choice there would be a million."""
    fields: Any = {f"field{number}": (int, ...) for number in range(200)}
    wide = create_model("Wide", **fields)
    choice = Union[tuple(create_model(f"Choice{number}", **{f"only{number}": (int, ...)}) for number in range(60))]  # noqa: UP007 - made of a list
    for kind in (wide, choice):
        assert len(list(checker(list[kind]).iter_errors([{}] * 1000))) == 1000


def test_what_is_shown_names_its_dialect_and_is_a_schema() -> None:
    for name, kind in TYPES.items():
        schema = shown(TypeAdapter(kind))
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema", name
        jsonschema_rs.Draft202012Validator(schema, offline=True)


def test_what_json_schema_has_no_word_for_is_shown_as_anything() -> None:
    assert list(shown(TypeAdapter(Callable[[int], int]))) == ["$schema"]
    assert enforced(TypeAdapter(Callable[[int], int])) == {}
