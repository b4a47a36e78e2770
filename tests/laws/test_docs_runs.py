"""Each run that a command of a how-to page reads was made by a command of the page, or of a page to which it links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
RUN = r"(?:runs|exports)/[\w.-]+"
PAGES = [*sorted((DOCS / "how-to").glob("*.md")), DOCS / "tutorial.md"]


def commands(text: str) -> list[str]:
    """The commands of blocks, of indented lines and in the text."""
    fenced = re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", text, re.M | re.S)
    blocks = [block for language, block in fenced if language in ("", "sh", "bash")]
    blocks += re.findall(r"(?:^    .*\n)+", text, re.M)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in [*lines, *re.findall(r"`([^`\n]*)`", text)] if re.search(r"\brorqual [a-z]", line)]


def made_by(command: str) -> set[str]:
    """The runs that a command writes."""
    folder = re.search(rf"rorqual (?:import|export|merge|sparsify|peft) \S+ ({RUN})", command)
    return {*re.findall(rf"(?:\bout=|--out )({RUN})", command), *([folder[1]] if folder else [])}


def made_on(page: Path) -> set[str]:
    return {run for command in commands(page.read_text(encoding="utf-8")) for run in made_by(command)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_run_that_a_command_reads_was_made_before(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = {(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+\.md)", text)}
    known = made_on(page).union(*(made_on(link) for link in links))
    loops = tuple(run for run in known if run.endswith("-"))  # out=runs/a-$seed makes runs/a-0
    for command in commands(text):
        missing = {run for run in re.findall(RUN, command) if not run.startswith(loops)} - known - {"runs/NAME"}
        assert not missing, f"{command}: no command makes {missing}. Make it, or link to a page that does."


def test_a_missing_run_is_seen() -> None:
    text = "    rorqual train sft task=families out=runs/a\n    rorqual chat runs/b\n\n`rorqual import x runs/c`"
    assert [sorted(made_by(one)) for one in commands(text)] == [["runs/a"], [], ["runs/c"]]
    assert re.findall(RUN, "rorqual eval cascade=runs/a,runs/b") == ["runs/a", "runs/b"]
