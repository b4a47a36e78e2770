"""Pairs of a gold answer and a reply, labelled before a grader ran on them: right, wrong, or unmarked, which counts as wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from graders import PAIRS, Pair, counted, judged, read_pairs  # noqa: E402

MARKED, UNMET, FRESH = (read_pairs(PAIRS / f"{name}.jsonl") for name in ("marked", "unmet", "fresh"))
TASKS = sorted({pair["task"] for pair in MARKED})


@pytest.mark.parametrize("task", TASKS)
def test_every_pair_is_judged_as_it_is_labelled(task: str) -> None:
    pairs = [pair for pair in MARKED if pair["task"] == task]
    found = [(pair, verdict) for pair, verdict in zip(pairs, judged(pairs), strict=True) if verdict != pair["verdict"]]
    assert not [f"{verdict}, but labelled {pair['verdict']}: {pair}" for pair, verdict in found]


def test_pairs_of_a_stranger_are_right_or_not_as_they_are_labelled() -> None:
    """They were written from the text of the task alone. Whether one that is not right is wrong or unmarked is left open."""
    found = zip(FRESH, judged(FRESH), strict=True)
    assert len(FRESH) == 100
    assert not [pair for pair, verdict in found if (verdict == "right") != (pair["verdict"] == "right")]


def test_a_pair_that_needs_a_third_rule_is_refused_never_accepted() -> None:
    """Who meets one of these moves it to the other file."""
    assert {pair["verdict"] for pair in UNMET} == {"right"}
    assert "right" not in judged(UNMET)


def test_half_of_the_pairs_are_adversarial_and_none_is_there_twice() -> None:
    every = [*MARKED, *UNMET]
    assert len({json.dumps(pair | {"verdict": ""}, sort_keys=True) for pair in every}) == len(every) >= 400
    assert 2 * sum(pair["adversarial"] for pair in MARKED) >= len(MARKED)


def test_errors_are_counted_by_kind() -> None:
    right, wrong, unmarked = ({"verdict": name} for name in ("right", "wrong", "unmarked"))
    pairs: list[Pair] = [right, right, right, wrong, wrong, unmarked]
    assert counted(pairs, ["right", "wrong", "ungraded", "right", "wrong", "wrong"]) == {
        "pairs": 6, "wrong accepted": 1, "right refused": 1, "ungraded": 1, "unmarked": 0,
    }  # fmt: skip
