"""Self-contained HTML pages from the templates in this package. A page loads nothing from the network, and all data in a page
is HTML-escaped. The same data gives the same bytes of HTML."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rorqual.core.records import write_atomic
from rorqual.report.theme import DARK, LIGHT

MARKS = {"●": "yes", "✕": "no", "○": "open"}
"""Symbols by which a table cell is coloured, each with the suffix of the cell's CSS class."""

ColouredText = list[tuple[str, str, int, str]]
"""A text in coloured parts. Each part is (text, CSS classes, strength of the colour in percent, tooltip)."""


def render_page(template: str, **data: Any) -> str:
    """Return the HTML page that `templates/TEMPLATE.html` renders from `data`, where TEMPLATE is the value of
    `template`. Raises an error if the template uses a name that `data` lacks."""
    return _environment().get_template(f"{template}.html").render(data)


def write_page(path: Path, template: str, **data: Any) -> Path:
    """Write the HTML page to `path`, and return `path`."""
    write_atomic(path, render_page(template, **data).encode())
    return path


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("rorqual.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    made.filters |= {
        "base64": lambda data: base64.b64encode(data).decode("ascii"),
        "mark": _cell_mark_class,
        "share": "{:.1%}".format,
    }
    made.globals |= {"LIGHT": LIGHT, "DARK": DARK}
    return made


def _cell_mark_class(cell: str) -> str:
    return next((kind for symbol, kind in MARKS.items() if symbol in cell), "")
