"""The page on guarantees names tests that exist, and every crash point has one."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runwire import failpoints
from runwire.domain.errors import SetupError
from runwire.failpoints import Point

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guarantees.md").read_text()
NAMED = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)", PAGE)
POINTS = {name: value for name, value in vars(Point).items() if name.isupper()}


def functions_in(path: Path) -> set[str]:
    found = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def rows(heading: str) -> list[list[str]]:
    """The rows of the table that has this heading."""
    table = PAGE.partition(f"| {heading} |\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[1:]]


@pytest.mark.parametrize("path", sorted({path for _, path in NAMED}))
def test_every_test_it_names_exists(path: str) -> None:
    assert {name for name, file in NAMED if file == path} <= functions_in(ROOT / path)


def test_every_crash_test_is_named() -> None:
    written = {name for file in (ROOT / "tests/crash").glob("test_*.py") for name in functions_in(file)}
    assert {name for name in written if name.startswith("test_")} <= {name for name, _ in NAMED}


@pytest.mark.parametrize(
    ("heading", "count"), [("what happens | what comes of it | shown by", 40), ("rule | shown by", 14)]
)
def test_every_point_and_every_rule_is_shown_by_something(heading: str, count: int) -> None:
    found = rows(f"| {heading}")
    assert [int(row[0]) for row in found] == list(range(1, count + 1))
    assert all(re.search(r"\[`(test_\w+|make \w+)`\]\(", row[-1]) for row in found)


def test_every_failpoint_is_reached_somewhere_and_tried_by_a_test() -> None:
    source = "".join(file.read_text() for file in (ROOT / "src/runwire").rglob("*.py"))
    tried = "".join(file.read_text() for file in (ROOT / "tests/crash").glob("*.py"))
    for name in POINTS:
        assert f"failpoints.reach(Point.{name})" in source
        assert f"Point.{name}" in tried


def test_nothing_happens_at_a_point_unless_it_is_asked_for() -> None:
    for point in POINTS.values():
        failpoints.reach(point)


@pytest.mark.parametrize("text", ["", "before_claim", "before_claim:raise", "before:kill", "before_claim:kill:0", "x"])
def test_a_failpoint_that_is_misspelt_stops_the_start(text: str) -> None:
    with pytest.raises(SetupError, match="RUNWIRE_FAILPOINT: must be POINT:kill or POINT:stop, with one of "):
        failpoints.armed(text)


def test_a_process_dies_the_nth_time_it_comes_by() -> None:
    program = "from runwire.failpoints import *\nfor n in range(5): print(n, flush=True); reach(Point.BEFORE_CLAIM); "
    ended = subprocess.run(
        [sys.executable, "-c", program + "reach(Point.COMMITTED)"],
        env=os.environ | {failpoints.VARIABLE: "before_claim:kill:3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (-9, "0\n1\n2\n")
    assert "RUNWIRE_FAILPOINT is set" in ended.stderr
