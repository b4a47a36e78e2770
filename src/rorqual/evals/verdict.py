"""The rule for a verdict on a training method: at least five seeds, and two 99 % intervals that agree.

The bootstrap over seeds is too narrow for few seeds, and Student's t interval ignores the problems within each seed
(docs/results/coverage.json). A verdict therefore needs the bootstrap interval and Student's t interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from rorqual.evals.stats import Interval, t_interval

Verdict = Literal["holds", "does not hold", "open"]
SEEDS = 5
"""With fewer than `SEEDS` seeds, every verdict is open."""
CONFIDENCE = 0.99
ROUNDING = 1e-9
"""Values that differ by less are equal: the same shares of right answers can differ in their last bits."""
SIGNS: dict[Verdict, str] = {"holds": "● higher", "does not hold": "✕ lower", "open": "○ open"}
"""The words of a table for the verdict on "after is higher"."""
INTERVALS_NOTE = (
    "Bootstrap intervals resample seeds first, then the items of each seed. With five seeds, their coverage is below "
    "nominal (docs/results/coverage.json). Student's t has nominal coverage if the seeds' differences are normally "
    f"distributed, and is wide. A row is higher or lower if both intervals agree and there are at least {SEEDS} seeds. "
    "There is no correction for the number of rows."
)


def wider_interval(bootstrap: Interval, differences: Sequence[float]) -> Interval:
    """Return the smallest interval that contains the bootstrap interval and Student's t interval over `differences` (one per
    seed).

    With fewer than two differences, the returned interval is unbounded.
    """
    if len(differences) < 2:
        return Interval(-math.inf, math.inf, bootstrap.confidence)
    student = t_interval(differences, bootstrap.confidence)
    return Interval(min(bootstrap.low, student.low), max(bootstrap.high, student.high), bootstrap.confidence)


def judge(
    bootstrap: Interval,
    differences: Sequence[float],
    bound: float = 0.0,
    side: Literal["above", "below"] = "above",
) -> Verdict:
    """Judge whether a difference lies on `side` of `bound`. The verdict is open with fewer than five seeds, below 99 %
    confidence, or if one of the intervals has zero width: equal values in all seeds do not show how much other seeds would vary.

    `differences` has one value per seed. `bootstrap` is the bootstrap interval over seeds and the problems within each
    seed.
    """
    if len(differences) < SEEDS or bootstrap.confidence < CONFIDENCE:
        return "open"
    if min(bootstrap.high - bootstrap.low, max(differences) - min(differences)) < ROUNDING:
        return "open"
    both = wider_interval(bootstrap, differences)
    above, below = both.low > bound, both.high < bound
    if side == "below":
        above, below = below, above
    return "holds" if above else "does not hold" if below else "open"


def combine_verdicts(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on a claim with several parts. The claim holds if all its parts hold, and fails if one of its parts
    fails."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if verdicts and all(verdict == "holds" for verdict in verdicts) else "open"
