"""What docs/tour/ quotes, shows and says is so: code, pictures, outputs, figures. The outputs of commands: tests/cli/test_docs_outputs.py."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_figures import figures, script

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "tour"
PAGES = sorted(TOUR.glob("*.md"))
QUOTE = re.compile(r"^<!-- from (src/[\w/]+\.py)::([\w.]+) -->\n```python\n(.*?)^```$", re.M | re.S)
TRY = re.compile(r"^<!-- try -->\n```python\n(.*?)^```\n\n```text\n(.*?)^```$", re.M | re.S)
FIGURES = re.compile(r"^<!-- figures\n(.*?)^-->$", re.M | re.S)
PICTURE = re.compile(r"!\[([^\]]+)\]\(\.\./pictures/tour-(\w+)\.png\)")
LOG = re.compile(r'docs/LOG\.md "(.*)"')
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
    """The lines of a function or a class, with its decorators."""
    node: ast.AST = ast.parse(path.read_text(encoding="utf-8"))
    for part in name.split("."):
        (node,) = (one for one in ast.iter_child_nodes(node) if getattr(one, "name", None) == part)
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    first = min(one.lineno for one in (*node.decorator_list, node))
    return path.read_text(encoding="utf-8").splitlines()[first - 1 : node.end_lineno]


def is_quoted(block: str, source: list[str]) -> bool:
    """Whether the parts between lines `...` occur in the source in this order, each without a gap."""
    begin = 0
    for part in re.split(r"^\s*\.\.\.\n", block, flags=re.M):
        wanted = textwrap.dedent(part).splitlines()
        places = range(begin, len(source) - len(wanted) + 1)
        at = (n for n in places if textwrap.dedent("\n".join(source[n : n + len(wanted)])).splitlines() == wanted)
        if not wanted or (found := next(at, None)) is None:
            return False
        begin = found + len(wanted)
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


def listed(text: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each stretch of prose before a list of figures, and the figures with their sources."""
    for found in FIGURES.finditer(text):
        stretch = text[text.rindex("\n## ", 0, found.start()) : found.start()]
        yield stretch, [tuple(line.split(" ", 1)) for line in found[1].splitlines()]  # type: ignore[misc]


@pytest.mark.parametrize("name", texts)
def test_figures_stand_in_their_result_files(name: str) -> None:
    log = " ".join((ROOT / "docs/LOG.md").read_text(encoding="utf-8").split())
    known: list[str] = []
    for stretch, pairs in listed(texts[name]):
        there = [one.text for one in figures.numbers(stretch)]
        for figure, source in pairs:
            assert figure in there, f"'{figure}' is not in the text before its source"
            if quoted := LOG.fullmatch(source):
                assert quoted[1] in log and figure in quoted[1], source
            else:
                assert figures.fits(figures.worth(ROOT, source), figure), f"'{figure}' is not {source}"
            assert source.removeprefix("-").split("#")[0].split(" ")[-1] in stretch or "LOG" in source, (
                f"{source} is not named"
            )
            known.append(figure)
    section = texts[name].partition(MEASURED)[2].partition("\n## ")[0]
    assert [one.text for one in figures.numbers(section) if one.measured and one.text not in known] == []


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
