"""What the pages show as the output of `plan` and `inspect` is what these commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from in_process import output_of

DOCS = Path(__file__).parents[2] / "docs"
SHOWN = re.compile(r"^```\w*\n(rorqual (?:plan|inspect) [^\n]*)\n```\n\s*```text\n(.*?)^```", re.M | re.S)
CASES = [
    pytest.param(command, text, id=f"{page.name}: {command}")
    for page in sorted(DOCS.rglob("*.md"))
    for command, text in SHOWN.findall(page.read_text(encoding="utf-8"))
    if "runs/" not in command
]


def test_pages_show_outputs() -> None:
    assert len(CASES) >= 2


@pytest.mark.parametrize(("command", "text"), CASES)
def test_a_page_shows_what_the_command_prints(command: str, text: str) -> None:
    """Line by line, in order; `...` stands for lines that are left out."""
    printed = iter([line.rstrip() for line in output_of(*shlex.split(command)[1:]).splitlines()])
    for line in text.splitlines():
        assert line == "..." or line.rstrip() in printed, line
