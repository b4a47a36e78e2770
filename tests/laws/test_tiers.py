"""The tiers of the suite: what they name exists, and each catches what it must (scripts/tiers.py writes tests/tiers.json)."""

from __future__ import annotations

import ast
import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUTANTS = runpy.run_path(str(ROOT / "scripts" / "tiers.py"))["MUTANTS"]
NAMED = json.loads((ROOT / "tests" / "tiers.json").read_text(encoding="utf-8"))
SLOW, FULL = (set(NAMED["tests"][mark]) for mark in ("slow", "full"))
BY_BROWSER = {
    "a new chat does not stop the reply of the old one",
    "a thought is sent again as if it had been said",
    "a thought's time runs on while the answer is written",
    "what stands between two prices is a formula",
    "whoever types another key sees the conversation of the first",
    "the trace page opens at the first step",
    "the trace page's steps stand at equal distances, whatever their numbers",
}
"""Bugs in what a browser runs: only a browser or Node sees them."""


@pytest.mark.parametrize("mark", ["slow", "full"])
def test_every_test_that_is_named_exists(mark: str) -> None:
    for name in NAMED["tests"][mark]:
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, name
    assert not SLOW & FULL


def test_a_test_that_starts_a_browser_is_full(request: pytest.FixtureRequest) -> None:
    marked = [item for item in request.session.items if item.get_closest_marker("browser")]
    assert all(item.get_closest_marker("full") for item in marked)


def test_make_test_catches_every_bug_and_make_test_fast_four_fifths() -> None:
    tests = {mutant.name: {test.partition("[")[0] for test in mutant.tests} for mutant in MUTANTS}
    assert {name for name, found in tests.items() if found <= FULL} == BY_BROWSER
    assert sum(not found <= SLOW | FULL for found in tests.values()) >= 0.8 * len(tests)


def test_they_keep_to_their_core_seconds() -> None:
    """As measured when the file was written; pytest's start and collection come on top."""
    assert NAMED["core_seconds"]["test-fast"] <= 150 and NAMED["core_seconds"]["test"] <= 900
