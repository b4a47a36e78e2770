"""The result of an experiment as one object. The object is saved as JSON, and the HTML page shows data from this JSON
only."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from rorqual.core.config import Config, parse
from rorqual.core.errors import DataError
from rorqual.evals.compare import Measure, compare_seeds, is_right
from rorqual.evals.evaluation import Evaluation, Grain
from rorqual.evals.stats import Interval, difference_over_seeds, hierarchical_difference, t_interval
from rorqual.evals.verdict import CONFIDENCE, SEEDS, Verdict, ends, judge
from rorqual.evals.verdicts import Verdicts
from rorqual.report.chart import Chart, Series
from rorqual.report.table import Table
from rorqual.tasks.base import Verdict as Graded


class Contrast(Config):
    """The difference `b - a`, with an interval from resampling seeds first, then problems. `by_seed` lists [a, b] of every seed."""

    question: str
    of: str = "all"
    a: float
    b: float
    difference: float
    low: float
    high: float
    confidence: float = CONFIDENCE
    by_seed: tuple[tuple[float, float], ...]
    unit: Literal["points", "nats", "ratio", "bits", "experts"] = "points"

    @property
    def bootstrap(self) -> Interval:
        """The bootstrap interval, which resamples seeds and then the items of each seed."""
        return Interval(self.low, self.high, self.confidence)

    @property
    def differences(self) -> list[float]:
        """The difference `b - a` of each seed."""
        return [b - a for a, b in self.by_seed]

    @property
    def ends(self) -> Interval:
        """The smallest interval that contains the bootstrap interval and Student's t interval."""
        return ends(self.bootstrap, self.differences)

    @property
    def sign(self) -> Verdict:
        """Whether b is above a, by the rule of `rorqual.evals.verdict`."""
        return self.judge()

    def judge(self, bound: float = 0.0, side: Literal["above", "below"] = "above") -> Verdict:
        """Judge whether the difference lies on `side` of `bound`, by the rule of `rorqual.evals.verdict`."""
        return judge(self.bootstrap, self.differences, bound, side)


TOO_FEW = f"A verdict needs at least {SEEDS} seeds, and there are fewer: open."


