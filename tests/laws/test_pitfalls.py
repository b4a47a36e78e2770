"""The page of pitfalls names tests that exist, and marks as mutants what is one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "explanation" / "pitfalls.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_every_test_named_exists() -> None:
    assert len(NAMED) > 50
    for file, name in NAMED:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), f"{file}::{name}"


def test_files_named_exist() -> None:
    for file in re.findall(r"`((?:scripts|benchmarks)/\w+\.py)`", PAGE):
        assert (ROOT / file).is_file(), file


def test_every_row_names_a_test_or_a_benchmark() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert len(rows) > 30
    assert all(re.search(r"`(tests|benchmarks)/", row) for row in rows)
