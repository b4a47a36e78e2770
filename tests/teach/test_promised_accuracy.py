"""The promise of an accuracy: exact bounds, the order of tests, ties, too few rows, and simulations in which it must hold."""

from __future__ import annotations

import math
import random

import pytest
from scipy.stats import binomtest

from rorqual.teach.promise import DOUBT, LEVELS, calibrate, lower_bound, possible_promises, promise


def tail(right: int, total: int, accuracy: float) -> float:
    """Return the probability of at least `right` right answers of `total`, if the accuracy is `accuracy`."""
    return math.fsum(math.comb(total, k) * accuracy**k * (1 - accuracy) ** (total - k) for k in range(right, total + 1))


def plain_threshold(accuracy: float, probability: list[float], right: list[bool]) -> float | None:
    """Test the levels one after another, by sums of binomial probabilities instead of bounds."""
    rows = sorted(zip(probability, right, strict=True), reverse=True)
    found, doubt = None, 0.0
    for level in range(1, LEVELS + 1):
        doubt += DOUBT / LEVELS
        answered = len(rows) * level // LEVELS
        if answered < 2:
            continue
        threshold = rows[answered - 1][0]
        # One example at the threshold is left out. Of equally sure ones it is a right one, so that the test is not too easy.
        tested = [row for row in rows if row[0] >= threshold]
        tested.remove(max(row for row in tested if row[0] == threshold))
        if tail(sum(one for _, one in tested), len(tested), accuracy) <= doubt:
            found = threshold
        else:
            doubt = 0.0
    return found


@pytest.mark.parametrize("doubt", [0.05, 0.005])
def test_the_bound_is_that_of_an_exact_test(doubt: float) -> None:
    for total in (1, 2, 7, 40):
        for right in range(total + 1):
            found = lower_bound(right, total, doubt)
            exact = binomtest(right, total, alternative="greater").proportion_ci(1 - doubt, method="exact").low
            assert found == pytest.approx(exact, abs=1e-12)
            assert right == 0 == found or tail(right, total, found) == pytest.approx(doubt, rel=1e-9)
    assert lower_bound(58, 58) < 0.95 <= lower_bound(59, 59), "fewer perfect rows cannot promise 95 %"


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_the_threshold_is_that_of_a_plain_procedure(digits: int) -> None:
    """With few digits, many examples are equally sure."""
    rng, found = random.Random(digits), list[float | None]()
    for _ in range(150):
        accuracy, count = rng.choice([0.6, 0.8, 0.9, 0.95]), rng.choice([3, 10, 19, 60, 150])
        sure = [round(rng.random(), digits) for _ in range(count)]
        right = [rng.random() < 0.5 + one * rng.choice([0.3, 0.6]) for one in sure]
        made = promise(accuracy, sure, right)
        found.append(made and made.threshold)
        assert found[-1] == plain_threshold(accuracy, sure, right)
        if made is not None:
            answered = [was for one, was in zip(sure, right, strict=True) if one >= made.threshold]
            assert (made.answered, made.right, made.of) == (len(answered), sum(answered), count)
            assert made.coverage == len(answered) / count and made.accuracy == accuracy
            assert made.bound == lower_bound(sum(answered), len(answered))
    assert 20 < found.count(None) < 145


@pytest.mark.parametrize(("accuracy", "fewest"), [(0.8, 25), (0.9, 52), (0.95, 105), (0.99, 529)])
def test_too_few_rows_promise_nothing(accuracy: float, fewest: int) -> None:
    """All rows are right, and a tenth of the doubt is left for the last level."""
    assert 1 - accuracy ** (fewest - 2) < (1 - DOUBT / LEVELS) and accuracy ** (fewest - 1) <= DOUBT / LEVELS
    sure = [1 - place / 1000 for place in range(fewest)]
    assert promise(accuracy, sure[1:], [True] * (fewest - 1)) is None
    made = promise(accuracy, sure, [True] * fewest)
    assert made is not None and made.answered == fewest
    assert promise(accuracy, sure, [False] * fewest) is None and promise(accuracy, [], []) is None


