"""Every mutant still is what it says: its text stands in the source once, and its tests exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from catalogue import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent.parent


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
