"""Self-contained HTML pages from the templates in this package: no network, everything escaped, the same bytes for the same data."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rorqual.core.records import write_atomic
from rorqual.report.theme import DARK, LIGHT

MARKS = {"●": "yes", "✕": "no", "○": "open"}
"""Symbols that colour a table's cell, and the end of their CSS class. Readers need not distinguish the colours."""

ColouredText = list[tuple[str, str, int, str]]
"""Parts of a text: (text, CSS classes, strength of the colour in percent, title)."""


def page(template: str, **data: Any) -> str:
    """Return the HTML page that `templates/NAME.html` makes of the data. A missing name raises an error."""
    return _environment().get_template(f"{template}.html").render(data)


def write_page(path: Path, template: str, **data: Any) -> Path:
    """Write the page, and return its path."""
    write_atomic(path, page(template, **data).encode())
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
        "mark": _mark,
        "share": "{:.1%}".format,
    }
    made.globals |= {"LIGHT": LIGHT, "DARK": DARK}
    return made


def _mark(cell: str) -> str:
    return next((kind for symbol, kind in MARKS.items() if symbol in cell), "")
