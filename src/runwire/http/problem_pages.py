"""``/problems``: what each kind of problem means and what to do about it; the ``type`` of every problem leads here.

The text is docs/problems.md, which comes with the package.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from runwire.domain.errors import ProblemNotFound
from runwire.http.endpoint import Answer, Endpoint, path_parameter
from runwire.http.page import page

SECTION = re.compile(r"^## ([a-z-]+)$", re.MULTILINE)


async def list_problems(_request: Request) -> Response:
    """What each kind of problem means, and what to do about it."""
    return page("Problems", "\n".join([introduction(), *(_linked(slug) for slug in sections())]))


async def get_problem(request: Request) -> Response:
    """What one kind of problem means, and what to do about it. Raises ProblemNotFound."""
    slug = request.path_params["problem"]
    text = sections().get(slug)
    if text is None:
        raise ProblemNotFound("There is no such problem; /problems lists them all.")
    return page(slug, f"# {slug}\n\n{text}\n\n[All problems](/problems)")


@cache
def sections() -> dict[str, str]:
    """The sections of docs/problems.md by name, in order."""
    parts = SECTION.split(_text())
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


def introduction() -> str:
    """What stands before the sections."""
    return SECTION.split(_text())[0].strip()


@cache
def _text() -> str:
    packaged = Path(str(resources.files("runwire") / "problems.md"))
    source = packaged if packaged.exists() else Path(__file__).parents[3] / "docs" / "problems.md"
    return source.read_text(encoding="utf-8")


def _linked(slug: str) -> str:
    return f"## [{slug}](/problems/{slug})\n\n{sections()[slug]}"


ENDPOINTS = (
    Endpoint(
        method="GET", path="/problems", handle=list_problems, tag="problems", needs_token=False,
        answers={200: Answer(text="A page for people.", media_type="text/html")},
    ),
    Endpoint(
        method="GET", path="/problems/{problem}", handle=get_problem, tag="problems", needs_token=False,
        parameters=(
            path_parameter("problem", "Last part of a problem's `type`.", {"type": "string"}, "task-busy"),
        ),
        answers={200: Answer(text="A page for people.", media_type="text/html")},
        problems=(ProblemNotFound,),
    ),
)  # fmt: skip
