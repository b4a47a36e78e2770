"""Every mutant still is what it says: its text stands in the source once, and its tests exist."""

from __future__ import annotations

import re
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
