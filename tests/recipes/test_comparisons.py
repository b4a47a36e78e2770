"""Each comparison of the quickstart's report compares what its title says, with the figures of `compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rorqual.evals.compare import compare_pair, did_think, is_right
from rorqual.evals.stats import Interval
from rorqual.recipes.quickstart.comparisons import OF_STUDENTS, OF_TEACHER, OWN_CHOICE, sign_of
from rorqual.recipes.quickstart.findings import read_findings


def test_each_comparison_compares_what_its_title_says() -> None:
    assert [(" ".join(one.before), " ".join(one.after), one.measure) for one in OF_TEACHER] == [
        ("before auto", "after auto", is_right),
        ("before on", "after on", is_right),
        ("before auto", "after auto", did_think),
        ("after off", "after on", is_right),
    ]
    assert OF_TEACHER[0] is OWN_CHOICE
    for name, one in OF_STUDENTS.items():
        after, _, before = name.partition("-over-")
        folders = {"base": "student-base", "answers": "answers-only"}
        assert (one.before, one.after, one.measure) == (
            (folders.get(before, before), "auto"),
            (after, "auto"),
            is_right,
        )


def test_rows_are_those_of_compare_at_99_percent(quickstart_folder: Path, add_students: Callable[..., Path]) -> None:
    found = read_findings(add_students(quickstart_folder))
    for one, evaluations in ((OF_TEACHER[2], found.evaluations), (OF_STUDENTS["distilled-over-base"], found.students)):
        both = evaluations[one.before], evaluations[one.after]
        rows = {
            grain: compare_pair(*both, grain=grain, measure=one.measure, confidence=0.99) for grain in ("all", "family")
        }  # type: ignore[arg-type]
        assert {grain: one.rows(evaluations, grain) for grain in rows} == rows  # type: ignore[arg-type]
        table = one.table(evaluations)
        assert table.title == one.title and [row[0] for row in table.rows] == [
            row.family for part in rows.values() for row in part
        ]


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(0.1, 0.2, "higher"), (-0.2, -0.1, "lower"), (-0.1, 0.1, "open"), (0.0, 0.1, "open")]
)
def test_a_sign_needs_an_interval_beside_zero(low: float, high: float, sign: str) -> None:
    assert sign_of(Interval(low, high)) == sign
