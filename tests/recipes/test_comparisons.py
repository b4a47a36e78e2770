"""Each comparison of the quickstart's report compares what its title says, with the figures of `compare`."""

from __future__ import annotations

import pytest

from rorqual.evals.stats import Interval
from rorqual.recipes.quickstart.comparisons import sign_of


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(0.1, 0.2, "higher"), (-0.2, -0.1, "lower"), (-0.1, 0.1, "open"), (0.0, 0.1, "open")]
)
def test_a_sign_needs_an_interval_beside_zero(low: float, high: float, sign: str) -> None:
    assert sign_of(Interval(low, high)) == sign
