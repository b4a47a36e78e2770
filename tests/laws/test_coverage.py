"""What docs/results/coverage.json says of the exact intervals is what a sum over all outcomes says, and the interval of pairs holds."""

from __future__ import annotations

import importlib.util
import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from rorqual.evals.stats import hierarchical_difference, paired_interval, wilson

ROOT = Path(__file__).parents[2]
ROWS = json.loads((ROOT / "docs/results/coverage.json").read_bytes())["rows"]
EXACT = "exact, over a grid of rates"


def shares(size: int, nominal: float, rates: list[float]) -> list[float]:
    """Wilson's coverage by its definition: every string of verdicts."""
    found = []
    for rate in rates:
        covered = 0.0
        for verdicts in product((0, 1), repeat=size):
            right = sum(verdicts)
            interval = wilson(right, size, nominal)
            covered += (interval.low <= rate <= interval.high) * rate**right * (1 - rate) ** (size - right)
        found.append(covered)
    return found


@pytest.mark.parametrize("nominal", [0.95, 0.99])
@pytest.mark.parametrize("size", [3, 5])
def test_the_file_says_what_all_outcomes_say(size: int, nominal: float) -> None:
    found = shares(size, nominal, [k / 200 for k in range(1, 200)])
    row = ROWS[f"wilson, {nominal}, {size}, {EXACT}"]
    assert (row["covered"], row["worst"]) == pytest.approx((sum(found) / len(found), min(found)), abs=1e-4)
    pairs = []
    for differ, share in product(
        (0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99), [0.5 + k / 20 for k in range(11)]
    ):
        chance = {1: differ * share, -1: differ * (1 - share), 0: 1 - differ}
        covered = 0.0
        for changes in product((-1, 0, 1), repeat=size):
            interval = paired_interval(changes.count(1), changes.count(-1), size, nominal)
            truth = chance[1] - chance[-1]
            covered += (interval.low - 1e-12 <= truth <= interval.high + 1e-12) * math.prod(chance[c] for c in changes)
        pairs.append(covered)
    row = ROWS[f"paired_interval, {nominal}, {size}, {EXACT}"]
    assert (row["covered"], row["worst"]) == pytest.approx((sum(pairs) / len(pairs), min(pairs)), abs=1e-4)


def test_the_quick_resampling_is_the_bootstrap() -> None:
    """Of four seeds, 40 problems each, against the function that resamples problem by problem."""
    spec = importlib.util.spec_from_file_location("benchmark_coverage", ROOT / "benchmarks" / "coverage.py")
    assert spec is not None and spec.loader is not None
    coverage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(coverage)
    rates = np.array([0.1, 0.25, 0.3, 0.6])
    after = [np.repeat([0.0, 1.0], [40 - round(40 * rate), round(40 * rate)]) for rate in rates]
    slow = hierarchical_difference([np.zeros(40)] * 4, after, 0.9, 20_000).interval
    coverage.RESAMPLES = 20_000
    quick = coverage.resampled(rates, 0.9, np.random.default_rng(1))
    assert (quick.low, quick.high) == pytest.approx((slow.low, slow.high), abs=0.01)


def test_what_holds_is_what_reaches_its_nominal_coverage_less_a_point() -> None:
    assert len(ROWS) == 2 * 4 * (2 + 4 * 3)
    for row in ROWS.values():
        assert row["holds"] == (row["worst"] >= row["nominal"] - 0.01)
        if row["interval"] == "paired_interval":
            assert row["holds"], "the interval that `compare` prints covers what it says at every size"
    assert not ROWS["hierarchical_difference, 0.99, 5, seeds ten points apart"]["holds"]
