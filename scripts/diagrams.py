"""Draw the diagrams of docs/explanation/house.md as SVG files in docs/pictures.

    python scripts/diagrams.py

The page's text blocks are the source: the block under "Layers", and the three blocks under "Three paths through the code". Run the
script after a change to one of them; `tests/laws/test_site.py` compares the files.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = "docs/explanation/house.md"
FOLDER = "docs/pictures"
PATHS = ("decode", "grpo", "request")
WIDTH = 960
SANS, MONO = "Helvetica, Arial, sans-serif", "Menlo, Consolas, monospace"
INK, PALE, LINE = "#1f2933", "#eef2f6", "#52667a"


@dataclass(frozen=True)
class Step:
    """A line of a path: how deep it is called, its file, its function, and what it does."""

    depth: int
    file: str
    function: str
    does: str


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


def steps(block: str) -> list[Step]:
    """Return the lines of a path."""
    found = []
    for line in block.rstrip().split("\n"):
        file, function, does = re.split(r"\s{2,}", re.sub(r"\.py (?=\S)", ".py  ", line.strip()), maxsplit=2)
        found.append(Step((len(line) - len(line.lstrip())) // 2, file, function, does))
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


def draw_path(found: list[Step], title: str) -> str:
    """Draw one row for each step, indented under its caller."""
    parts, height, gap = [], 50, 10
    for order, step in enumerate(found):
        left, top = 12 + 34 * step.depth, 12 + order * (height + gap)
        parts.append(_box(left, top, WIDTH - 12 - left, height))
        parts.append(_text(left + 12, top + 20, step.file, 13, LINE, mono=True))
        parts.append(_text(left + 40 + 8 * len(step.file), top + 20, step.function, 13.5, INK, mono=True, bold=True))
        parts.append(_text(left + 12, top + 40, step.does, 13, INK))
        caller = next((n for n in range(order - 1, -1, -1) if found[n].depth < step.depth), None)
        if caller is not None:
            x, start, middle = (
                12 + 34 * found[caller].depth + 16,
                12 + caller * (height + gap) + height,
                top + height / 2,
            )
            parts.append(f'<path d="M{x} {start} V{middle:g} H{left}" fill="none" stroke="{LINE}" stroke-width="1.5"/>')
            parts.append(f'<path d="M{left} {middle:g} l-7 -4 v8 z" fill="{LINE}"/>')
    return _svg(12 + len(found) * (height + gap) + 2, parts, title)


def _box(left: float, top: float, width: float, height: float) -> str:
    return (
        f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="5" fill="{PALE}" stroke="{LINE}"/>'
    )


def _text(x: float, y: float, text: str, size: float, ink: str, *, mono: bool = False, bold: bool = False) -> str:
    family, weight = MONO if mono else SANS, ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-family="{family}" font-size="{size:g}" fill="{ink}"{weight}>{escape(text)}</text>'


def _svg(height: float, parts: list[str], title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" role="img">'
    ground = f'<rect width="{WIDTH}" height="{height:g}" fill="#ffffff"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *parts, "</svg>", ""])


def pictures(page: str) -> dict[str, str]:
    """Return the text of each SVG file by its name."""
    titles = ("A decode step", "A GRPO step", "A streamed request")
    paths = zip(PATHS, titles, blocks(page, "Three paths through the code"), strict=True)
    drawn = {f"path-{name}.svg": draw_path(steps(block), title) for name, title, block in paths}
    return {"layers.svg": draw_layers(layers(page)), **drawn}


def main() -> None:
    for name, text in pictures((ROOT / PAGE).read_text(encoding="utf-8")).items():
        (ROOT / FOLDER / name).write_text(text, encoding="utf-8")
        print(f"{FOLDER}/{name}")


if __name__ == "__main__":
    main()
