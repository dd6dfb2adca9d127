"""Every problem's type leads to a section that says what to do about it."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from runwire.http import problem_pages
from runwire.http.problems import TABLE, type_of
from runwire.messaging.broker import Bus
from runwire.settings import Settings
from tests.support import HEADERS, adapter

FRAMEWORK = {"internal", "not_found", "method_not_allowed", "bad_request"}
"""Codes that no error of ours stands behind."""
CODES = sorted({error.code for error in TABLE} | FRAMEWORK)


@pytest.mark.parametrize("code", CODES)
def test_every_problem_has_a_section_that_begins_with_its_status(code: str) -> None:
    text = problem_pages.sections()[code.replace("_", "-")]
    statuses = {str(status) for error, (status, _) in TABLE.items() if error.code == code}
    assert re.match(r"\*\*(\d{3})\.\*\* \S", text), "a section begins with its status"
    assert not statuses or text[2:5] in statuses


def test_there_is_no_section_about_nothing() -> None:
    assert set(problem_pages.sections()) == {code.replace("_", "-") for code in CODES}


def test_the_text_is_the_one_in_the_docs() -> None:
    assert (Path(__file__).parents[2] / "docs" / "problems.md").read_text().startswith(problem_pages.introduction())


async def test_the_type_of_a_problem_leads_to_its_section(settings: Settings, bus: Bus) -> None:
    async with adapter(settings) as http:
        problem = (await http.get("/tasks/999")).json()
        async with httpx.AsyncClient(base_url=http.base_url) as anonymous:
            page = await anonymous.get(problem["type"])
            everything = await anonymous.get("/problems")
            missing = await anonymous.get(type_of("no_such_thing"))
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "<h1>task-not-found</h1>" in page.text
    assert "it was deleted" in page.text
    assert all(f'href="{type_of(code)}"' in everything.text for code in CODES)
    assert (missing.status_code, missing.json()["code"]) == (404, "problem_not_found")
    assert HEADERS["Authorization"] not in page.text
