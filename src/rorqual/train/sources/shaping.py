"""Reward shaping: the length penalty of DAPO, and the group-relative advantages of R1 and Dr.GRPO."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """Return DAPO's length penalty (eq. 13): 0 up to max_tokens - buffer tokens, then falling linearly to -1 at max_tokens.

    `buffer=0` disables the penalty.
    """
    unpenalized = max_tokens - buffer
    if not buffer or length <= unpenalized:
        return 0.0
    return max(-1.0, (unpenalized - length) / buffer)


def group_advantages(rewards: Sequence[float], graded: Sequence[bool], *, std: bool) -> npt.NDArray[np.float64]:
    """Return each reward minus the mean of its group. With `std`, divide by the group's standard deviation (R1, eq. 3).

    Without `std`, the advantages are those of Dr.GRPO. The mean and the standard deviation leave out ungraded samples. The
    advantage of an ungraded sample is 0.
    """
    values, is_graded = np.asarray(rewards, dtype=np.float64), np.asarray(graded, dtype=bool)
    advantages = np.zeros(len(values))
    if is_graded.any() and np.ptp(values[is_graded]):  # the mean of equal rewards may be rounded
        advantages[is_graded] = values[is_graded] - values[is_graded].mean()
        if std:
            advantages[is_graded] /= values[is_graded].std()
    return advantages
