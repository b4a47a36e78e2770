"""An interval covers as often as it says, and an exact test is exact."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.evals import stats
from rorqual.evals.stats import (
    Interval,
    difference_over_seeds,
    hierarchical_difference,
    mcnemar,
    paired_interval,
    t_interval,
    t_quantile,
    wilson,
)


@given(st.integers(1, 300), st.data(), st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_wilson_solves_its_own_equation(total, data, confidence):
    """The ends are the rates p at which |x - np| is exactly z standard deviations: the definition, not the formula."""
    right = data.draw(st.integers(0, total))
    interval = wilson(right, total, confidence)
    assert 0 <= interval.low <= right / total <= interval.high <= 1
    mirrored = wilson(total - right, total, confidence)
    assert mirrored.low == pytest.approx(1 - interval.high, abs=1e-12)
    z = {0.5: 0.6744897502, 0.8: 1.2815515655, 0.95: 1.9599639845, 0.99: 2.5758293035}[confidence]
    for end in (interval.low, interval.high):
        if 0 < end < 1:
            assert abs(right - total * end) == pytest.approx(z * math.sqrt(total * end * (1 - end)), rel=1e-6)


def test_impossible_counts_are_refused():
    for right, total in [(-1, 3), (4, 3)]:
        with pytest.raises(ValueError, match="impossible"):
            wilson(right, total)
    with pytest.raises(ValueError, match="range"):
        wilson(1, 3, confidence=95)
    assert wilson(0, 0, 0.8) == Interval(0.0, 1.0, 0.8), "no problem, no knowledge"


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_mcnemar_is_the_count_of_all_ways_to_turn_the_differing_pairs(pairs):
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    differing = [b - a for a, b in pairs if a != b]
    seen = sum(differing)
    sums = [sum(signs) for signs in itertools.product([-1, 1], repeat=len(differing))]
    two = sum(abs(s) >= abs(seen) for s in sums) / len(sums)
    assert mcnemar(before, after) == pytest.approx(two)
    assert mcnemar(after, before) == pytest.approx(two)


def tango(gained: int, lost: int, pairs: int, z: float) -> tuple[float, float]:
    """The definition, written again: the differences whose score, one pair given away, is at most z. The share lost is the one that
    makes the counts likeliest, found by trying."""

    def score(difference: float) -> float:
        shares = np.linspace(max(0.0, -difference), (1 - difference) / 2, 4001)
        with np.errstate(divide="ignore", invalid="ignore"):
            likely = (
                np.where(gained, gained * np.log(shares + difference), 0.0)
                + np.where(lost, lost * np.log(shares), 0.0)
                + np.where(pairs - gained - lost, (pairs - gained - lost) * np.log(1 - 2 * shares - difference), 0.0)
            )
        share = shares[np.nan_to_num(likely, nan=-np.inf).argmax()]
        spread = math.sqrt(max(pairs * (2 * share + difference - difference**2), 1e-300))
        return max(0.0, abs(gained - lost - pairs * difference) - 1) / spread

    inside = [d for d in np.linspace(-1, 1, 4001)[1:-1] if score(d) <= z]
    return min(inside), max(inside)


@pytest.mark.parametrize(("gained", "lost", "pairs"), [(5, 1, 20), (0, 0, 20), (3, 3, 40), (0, 7, 9), (1, 0, 3)])
def test_the_paired_interval_is_what_the_score_does_not_reject(gained: int, lost: int, pairs: int) -> None:
    found = paired_interval(gained, lost, pairs)
    assert (found.low, found.high) == pytest.approx(tango(gained, lost, pairs, 1.959964), abs=1.5e-3)


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60), st.sampled_from([0.8, 0.95, 0.99]))
def test_a_paired_interval_is_never_empty_and_turns_with_its_sides(gained, lost, same, confidence):
    if gained + lost + same == 0:
        return
    pairs = gained + lost + same
    found, turned = paired_interval(gained, lost, pairs, confidence), paired_interval(lost, gained, pairs, confidence)
    assert -1 <= found.low <= (gained - lost) / pairs <= found.high <= 1 and found.low < found.high
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-12)
    assert found.confidence == confidence
    # At nought it decides as McNemar's test with Edwards' correction does.
    z = {0.8: 1.2815515655, 0.95: 1.9599639845, 0.99: 2.5758293035}[confidence]
    edwards = max(0, abs(gained - lost) - 1) > z * math.sqrt(gained + lost)
    assert edwards == (found.low > 0 or found.high < 0)


@pytest.mark.parametrize("confidence", [0.95, 0.99])
@pytest.mark.parametrize("pairs", [3, 5, 20, 40])
def test_the_paired_interval_covers_what_it_says(pairs: int, confidence: float) -> None:
    """Exact, summed over all outcomes; at the worst of these rates too. The bootstrap covered 0.87 of 0.95 at 20 pairs."""
    counts = [(up, down) for up in range(pairs + 1) for down in range(pairs + 1 - up)]
    ends = {count: paired_interval(*count, pairs, confidence) for count in counts}
    for gains, losses in [(0.02, 0.0), (0.05, 0.05), (0.2, 0.02), (0.5, 0.5), (0.99, 0.0), (0.7, 0.29)]:
        covered = 0.0
        for (up, down), found in ends.items():
            if found.low <= gains - losses <= found.high:
                ways = math.comb(pairs, up) * math.comb(pairs - up, down)
                covered += ways * gains**up * losses**down * max(0.0, 1 - gains - losses) ** (pairs - up - down)
        assert covered >= confidence - 0.01, (gains, losses)


def test_no_pair_that_differs_is_no_certainty() -> None:
    found = difference_over_seeds([np.ones(20)], [np.ones(20)])
    assert found.mean == 0.0 and found.interval.low < -0.2 and found.interval.high > 0.2
    seeds = difference_over_seeds([np.ones(20)] * 3, [np.ones(20)] * 3, 0.99)
    end = seeds.interval.high  # of 60 pairs: (60 d - 1)^2 = z^2 60 d (1 - d)
    assert (60 * end - 1) ** 2 == pytest.approx(2.5758293**2 * 60 * end * (1 - end), rel=1e-6)
    assert seeds.interval.low == pytest.approx(-end)


def test_shares_of_several_samples_count_as_their_sums() -> None:
    found = difference_over_seeds([np.array([0.0, 0.25, 1.0, 0.5])], [np.array([0.5, 0.25, 0.75, 1.0])])
    assert found.mean == pytest.approx(0.1875) and found.interval == paired_interval(1.0, 0.25, 4)
    with pytest.raises(ValueError, match="between 0 and 1"):
        difference_over_seeds([np.zeros(1)], [np.full(1, 2.0)])


def test_over_seeds_the_wider_of_bootstrap_and_score_counts() -> None:
    apart = [np.repeat([0.0, 1.0], [20 - n, n]) for n in (2, 10, 18)]
    none = [np.zeros(20)] * 3
    seeds = hierarchical_difference(none, apart, 0.99)
    assert difference_over_seeds(none, apart, 0.99).interval == seeds.interval, "the seeds are further apart"
    alike = [np.repeat([0.0, 1.0], [10, 10])] * 3
    found = difference_over_seeds(none, alike, 0.99)
    score = paired_interval(30, 0, 60, 0.99)
    assert found.interval.low == pytest.approx(score.low) and found.interval.high == pytest.approx(score.high)


@pytest.mark.parametrize(("gained", "lost", "pairs"), [(-1, 0, 3), (2, 2, 3), (0, 0, 0)])
def test_impossible_pairs_are_refused(gained: int, lost: int, pairs: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        paired_interval(gained, lost, pairs)


def test_the_hierarchical_bootstrap_draws_seeds_first():
    """Runs that differ and problems that do not: all of the spread is between runs, as brute force over seeds says."""
    before = [np.zeros(50) for _ in range(3)]
    after = [np.full(50, value) for value in (0.0, 0.3, 0.9)]
    every = np.array([np.mean(c) for c in itertools.product((0.0, 0.3, 0.9), repeat=3)])
    found = hierarchical_difference(before, after, 0.9, samples=20000)
    assert found.mean == pytest.approx(0.4)
    assert found.interval.low == pytest.approx(np.quantile(every, 0.05), abs=1e-9)
    assert found.interval.high == pytest.approx(np.quantile(every, 0.95), abs=1e-9)
    pooled = hierarchical_difference([np.concatenate(before)], [np.concatenate(after)], 0.9)
    assert found.interval.high - found.interval.low > 3 * (pooled.interval.high - pooled.interval.low)


def test_problems_that_all_seeds_share_are_drawn_once_for_all_seeds() -> None:
    """Brute force over all draws of two seeds and two problems, and five seeds that agree are one piece of evidence on 40 problems."""
    change = np.array([[0.0, 1.0], [0.2, 0.4]])
    draws = list(itertools.product((0, 1), repeat=2))
    every = np.array([change[np.ix_(seeds, items)].mean() for seeds in draws for items in draws])
    found = hierarchical_difference([np.zeros(2)] * 2, list(change), 0.8, 40_000, shared=True)
    assert [found.interval.low, found.interval.high] == pytest.approx(
        np.quantile(every, [0.1, 0.9], method="inverted_cdf")
    )
    after = [np.repeat([0.0, 1.0], [30, 10])] * 5
    found = difference_over_seeds([np.zeros(40)] * 5, after, 0.99, shared=True)
    one = hierarchical_difference([np.zeros(40)], after[:1], 0.99)
    assert found.interval.low <= min(one.interval.low, paired_interval(10, 0, 40, 0.99).low) + 0.03
    apart = difference_over_seeds([np.zeros(40)] * 5, after, 0.99)
    assert apart.interval.low > found.interval.low + 0.05, "problems of their own are five times the evidence"


@pytest.mark.parametrize("sides", [([], []), ([np.zeros(3)], [np.zeros(4)]), ([np.zeros(0)], [np.zeros(0)])])
def test_bootstraps_refuse_what_cannot_be_paired(sides):
    with pytest.raises(ValueError, match="cannot be paired"):
        hierarchical_difference(*sides)


@pytest.mark.parametrize(
    ("degrees", "confidence", "value"),
    [(1, 0.95, 12.706), (2, 0.99, 9.925), (4, 0.99, 4.604), (4, 0.95, 2.776), (30, 0.99, 2.750)],
)
def test_students_t_is_that_of_the_tables(degrees: int, confidence: float, value: float) -> None:
    assert t_quantile(0.5 + confidence / 2, degrees) == pytest.approx(value, abs=6e-4)


def test_the_interval_over_seeds_covers_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "t_quantile", cache(t_quantile))  # one value, and some milliseconds each time
    random = np.random.default_rng(0)
    inside = 0
    for values in random.normal(1.0, 2.0, (2000, 5)):
        found = t_interval(values.tolist(), 0.9)
        inside += found.low <= 1.0 <= found.high
    assert inside / 2000 == pytest.approx(0.9, abs=0.02)
    with pytest.raises(ValueError, match="two"):
        t_interval([1.0])
