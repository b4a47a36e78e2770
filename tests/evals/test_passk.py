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


@pytest.mark.parametrize("counts", [(4, 2, 5), (4, 5, 1)])
def test_what_cannot_be_estimated_is_refused(counts):
    with pytest.raises(ValueError, match="impossible"):
        pass_at_k(*counts)


def test_the_mean_is_over_problems():
    assert mean_pass_at_k([(4, 4), (4, 0)], 2) == 0.5
