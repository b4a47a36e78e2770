"""pass@k is what drawing k of the samples without replacement gives."""

from __future__ import annotations

import itertools

import pytest

from rorqual.evals.passk import mean_pass_at_k, pass_at_k


@pytest.mark.parametrize("samples", range(1, 8))
def test_it_equals_every_way_to_draw(samples):
    for right in range(samples + 1):
        verdicts = [True] * right + [False] * (samples - right)
        for k in range(1, samples + 1):
            draws = list(itertools.combinations(verdicts, k))
            assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_it_never_falls_with_k():
    curve = [pass_at_k(64, 3, k) for k in range(1, 65)]
    assert curve == sorted(curve)
    assert curve[0] == pytest.approx(3 / 64) and curve[-1] == 1.0


def test_large_counts_are_exact():
    assert pass_at_k(100_000, 1, 1) == pytest.approx(1e-5, rel=1e-9)


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ValueError, match="at least 5 samples"):
        pass_at_k(4, 2, 5)
    with pytest.raises(ValueError, match="impossible"):
        pass_at_k(4, 5, 1)
    with pytest.raises(ValueError, match="at least one problem"):
        mean_pass_at_k([], 1)


def test_the_mean_is_over_problems():
    assert mean_pass_at_k([(4, 4), (4, 0)], 2) == 0.5
