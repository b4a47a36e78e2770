"""Rewards of a group and what is taught of them: length's punishment (DAPO), advantages (R1, Dr. GRPO)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """DAPO eq. 13: 0 up to max_tokens - buffer tokens, from there down to -1 at max_tokens and beyond. `buffer` 0: always 0."""
    free = max_tokens - buffer
    if not buffer or length <= free:
        return 0.0
    return max(-1.0, (free - length) / buffer)


def group_advantages(rewards: Sequence[float], graded: Sequence[bool], *, std: bool) -> npt.NDArray[np.float64]:
    """Reward less the group's mean, over its deviation (R1 eq. 3) unless `std` is off (Dr. GRPO). One that is not graded
    is no member of its group: its advantage is 0."""
    given, among = np.asarray(rewards, dtype=np.float64), np.asarray(graded, dtype=bool)
    advantages = np.zeros(len(given))
    if among.any():
        advantages[among] = given[among] - given[among].mean()
        deviation = given[among].std()
        if std and deviation > 0:
            advantages[among] /= deviation
    return advantages
