"""Every code block of the docs: Python and JSON can be read, commands name verbs that exist, and examples print what the page shows."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rorqual.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.M | re.S)
LANGUAGES = {"yaml", "", "bash", "js", "json", "python", "sh", "text"}
VERBS = {command.name for command in app.registered_commands}


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language, text) of each block of a page."""
    return [(language, text) for _, language, text in BLOCK.findall(path.read_text(encoding="utf-8"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "docs").as_posix()


EXAMPLES = [
    pytest.param(code, shown, id=f"{name_of(path)} {order}")
    for path in PAGES
    if path.parent.name != "tour"  # test_tour.py runs these
    for order, ((language, code), (follows, shown)) in enumerate(zip(blocks(path), [*blocks(path)[1:], ("", "")]))
    if language == "python" and follows == "text" and not re.match(r"# \w+\.py\n", code) and "runs/" not in code
]
"""Python that needs no run, and the output that the page shows under it."""


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_can_be_read(path: Path) -> None:
    for language, text in blocks(path):
        assert language in LANGUAGES, f"```{language}"
        if language == "python":
            ast.parse(text)
        elif language == "json":
            for line in text.strip().split("\n"):
                json.loads(line)
        elif language in ("sh", "bash"):
            done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{text}\n{done.stderr}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_is_a_verb(path: Path) -> None:
    """In blocks, indented lines and code in the text."""
    text = path.read_text(encoding="utf-8")
    for verb in re.findall(r"(?:^|`|\| |; do |\n {4}|=\S+ )rorqual ([a-z]+)", text, re.M):
        assert verb in VERBS, f"{name_of(path)}: rorqual {verb}"


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 12


@pytest.mark.parametrize(("code", "shown"), EXAMPLES)
def test_an_example_prints_what_the_page_shows(code: str, shown: str) -> None:
    """In a process of its own: here other tests have registered kinds."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip() == shown.rstrip()


def test_the_page_on_plugins_runs_as_shown(tmp_path: Path) -> None:
    """Its files, its commands in order with the output under them, and its test."""
    shell = f'rorqual() {{ {sys.executable} -m rorqual "$@"; }}; python() {{ {sys.executable} "$@"; }}; '
    page = blocks(ROOT / "docs/how-to/plugins.md")
    for (language, text), (follows, shown) in zip(page, [*page[1:], ("", "")]):
        if language == "python":
            (tmp_path / text.split()[1]).write_text(text, encoding="utf-8")
        elif language == "sh":
            done = subprocess.run(
                ["bash", "-c", shell + text], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() == (shown.strip() if follows == "text" else ""), done.stdout
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "test_mine.py"]
    done = subprocess.run(test, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