def test_equally_sure_rows_are_answered_together_or_not_at_all() -> None:
    """Nearest neighbours and the most frequent answer give many answers the same probability."""
    sure = [0.99] * 150 + [0.5] * 150
    right = [True] * 150 + [place % 2 == 0 for place in range(150)]
    made = promise(0.95, sure, right)
    assert made is not None and (made.threshold, made.answered) == (0.99, 150)
    assert promise(0.95, [0.7] * 300, right) is None


@pytest.mark.parametrize("digits", [1, 9])
def test_a_population_below_the_promise_gets_one_in_few_draws(digits: int) -> None:
    """Whatever the threshold is, answers are right in 94.9 of 100 cases, so that each promise of 95 % is broken."""
    rng, draws = random.Random(0), 400
    broken = 0
    for _ in range(draws):
        sure = [round(rng.random(), digits) for _ in range(300)]
        broken += promise(0.95, sure, [rng.random() < 0.949 for _ in sure]) is not None
    assert broken / draws <= DOUBT + 3 * math.sqrt(DOUBT * (1 - DOUBT) / draws)
    assert broken > 0, "the whole doubt is used"


def test_each_listed_promise_can_be_given_and_all_hold_together() -> None:
    """The rung is right in `one` of the cases of which it is `one` sure."""
    rng, draws, broken = random.Random(3), 200, 0
    for _ in range(draws):
        sure = [0.7 + 0.3 * rng.random() for _ in range(300)]
        listed = possible_promises(sure, right := [rng.random() < one for one in sure])
        assert listed == sorted(listed) and [share for _, share in listed] == sorted(
            (s for _, s in listed), reverse=True
        )
        assert (
            listed[0][1] == 1
            and listed[0][0]
            == math.floor(1000 * lower_bound(sum(right) - right[sure.index(min(sure))], 299, 0.005)) / 1000
        )
        for accuracy, share in listed:
            made = promise(accuracy, sure, right)
            assert made is not None and made.coverage >= share
        broken += any((2 - 0.3 * share) / 2 < accuracy for accuracy, share in listed)
    assert broken / draws <= DOUBT
    assert possible_promises([], []) == [] == possible_promises(sure, [False] * 300)


def test_the_promise_holds_for_an_overconfident_rung_where_its_own_probability_fails() -> None:
    """The rung is right in `one` ** 3 of the cases of which it is `one` sure."""
    rng, draws = random.Random(1), 400
    broken = made = 0
    for _ in range(draws):
        sure = [rng.random() ** 0.1 for _ in range(300)]
        right = [rng.random() < one**3 for one in sure]
        calibration = calibrate(sure, right)
        found = promise(0.85, [calibration.probability(one) for one in sure], right)
        if found is not None:
            made += 1
            broken += accuracy_above(min(one for one in sure if calibration.probability(one) >= found.threshold)) < 0.85
    assert made > draws / 2 and broken / draws <= DOUBT + 3 * math.sqrt(DOUBT * (1 - DOUBT) / draws)
    assert accuracy_above(0.85) < 0.85, "a threshold on the rung's own probability breaks the promise"


def accuracy_above(lowest: float) -> float:
    """Return the accuracy of answers of which the rung is at least `lowest` sure, by integrating over the density 10 x ** 9."""
    return (1 - lowest**13) * 10 / 13 / (1 - lowest**10)


def test_a_calibration_keeps_the_order_and_fits_the_rate_of_right_answers() -> None:
    rng = random.Random(2)
    for slope in (3, 1, -2):
        sure = [0.0, 1.0, *(rng.random() for _ in range(200))]
        right = [rng.random() < 1 / (1 + math.exp(-slope * (one - 0.3) * 3)) for one in sure]
        made = calibrate(sure, right)
        found = [made.probability(one) for one in sorted(sure)]
        assert found == sorted(found) and found[0] > 0 and found[-1] < 1
        assert math.fsum(found) == pytest.approx(sum(right), abs=0.6)
        assert (made.slope > 0) == (len({*found}) > 1) == (slope > 0), "never less probable if surer"


@pytest.mark.parametrize("all_right", [True, False])
def test_a_calibration_of_equal_results_is_their_rate(all_right: bool) -> None:
    made = calibrate([0.2, 0.9, 0.7], [all_right] * 3)
    assert made.slope == 0
    assert made.probability(0.01) == made.probability(0.99) == pytest.approx(4 / 5 if all_right else 1 / 5)
