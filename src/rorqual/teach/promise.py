"""Calibrated probabilities, and a threshold above which a promised accuracy holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rorqual.core.config import Config, Count, Natural, Share
from rorqual.core.extras import require_extra
from rorqual.evals.calibration import sigmoid

DOUBT = 0.05
"""The probability that the accuracy of answered prompts is below the promised one."""
LEVELS = 10
"""Number of thresholds that are tried: those that answer a tenth of the examples, two tenths, and so on."""
LEAST_GAIN = 0.005
"""Of accuracies that can be promised, one that is higher by less is not listed."""
EDGE = 1e-6
"""Probabilities are kept this far from 0 and 1 before their log-odds are taken."""


class PlattCalibration(Config):
    """The probability that an answer is right: a logistic function of the log-odds of a rung's own probability (Platt 1999)."""

    slope: float = 1.0
    intercept: float = 0.0

    def probability(self, sure: float) -> float:
        """Return the probability that an answer is right of which the rung is `sure`."""
        return sigmoid(self.slope * _log_odds(sure) + self.intercept)


class Promise(Config):
    """A promised accuracy of the answers whose probability is at least `threshold`.

    On `of` held-out examples, `answered` have such a probability, and `right` of these answers are right. `bound` is the exact lower 95 %
    bound of the accuracy of answered prompts (Clopper and Pearson 1934).
    """

    accuracy: Share
    threshold: Share
    answered: Count
    right: Natural
    of: Count
    bound: Share

    @property
    def coverage(self) -> float:
        """The share of held-out examples that are answered."""
        return self.answered / self.of


def _log_odds(sure: float) -> float:
    value = min(1 - EDGE, max(EDGE, sure))
    return math.log(value / (1 - value))


def calibrate(sure: Sequence[float], right: Sequence[bool]) -> PlattCalibration:
    """Fit the calibration of a rung from held-out answers. The slope is never negative, so that a surer answer is never less probable."""
    with require_extra("teach", "sklearn"):
        from sklearn.linear_model import LogisticRegression
    rate = (sum(right) + 1) / (len(right) + 2)
    if 0 < sum(right) < len(right):
        fitted = LogisticRegression().fit(np.array([[_log_odds(one)] for one in sure]), np.array(right))
        if (slope := float(fitted.coef_[0, 0])) > 0:
            return PlattCalibration(slope=slope, intercept=float(fitted.intercept_[0]))
    return PlattCalibration(slope=0.0, intercept=math.log(rate / (1 - rate)))


def lower_bound(right: int, total: int, doubt: float = DOUBT) -> float:
    """Return the exact lower bound of a proportion, which is above it with probability `doubt` at most (Clopper and Pearson 1934)."""
    with require_extra("teach", "scipy"):
        from scipy.stats import beta
    return float(beta.ppf(doubt, right, total - right + 1)) if right else 0.0


@dataclass(frozen=True)
class _Level:
    """The `answered` examples whose probability is at least `threshold`, of which `right` are answered rightly. `left_out` says whether the
    example that is left out of a test is a right one. `doubt` is the level's own part of `DOUBT`."""

    threshold: float
    answered: int
    right: int
    left_out: bool
    doubt: float

    def lower_bound(self, doubt: float) -> float:
        return lower_bound(self.right - self.left_out, self.answered - 1, doubt)


def _levels(probability: Sequence[float], right: Sequence[bool]) -> Iterator[_Level]:
    """Yield the levels, the strictest first."""
    order = sorted(range(len(right)), key=lambda place: -probability[place])
    doubt = 0.0
    for level in range(1, LEVELS + 1):
        doubt += DOUBT / LEVELS
        if (at := len(order) * level // LEVELS) >= 2:
            threshold = probability[order[at - 1]]
            reached = [right[place] for place in order if probability[place] >= threshold]
            left_out = max(right[place] for place in order if probability[place] == threshold)
            yield _Level(threshold, len(reached), sum(reached), left_out, doubt)
            doubt = 0.0


def possible_promises(probability: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float]]:
    """Return pairs of an accuracy that can be promised and the share of prompts that is answered then, the largest share first.

    All bounds hold together with probability 1 - `DOUBT` (Bonferroni), so one of them may be chosen after all were seen.
    """
    found: dict[float, float] = {}
    for level in reversed([*_levels(probability, right)]):
        bound = math.floor(1000 * level.lower_bound(level.doubt)) / 1000
        if bound >= max(found, default=0.0) + LEAST_GAIN:
            found[bound] = level.answered / len(right)
    return [*found.items()]


def promise(accuracy: float, probability: Sequence[float], right: Sequence[bool]) -> Promise | None:
    """Return the threshold with the largest coverage for which the promised accuracy holds with probability 1 - `DOUBT`, or None.

    `probability` and `right` are of held-out answers. `LEVELS` thresholds are tested from the strictest on. Each has an equal part of
    `DOUBT`, and a threshold that passes leaves its part to the next (the fallback procedure, Wiens 2003). The test leaves out one example at
    the threshold, because it sets the threshold: a right one if several are equally sure.
    """
    found, doubt = None, 0.0
    for level in _levels(probability, right):
        doubt += level.doubt
        if level.lower_bound(doubt) >= accuracy:
            found = level
        else:
            doubt = 0.0
    if found is None:
        return None
    bound = lower_bound(found.right, found.answered)
    return Promise(
        accuracy=accuracy,
        threshold=found.threshold,
        answered=found.answered,
        right=found.right,
        of=len(right),
        bound=bound,
    )
