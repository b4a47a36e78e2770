"""Measure the coverage of each confidence interval at 3, 5, 20 and 40 pairs or seeds.

    python benchmarks/coverage.py --out docs/results/coverage.json

The coverage of intervals of counts (Wilson's, paired) is exact: a sum over all outcomes, as the mean and the worst of a grid of rates.
Intervals over seeds are simulated, with a rate of its own for each seed and 40 problems. `holds` means that the coverage is at least
the nominal one minus one point.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from rorqual.core.records import write_json
from rorqual.evals import stats
from rorqual.evals.stats import (
    Interval,
    paired_interval,
    t_interval,
    wilson,
)
from rorqual.evals.verdict import wider_interval

SIZES = (3, 5, 20, 40)
NOMINAL = (0.95, 0.99)
PROBLEMS, RUNS, RESAMPLES = 40, 1000, 1000
SLACK = 0.01
Row = dict[str, Any]
Draw = Callable[[np.random.Generator, int], np.ndarray]


def alike(random: np.random.Generator, seeds: int) -> np.ndarray:
    """Return the share of problems gained by each seed: the same for all."""
    return np.full(seeds, 0.2)


def apart(random: np.random.Generator, seeds: int) -> np.ndarray:
    """Return shares with a standard deviation of ten points between seeds."""
    return np.clip(random.normal(0.3, 0.1, seeds), 0.0, 1.0)


def one_in_five(random: np.random.Generator, seeds: int) -> np.ndarray:
    """Return 35 points for one seed in five and 3 for the others, as when reinforcement learning often finds nothing."""
    return np.where(random.random(seeds) < 0.2, 0.35, 0.03)


CASES: dict[str, tuple[Draw, float]] = {
    "seeds alike": (alike, 0.2),
    "seeds ten points apart": (
        apart,
        float(np.clip(np.random.default_rng(0).normal(0.3, 0.1, 4_000_000), 0, 1).mean()),
    ),
    "one seed in five 32 points off": (one_in_five, 0.2 * 0.35 + 0.8 * 0.03),
}


def of_rates(total: int, confidence: float) -> Iterator[float]:
    """Yield the exact coverage of Wilson's interval at rates from 0.5 to 99.5 %."""
    found = [wilson(right, total, confidence) for right in range(total + 1)]
    for rate in np.linspace(0.005, 0.995, 199).tolist():
        chances = (math.comb(total, k) * rate**k * (1 - rate) ** (total - k) for k in range(total + 1))
        yield sum(p for p, one in zip(chances, found, strict=True) if one.low <= rate <= one.high)


def of_pairs(pairs: int, confidence: float) -> Iterator[float]:
    """Yield the exact coverage of the paired interval, for 0.5 to 99 % discordant pairs and any share of them gained."""
    counts = [(up, down) for up in range(pairs + 1) for down in range(pairs + 1 - up)]
    found = [paired_interval(up, down, pairs, confidence) for up, down in counts]
    low, high = (np.array([getattr(one, end) for one in found]) for end in ("low", "high"))
    ways = np.array([float(math.comb(pairs, up) * math.comb(pairs - up, down)) for up, down in counts])
    ups, downs = np.array(counts, float).T
    for differ, share in product((0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99), np.linspace(0.5, 1, 11)):
        gains, losses = differ * share, differ * (1 - share)
        chances = ways * gains**ups * losses**downs * (1 - differ) ** (pairs - ups - downs)
        yield float(chances[(low <= gains - losses + 1e-12) & (gains - losses <= high + 1e-12)].sum())


def resampled(rates: np.ndarray, confidence: float, random: np.random.Generator) -> Interval:
    """Compute the interval of `hierarchical_difference` faster, since the sum of a resample of 0s and 1s is binomial."""
    picks = random.integers(len(rates), size=(RESAMPLES, len(rates)))
    means = (random.binomial(PROBLEMS, rates[picks]) / PROBLEMS).mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), confidence)


def over_seeds(confidence: float, seeds: int, case: str) -> dict[str, float]:
    """Return the simulated coverage of each interval over seeds."""
    draw, truth = CASES[case]
    random = np.random.default_rng(seeds)
    inside = dict.fromkeys(OVER_SEEDS, 0)
    for _ in range(RUNS):
        rates = random.binomial(PROBLEMS, draw(random, seeds)) / PROBLEMS
        bootstrap = resampled(rates, confidence, random)
        # As in difference_over_seeds.
        score = paired_interval(float(rates.sum()) * PROBLEMS, 0, seeds * PROBLEMS, confidence)
        both = Interval(min(bootstrap.low, score.low), max(bootstrap.high, score.high), confidence)
        found: dict[str, Interval] = {
            "hierarchical_difference": bootstrap,
            "difference_over_seeds": both,
            "t_interval": t_interval(rates.tolist(), confidence),
            "ends": wider_interval(both, rates.tolist()),
        }
        for name, one in found.items():
            inside[name] += one.low <= truth <= one.high
    return {name: count / RUNS for name, count in inside.items()}


OVER_SEEDS = {
    "hierarchical_difference": "bootstrap over seeds, then problems",
    "difference_over_seeds": "the same, at least as wide as the interval of all pairs",
    "t_interval": "Student's t over the seeds' differences",
    "ends": "the wider of both at each end: what a verdict is by",
}


def row(name: str, what: str, size: int, nominal: float, case: str, covered: float, worst: float | None = None) -> Row:
    """Return one result row. `worst` is the worst coverage of the grid if it is exact; simulations have only `covered`."""
    least = covered if worst is None else worst
    return {
        "interval": name, "what": what, "size": size, "nominal": nominal, "case": case, "covered": round(covered, 4),
        "worst": round(least, 4), "holds": least >= nominal - SLACK,
    }  # fmt: skip


def exact() -> Iterator[Row]:
    """Yield the rows of the intervals of counts."""
    for nominal, size in product(NOMINAL, SIZES):
        for name, what, coverage in (
            ("wilson", "share right of independent problems", of_rates),
            ("paired_interval", "difference of paired verdicts", of_pairs),
        ):
            found = list(coverage(size, nominal))
            yield row(name, what, size, nominal, "exact, over a grid of rates", float(np.mean(found)), min(found))


def simulated() -> Iterator[Row]:
    """Yield the rows of the intervals over seeds."""
    cells = list(product(NOMINAL, SIZES, CASES))
    with ProcessPoolExecutor(initializer=remember) as pool:
        for (nominal, size, case), found in zip(cells, pool.map(over_seeds, *zip(*cells)), strict=True):
            for name, covered in found.items():
                yield row(name, OVER_SEEDS[name], size, nominal, case, covered)


def remember() -> None:
    """Cache Student's quantile, which takes milliseconds to compute."""
    stats.t_quantile = cache(stats.t_quantile)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/coverage.json"))
    out: Path = parser.parse_args().out
    rows = [*exact(), *simulated()]
    for one in rows:
        print(
            f"{one['interval']:24} {one['nominal']} {one['size']:3} {one['case']:32} {one['covered']:.4f} worst {one['worst']:.4f}"
        )
    write_json(out, {
        "command": "python benchmarks/coverage.py",
        "problems_a_seed": PROBLEMS, "runs": RUNS, "resamples": RESAMPLES, "slack": SLACK,
        "rows": {f"{r['interval']}, {r['nominal']}, {r['size']}, {r['case']}": r for r in rows},
    })  # fmt: skip


if __name__ == "__main__":
    main()
