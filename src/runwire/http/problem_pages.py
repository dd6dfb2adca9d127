"""``/problems``: what each kind of problem means and what to do about it; the ``type`` of every problem leads here.

The text is docs/problems.md, which comes with the package.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

from markdown_it import MarkdownIt
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from runwire.domain.errors import ProblemNotFound
from runwire.http.endpoint import Answer, Endpoint, path_parameter

SECTION = re.compile(r"^## ([a-z-]+)$", re.MULTILINE)
SECURE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "max-age=3600",
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 17px/1.6 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem; color: #1c2430; }}
  code {{ font: 0.9em ui-monospace, monospace; background: #eef1f5; padding: 0.1em 0.3em; border-radius: 4px; }}
  h2 {{ margin-top: 2.2em; padding-top: 0.6em; border-top: 1px solid #d8dee6; font-family: ui-monospace, monospace; }}
  a {{ color: #0b62c4; }}
  @media (prefers-color-scheme: dark) {{
    body {{ background: #14181e; color: #dfe5ec; }} code {{ background: #232a34; }} h2 {{ border-color: #333c48; }}
    a {{ color: #7db5f5; }}
  }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


async def list_problems(_request: Request) -> Response:
    """What each kind of problem means, and what to do about it."""
    return HTMLResponse(
        _page("Problems", "\n".join([introduction(), *(_linked(slug) for slug in sections())])), 200, SECURE
    )


async def get_problem(request: Request) -> Response:
    """What one kind of problem means, and what to do about it. Raises ProblemNotFound."""
    slug = request.path_params["problem"]
    text = sections().get(slug)
    if text is None:
        raise ProblemNotFound("There is no such problem; /problems lists them all.")
    body = f"# {slug}\n\n{text}\n\n[All problems](/problems)"
    return HTMLResponse(_page(slug, body), 200, SECURE)


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


def _page(title: str, markdown: str) -> str:
    return PAGE.format(title=title, body=MarkdownIt("commonmark", {"html": False}).render(markdown))


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
