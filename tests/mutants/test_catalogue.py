"""Every mutant still is what it says: its text stands in the source once, and its tests exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from catalogue import MUTANTS
from mutant import Mutant

ROOT = Path(__file__).parent.parent.parent
PITFALLS = (ROOT / "docs" / "explanation" / "pitfalls.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_applies_and_names_tests_that_exist(mutant: Mutant) -> None:
    for change in mutant.changes:
        assert (ROOT / change.file).read_text(encoding="utf-8").count(change.old) == 1, change.file
        assert change.old != change.new
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test


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
