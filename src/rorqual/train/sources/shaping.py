"""Reward shaping within a group: the length penalty (DAPO) and advantages (R1, Dr. GRPO)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """Return DAPO's length penalty (eq. 13): 0 up to max_tokens - buffer, then falling to -1 at max_tokens.

    Longer answers stay at -1. A `buffer` of 0 disables the penalty.
    """
    free = max_tokens - buffer
    if not buffer or length <= free:
        return 0.0
    return max(-1.0, (free - length) / buffer)


def group_advantages(rewards: Sequence[float], graded: Sequence[bool], *, std: bool) -> npt.NDArray[np.float64]:
    """Return each reward minus the group mean, divided by the group's deviation (R1, eq. 3) unless `std` is off (Dr. GRPO).

    An ungraded sample does not count in its group, and its advantage is 0.
    """
    given, among = np.asarray(rewards, dtype=np.float64), np.asarray(graded, dtype=bool)
    advantages = np.zeros(len(given))
    if among.any():
        advantages[among] = given[among] - given[among].mean()
        deviation = given[among].std()
        if std and deviation > 0:
            advantages[among] /= deviation
    return advantages
