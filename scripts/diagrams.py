"""Draw the layers of docs/explanation/house.md as docs/pictures/layers.svg.

    python scripts/diagrams.py

The page's block under "Layers" is the source. Run the script after a change to it; `tests/laws/test_site.py` compares the file.
"""

from __future__ import annotations

import re
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = "docs/explanation/house.md"
FOLDER = "docs/pictures"
WIDTH = 960
SANS = "Helvetica, Arial, sans-serif"
INK, PALE, LINE = "#1f2933", "#eef2f6", "#52667a"


def blocks(page: str, heading: str) -> list[str]:
    """Return the code blocks of a section of the page."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    if section is None:
        raise ValueError(f"{PAGE} has no section '{heading}'")
    return re.findall(r"^```\w*\n(.*?)^```", section[1], re.M | re.S)


def layers(page: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (level, [(package, description), ...]) of each layer, from the top."""
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for line in blocks(page, "Layers")[0].rstrip().split("\n"):
        level, rest = line[:4].strip(), line[4:]
        *names, told = re.split(r"\s{2,}", rest.strip())
        if len(names) == 1 and " " in names[0]:  # the description is only one blank away
            names, told = names[0].split(" ", 1)[:1], f"{names[0].split(' ', 1)[1]} {told}"
        if level:
            found.append((level, []))
        texts = told.split(" | ") if len(names) > 1 else [told]
        found[-1][1].extend(zip(names, (text.replace("`", "") for text in texts), strict=True))
    return found


def draw_layers(found: list[tuple[str, list[tuple[str, str]]]]) -> str:
    """Draw one band for each layer, with a box for each package."""
    parts, top = [], 12
    for level, packages in found:
        width = (WIDTH - 72 - 10 * (len(packages) - 1)) / len(packages)
        told = [textwrap.wrap(text, int((width - 24) / 6.6)) for _, text in packages]
        height = 34 + 17 * max(map(len, told))
        parts.append(_text(16, top + height / 2 + 5, level, 15, LINE, bold=True))
        for order, ((name, _), lines) in enumerate(zip(packages, told, strict=True)):
            left = 60 + order * (width + 10)
            parts.append(_box(left, top, width, height))
            parts.append(_text(left + 12, top + 22, name, 15, INK, bold=True))
            parts += [_text(left + 12, top + 41 + 17 * n, line, 12.5, INK) for n, line in enumerate(lines)]
        top += height + 10
    return _svg(top + 2, parts, "Layers of Rorqual: a package imports only from layers below its own")


def _box(left: float, top: float, width: float, height: float) -> str:
    return (
        f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="5" fill="{PALE}" stroke="{LINE}"/>'
    )


def _text(x: float, y: float, text: str, size: float, ink: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-family="{SANS}" font-size="{size:g}" fill="{ink}"{weight}>{escape(text)}</text>'


def _svg(height: float, parts: list[str], title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" role="img">'
    ground = f'<rect width="{WIDTH}" height="{height:g}" fill="#ffffff"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *parts, "</svg>", ""])


def pictures(page: str) -> dict[str, str]:
    """Return the text of each SVG file by its name."""
    return {"layers.svg": draw_layers(layers(page))}


def main() -> None:
    for name, text in pictures((ROOT / PAGE).read_text(encoding="utf-8")).items():
        (ROOT / FOLDER / name).write_text(text, encoding="utf-8")
        print(f"{FOLDER}/{name}")


if __name__ == "__main__":
    main()
