"""Pages for people: Markdown in, HTML out, with nothing loaded from anywhere."""

from __future__ import annotations

import html
from functools import lru_cache

from markdown_it import MarkdownIt
from starlette.responses import HTMLResponse

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
  pre {{ background: #eef1f5; padding: 0.8em 1em; border-radius: 4px; overflow-x: auto; line-height: 1.4; }}
  pre code {{ padding: 0; background: none; }}
  table {{ border-collapse: collapse; font-size: 0.92em; }}
  th, td {{ text-align: left; vertical-align: top; padding: 0.3em 1em 0.3em 0; border-bottom: 1px solid #d8dee6; }}
  h2 {{ margin-top: 2.2em; padding-top: 0.6em; border-top: 1px solid #d8dee6; font-family: ui-monospace, monospace; }}
  h3 {{ margin-top: 1.8em; font-family: ui-monospace, monospace; }}
  a {{ color: #0b62c4; }}
  @media (prefers-color-scheme: dark) {{
    body {{ background: #14181e; color: #dfe5ec; }} code, pre {{ background: #232a34; }} h2 {{ border-color: #333c48; }}
    th, td {{ border-color: #333c48; }} a {{ color: #7db5f5; }}
  }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(title: str, markdown: str) -> HTMLResponse:
    """The page; HTML in the Markdown is shown as it is written."""
    return HTMLResponse(_page(title, markdown), 200, SECURE)


@lru_cache(maxsize=128)
def _page(title: str, markdown: str) -> str:
    """Made once: a long page takes a tenth of a second, and nobody needs a token to ask for it."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return PAGE.format(title=html.escape(title), body=body)
