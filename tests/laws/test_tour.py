"""The tour's quotes equal the source, its examples print what it shows, and its pictures exist.

tests/cli/test_docs_outputs.py checks the output of the commands that it shows, and test_figures.py its figures.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import textwrap
from pathlib import Path

import pytest
from test_figures import script

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "tour"
PAGES = sorted(TOUR.glob("*.md"))
QUOTE = re.compile(r"^<!-- from (src/[\w/]+\.py)::([\w.]+) -->\n```python\n(.*?)^```$", re.M | re.S)
TRY = re.compile(r"^<!-- try -->\n```python\n(.*?)^```\n\n```text\n(.*?)^```$", re.M | re.S)
PICTURE = re.compile(r"!\[([^\]]+)\]\(\.\./pictures/tour-(\w+)\.png\)")
MEASURED = "## What we measured\n"
WORDS = range(400, 701)
LONGEST = 32
KILOBYTES = 100

texts = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
quotes = [
    pytest.param(*found, id=f"{name}: {found[1]}") for name, text in texts.items() for found in QUOTE.findall(text)
]
tries = [pytest.param(*found, id=name) for name, text in texts.items() for found in TRY.findall(text)]
sentences = script("scripts", "sentences")


def source_of(path: Path, name: str) -> list[str]:
    """Return the lines of a function or class, with its decorators."""
    node: ast.AST = ast.parse(path.read_text(encoding="utf-8"))
    for part in name.split("."):
        (node,) = (child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part)
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    first = min(part.lineno for part in (*node.decorator_list, node))
    return path.read_text(encoding="utf-8").splitlines()[first - 1 : node.end_lineno]


def is_quoted(block: str, source: list[str]) -> bool:
    """Return whether the source contains the parts of a block in their order. Lines `...` separate parts; indentation may differ."""
    start = 0
    for part in re.split(r"^\s*\.\.\.\n", block, flags=re.M):
        wanted = textwrap.dedent(part).splitlines()
        places = range(start, len(source) - len(wanted) + 1)
        matches = (n for n in places if textwrap.dedent("\n".join(source[n : n + len(wanted)])).splitlines() == wanted)
        if not wanted or (place := next(matches, None)) is None:
            return False
        start = place + len(wanted)
    return True


def test_there_are_eight_pages_with_all_their_parts() -> None:
    assert len(PAGES) == 8
    for name, text in texts.items():
        found = QUOTE.findall(text)
        assert 8 <= sum(len(block.splitlines()) for *_, block in found) <= 30, name
        assert len(PICTURE.findall(text)) == 1 and text.count(MEASURED) == 1 and text.count("## Try it\n") == 1, name
        assert text.count("```python") == len(found) + len(TRY.findall(text)), f"{name}: a Python block is not marked"
        assert text.count("```") == 2 * len(re.findall(r"^```(?:python|text|sh)\n", text, re.M)), name
        assert "$$" in text, name


@pytest.mark.parametrize(("file", "name", "block"), quotes)
def test_a_quote_is_the_source(file: str, name: str, block: str) -> None:
    assert is_quoted(block, source_of(ROOT / file, name))


def test_a_quote_that_differs_is_seen() -> None:
    source = ["def f(x):", "    y = x + 1", "    z = 2 * y", "", "    return z"]
    assert is_quoted("y = x + 1\nz = 2 * y\n", source)
    assert is_quoted("y = x + 1\n...\nreturn z\n", source)
    assert not is_quoted("y = x + 1\nreturn z\n", source)
    assert not is_quoted("y = x + 2\n", source)
    assert not is_quoted("return z\n...\ny = x + 1\n", source)
    assert not is_quoted("y = x + 1\n    z = 2 * y\n", source)


@pytest.mark.parametrize(("code", "shown"), tries)
def test_what_can_be_tried_prints_what_the_page_shows(code: str, shown: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "tour", "exec"), {"__name__": "tour"})
    assert printed.getvalue() == shown


def test_pictures_are_there_small_and_drawn_by_the_script() -> None:
    drawn = set(script("scripts", "tour_pictures").PICTURES)
    assert {name for text in texts.values() for _, name in PICTURE.findall(text)} == drawn
    files = {path.stem.removeprefix("tour-"): path for path in (ROOT / "docs/pictures").glob("tour-*.png")}
    assert set(files) == drawn
    assert all(path.stat().st_size < KILOBYTES * 1000 for path in files.values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_short_and_so_are_their_sentences(page: Path) -> None:
    prose = re.sub(
        r"^```.*?^```$|^\$\$.*?\$\$$|<!--.*?-->|^\|.*?$|^#.*?$|^!.*?$", "", texts[page.name], flags=re.M | re.S
    )
    assert len(prose.split()) in WORDS
    for place, sentence in sentences.in_page(page):
        words = re.sub(r"\$\$.*?\$\$", "", sentence).split()
        assert len(words) <= LONGEST, f"{place}: {len(words)} words: {sentence}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", texts[page.name]):
        path, _, section = target.partition("#")
        assert (page.parent / path).exists(), target
        if section:
            titles = re.findall(r"^#+ (.*)$", (page.parent / path).read_text(encoding="utf-8"), re.M)
            assert section in [re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles], target
