"""Every mutant still is what it says: its text stands in the source once, and its tests exist."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from catalogue import MUTANTS
from mutant import Mutant

ROOT = Path(__file__).parent.parent.parent
PITFALLS = (ROOT / "docs" / "explanation" / "pitfalls.md").read_text(encoding="utf-8")


@cache
def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def faults_of(mutant: Mutant) -> Iterator[str]:
    for change in mutant.changes:
        if text_of(change.file).count(change.old) != 1 or change.old == change.new:
            yield f"{mutant.name}: {change.file} does not contain once: {change.old}"
    for test in mutant.tests:
        file, _, name = test.partition("::")
        if not re.search(rf"^def {name}\(", text_of(file), re.MULTILINE):
            yield f"{mutant.name}: no test {test}"


def test_each_applies_and_names_tests_that_exist() -> None:
    assert [fault for mutant in MUTANTS for fault in faults_of(mutant)] == []


def test_no_mutant_uses_a_name_that_is_not_defined(tmp_path: Path) -> None:
    """A test would then stop with a NameError, whatever it asserts."""
    for number, mutant in enumerate(MUTANTS):
        for file in {change.file for change in mutant.changes if change.file.endswith(".py")}:
            text = text_of(file)
            for change in mutant.changes:
                text = text.replace(change.old, change.new) if change.file == file else text
            (tmp_path / f"{number}.py").write_text(text, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "F821,E9",
        "--output-format",
        "concise",
        ".",
    ]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    faults = re.findall(r"^(\d+)\.py:(.*)", done.stdout, re.MULTILINE)
    assert [f"{MUTANTS[int(number)].name}: {fault}" for number, fault in faults] == []


def test_there_are_at_least_ten_of_different_names() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 10


def test_pitfalls_marked_as_mutants_are_in_the_catalogue() -> None:
    caught_by = {test for mutant in MUTANTS for test in mutant.tests}
    marked = [line for line in PITFALLS.splitlines() if line.startswith("| ") and "†" in line]
    assert len(marked) >= 10
    for row in marked:
        assert any(f"{file}::{name}" in caught_by for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)), (
            row
        )