class Finding(Config):
    """The result of an experiment. `costs` lists, for each job, core-seconds in the order of `seeds`.

    `words` is the result in sentences. `verdicts` holds the verdict of every problem. With fewer than five seeds the
    verdict is always open, and `words` give the reason. The minimum of five seeds also applies when an older file is
    loaded.
    """

    experiment: str
    title: str
    claim: str
    source: str
    verdict: Verdict
    words: tuple[str, ...]
    contrasts: tuple[Contrast, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    seeds: tuple[int, ...]
    share: float = 1.0
    costs: dict[str, tuple[float, ...]] = {}
    command: str = ""
    made: dict[str, str] = {}
    verdicts: tuple[Verdicts, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _enough_seeds(cls, given: Any) -> Any:
        if not isinstance(given, dict) or len(given.get("seeds", ())) >= SEEDS:
            return given
        words = tuple(given.get("words", ()))
        return given | {"verdict": "open", "words": words if TOO_FEW in words else (*words, TOO_FEW)}

    @classmethod
    def load(cls, path: Path) -> Finding:
        """Read a finding's JSON. Raises DataError naming the file if it is missing or invalid."""
        remedy = "Give the JSON file that `rorqual lab NAME` wrote."
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise DataError("the finding does not exist", where=str(path), remedy=remedy) from None
        except ValueError as error:
            raise DataError(f"the file is not valid JSON: {error}", where=str(path), remedy=remedy) from None
        return parse(cls, data, where=str(path))


def contrasts(
    question: str,
    a: Sequence[Evaluation],
    b: Sequence[Evaluation],
    *,
    grain: Grain = "family",
    measure: Measure = is_right,
    confidence: float = CONFIDENCE,
) -> list[Contrast]:
    """Compare `b` with `a`, first over all problems, then by family (or level). `a` and `b` have one evaluation per
    seed."""
    result = []
    for fineness in dict.fromkeys(("all", grain)):
        rows = compare_seeds(a, b, grain=fineness, measure=measure, confidence=confidence, samples=20_000)
        seeds = [
            {(r.family, r.level): r for r in compare_seeds([x], [y], grain=fineness, measure=measure, samples=100)}
            for x, y in zip(a, b, strict=True)
        ]
        for row in rows:
            cell = (row.family, row.level)
            result.append(
                Contrast(
                    question=question,
                    of=row.family if row.level in ("", "all") else f"{row.family} {row.level}",
                    a=row.before,
                    b=row.after,
                    difference=row.difference.mean,
                    low=row.difference.interval.low,
                    high=row.difference.interval.high,
                    confidence=confidence,
                    by_seed=tuple((s[cell].before, s[cell].after) for s in seeds if cell in s),
                )
            )
    return result


def contrast_of_values(
    question: str,
    a: Sequence[Sequence[float]],
    b: Sequence[Sequence[float]],
    *,
    unit: Literal["points", "nats", "ratio", "bits", "experts"],
    of: str = "all",
    confidence: float = CONFIDENCE,
    summary: Callable[[np.ndarray], float] = lambda values: float(values.mean()),
) -> Contrast:
    """Compare any values, such as the losses of documents. `a` and `b` hold one sequence per seed, paired by item."""
    olds, news = [np.asarray(x, float) for x in a], [np.asarray(x, float) for x in b]
    difference = hierarchical_difference(olds, news, confidence, 20_000)
    return Contrast(
        question=question,
        of=of,
        a=float(np.mean([summary(x) for x in olds])),
        b=float(np.mean([summary(x) for x in news])),
        difference=difference.mean,
        low=difference.interval.low,
        high=difference.interval.high,
        confidence=confidence,
        by_seed=tuple((summary(x), summary(y)) for x, y in zip(olds, news, strict=True)),
        unit=unit,
    )


def mean_by_seed(
    evaluations: Sequence[Evaluation], label: str, groups: Sequence[str], measure: Measure = is_right
) -> Series:
    """Return a series of bars, one per family in `groups`. Each bar is the mean over seeds, with its interval.

    The group `all` covers every problem.
    """
    points, low, high, seeds = [], [], [], []
    for place, group in enumerate(groups):
        values = [
            np.asarray(
                [
                    measure(s)
                    for s in evaluation.samples
                    if group in ("all", s.family) and s.verdict is not Graded.UNGRADED
                ]
            )
            for evaluation in evaluations
        ]
        interval = difference_over_seeds([np.zeros(len(v)) for v in values], values, CONFIDENCE, 10_000)
        points.append((float(place), interval.mean))
        low.append(max(0.0, interval.interval.low))
        high.append(interval.interval.high)
        seeds.append([(float(place), float(v.mean())) for v in values])
    by_seed = tuple(tuple(points_of_seed) for points_of_seed in zip(*seeds))
    return Series(label=label, points=tuple(points), low=tuple(low), high=tuple(high), by_seed=by_seed)


def percent(value: float) -> str:
    """Return a share as percent, for sentences and tables."""
    return f"{100 * value:.1f}"


def ends_text(contrast: Contrast) -> str:
    """Return the interval that contains both intervals of a contrast as text, in percent or percentage points."""
    ends = contrast.ends
    return f"{100 * ends.low:+.1f} to {100 * ends.high:+.1f} by the wider of both {contrast.confidence:.0%} intervals"


def contrast_text(contrast: Contrast) -> str:
    """Return a contrast as text: a, b, difference and both intervals. Shares are in percentage points."""
    scale, digits = (100, 1) if contrast.unit == "points" else (1, 4)
    a, b, d, low, high = (scale * v for v in (contrast.a, contrast.b, contrast.difference, contrast.low, contrast.high))
    text = f"{a:.{digits}f} against {b:.{digits}f}, {d:+.{digits}f} {contrast.unit}"
    text += f" ({contrast.confidence:.0%} interval {low:+.{digits}f} to {high:+.{digits}f}"
    if len(contrast.by_seed) > 1:
        student = t_interval(contrast.differences, contrast.confidence)
        text += (
            f", by Student's t over the seeds {scale * student.low:+.{digits}f} to {scale * student.high:+.{digits}f}"
        )
    return text + ")"
