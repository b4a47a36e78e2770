"""Hooks of the documentation site (mkdocs.yml names this file).

- Links from pages to files outside docs, such as `../../src/rorqual/ops/moe.py`, work in the repository's view of a page. On the site they
  lead to `repo_url`, or show the file's path as code if `repo_url` is not set.
- The script that lets the search run in pages opened from the disk is our copy (docs/javascripts), not one from the network.
- Formulas of the tour, in `$` or `$$`, become MathML, which browsers draw without a script.
- `<!-- verbs -->` in docs/reference/verbs.md becomes the help of every verb, as the command line prints it.
"""

from __future__ import annotations

import os
import posixpath
import re
from typing import Any

from latex2mathml.converter import convert

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.M | re.S)
FORMULA = re.compile(r"(^```.*?^```$|`[^`\n]+`)|\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?)\$(?![\w$])", re.M | re.S)
MARK = "<!-- verbs -->"
WORKER = "https://unpkg.com/iframe-worker/shim"
LOCAL_WORKER = "javascripts/iframe-worker.js"
WIDTH = 100


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Rewrite a page's links to the source, and insert the help of the verbs."""
    if MARK in markdown:
        markdown = markdown.replace(MARK, verbs())
    markdown = with_source_links(markdown, page.file.src_uri, config.repo_url)
    return with_formulas(markdown) if page.file.src_uri.startswith("tour/") else markdown


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Load the search's shim for pages on the disk from the site itself."""
    return output.replace(WORKER, "../" * page.url.count("/") + LOCAL_WORKER)


def on_post_template(output: str, **_: Any) -> str:
    """Do the same for the page about missing pages, whose addresses begin at the server's root."""
    return output.replace(WORKER, f"/{LOCAL_WORKER}")


def with_source_links(markdown: str, page: str, repo_url: str | None) -> str:
    """Return the page's text, with links to files outside docs rewritten. `page` is its path in docs."""

    def rewrite(found: re.Match[str]) -> str:
        text, target = found.groups()
        path, _, section = target.partition("#")
        if not path or re.match(r"[a-z]+:|/", path):
            return found.group()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), path))
        if path.startswith("docs/"):
            return found.group()
        if repo_url:
            return f"[{text}]({repo_url.rstrip('/')}/blob/main/{path}{'#' + section if section else ''})"
        return text if path in text else f"{text} (`{path}`)"

    parts, last = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(rewrite, markdown[last : fence.start()]), fence.group()]
        last = fence.end()
    return "".join([*parts, LINK.sub(rewrite, markdown[last:])])


def with_formulas(markdown: str) -> str:
    """Return the page's text with TeX formulas as MathML, except in code."""

    def drawn(found: re.Match[str]) -> str:
        code, display, inline = found.groups()
        if code:
            return code
        if display:
            return convert(display, display="block")
        return f"<span>{convert(inline)}</span>"  # Markdown takes a line that begins with <math> for a block of HTML

    return FORMULA.sub(drawn, markdown)


def verbs() -> str:
    """Return the help of every verb as Markdown, from the command line itself."""
    os.environ["COLUMNS"] = str(WIDTH)
    import typer.main
    from typer.testing import CliRunner

    from rorqual.cli.main import app

    group = typer.main.get_command(app)
    shown = [name for name, command in group.commands.items() if not command.hidden]  # type: ignore[attr-defined]
    runner = CliRunner()
    texts = {name: runner.invoke(app, [name, "--help"], terminal_width=WIDTH).output.strip() for name in shown}
    return "\n\n".join(f"## rorqual {name}\n\n```text\n{text}\n```" for name, text in texts.items())
