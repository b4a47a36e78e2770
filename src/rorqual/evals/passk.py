"""The unbiased estimator of pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the estimated probability that at least one of `k` samples, drawn without replacement, is correct.

    `samples` is the number of available samples, and `right` is the number of correct samples among them. With n = `samples`
    and c = `right`, the estimate is 1 - C(n-c, k) / C(n, k), equation 1 of Chen et al. 2021 (Evaluating Large Language Models
    Trained on Code). Integer arithmetic avoids rounding. Raises ValueError if `k` exceeds `samples`.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples, {right} of them right, is impossible")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """Return the mean of pass@k over problems. `counts` has (samples, right) for each problem."""
    return math.fsum(pass_at_k(samples, right, k) for samples, right in counts) / len(counts)
