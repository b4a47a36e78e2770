"""The result of an experiment as one object. The object's JSON file holds everything that the HTML page shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from rorqual.core.config import Config, parse_config
from rorqual.core.records import read_json
from rorqual.evals.compact_verdicts import CompactVerdicts
from rorqual.evals.stats import Interval, difference_over_seeds, hierarchical_difference, t_interval
from rorqual.evals.verdict import CONFIDENCE, SEEDS, Verdict, judge
from rorqual.lab.per_problem import SeedValues
from rorqual.report.chart import Chart
from rorqual.report.table import Table

Unit = Literal["points", "nats", "ratio", "bits", "experts", "tokens", "number"]
Side = Literal["above", "below"]


class Contrast(Config):
    """The difference `b - a` of two arms, with a bootstrap interval that resamples seeds,
    then the items of each seed. `by_seed` lists the means [a, b] of the two arms for every seed. If `exact` is set, the values are
    computed from the configuration, and the difference has no error."""

    question: str
    of: str = "all"
    a: float
    b: float
    difference: float
    low: float
    high: float
    confidence: float = CONFIDENCE
    by_seed: tuple[tuple[float, float], ...]
    unit: Unit = "points"
    exact: bool = False

    @property
    def bootstrap(self) -> Interval:
        """The bootstrap interval, which resamples seeds and then the items of each seed."""
        return Interval(self.low, self.high, self.confidence)

    @property
    def differences(self) -> list[float]:
        """The difference `b - a` of each seed."""
        return [b - a for a, b in self.by_seed]

    def judge(self, bound: float = 0.0, side: Side = "above") -> Verdict:
        """Judge whether the difference lies on `side` of `bound`, by the rule of `rorqual.evals.verdict`. By default, judge
        whether b is above a."""
        if self.exact:
            beyond = (self.difference - bound) * (1 if side == "above" else -1)
            return "holds" if beyond > 0 else "does not hold" if beyond < 0 else "open"
        return judge(self.bootstrap, self.differences, bound, side)

    def text(self) -> str:
        """Return a text with `a`, `b`, their difference, its bootstrap interval and its Student's t interval.

        Shares and their differences are in percentage points.
        """
        a, b = (format_value(value, self.unit) for value in (self.a, self.b))
        text = f"{a} against {b}, {format_value(self.difference, self.unit, signed=True)} {self.unit}"
        if self.exact:
            return f"{text} (exact)"
        return f"{text} (bootstrap {self.interval_text(self.bootstrap)}, Student's t {self.student_text()})"

    def student_text(self) -> str:
        """Return Student's t interval over the seeds as text."""
        if len(self.by_seed) < 2:
            return "one seed"
        return self.interval_text(t_interval(self.differences, self.confidence))

    def interval_text(self, interval: Interval) -> str:
        """Return an interval of the difference as text. An interval of zero width is no interval."""
        if self.exact:
            return "exact"
        if interval.low == interval.high:
            return "none: the same in every seed"
        low, high = (format_value(value, self.unit, signed=True) for value in (interval.low, interval.high))
        return f"{low} to {high}"


TOO_FEW = f"A verdict needs at least {SEEDS} seeds, and there are fewer: open."
PARTIAL = "A verdict needs the full work, without a budget: open."


class Finding(Config):
    """The result of an experiment. `costs` lists, for each job, core-seconds in the order of `seeds`.

    - `headline` has a sentence for each part of the claim, and `words` its figures (`rorqual.lab.headline`). `notes` has further
      figures of an older finding.
    - `runs` names for each arm the runs that were measured: the seed's folder, the run, and the start of the SHA-256 of its
      weights (older findings have no SHA-256). `shared_runs` names the experiments that measure some of the same runs.
    - `per_problem` has the value of each problem for each seed, from which `verdict` can be computed again. It is None in an older
      finding, where `verdicts` may hold the verdict on every problem.

    With fewer than five seeds, or a part of the work (`share` below 1), the verdict of the finding is always open, and `words`
    gives the reason. Both rules also apply when an older file is loaded.
    """

    experiment: str
    title: str
    claim: str
    source: str
    verdict: Verdict
    headline: str = ""
    words: tuple[str, ...]
    notes: tuple[str, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    """Charts of older findings in docs/results/lab. A new finding has no charts."""
    seeds: tuple[int, ...]
    share: float = 1.0
    costs: dict[str, tuple[float, ...]] = {}
    command: str = ""
    made: dict[str, str] = {}
    verdicts: tuple[CompactVerdicts, ...] = ()
    runs: dict[str, tuple[str, ...]] = {}
    shared_runs: dict[str, tuple[str, ...]] = {}
    per_problem: tuple[SeedValues, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _open_with_too_little(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        share, headline, words = given.get("share", 1.0), given.get("headline", ""), tuple(given.get("words", ()))
        reasons = [TOO_FEW] * (len(given.get("seeds", ())) < SEEDS) + [PARTIAL] * (share < 1)
        if not reasons:
            return given
        part = f"With {share:.2%} of the work: " * (share < 1)
        return given | {
            "verdict": "open",
            "headline": part + headline.removeprefix(part),
            "words": (*words, *(reason for reason in reasons if reason not in words)),
        }

    @classmethod
    def load(cls, path: Path) -> Finding:
        """Read a finding's JSON file. If the file is missing or invalid, raises a DataError that names the file."""
        data = read_json(path, "the finding", "Give the JSON file that `rorqual lab NAME` wrote.")
        return parse_config(cls, data, where=str(path))


def contrast_of_values(
    question: str,
    a: Sequence[Sequence[float]],
    b: Sequence[Sequence[float]],
    *,
    unit: Unit,
    of: str = "all",
    shares: bool = False,
    exact: bool = False,
) -> Contrast:
    """Compare the values of `b` with the values of `a`. `a` and `b` have one sequence per seed. The i-th values of a seed in
    `a` and `b` belong to the same item. With `shares`, the values are shares of right answers, and the interval of the
    difference is at least as wide as the score interval.
    """
    olds, news = [np.asarray(x, float) for x in a], [np.asarray(x, float) for x in b]
    difference = (difference_over_seeds if shares else hierarchical_difference)(olds, news, CONFIDENCE, 20_000)
    by_seed = tuple((float(x.mean()), float(y.mean())) for x, y in zip(olds, news, strict=True))
    return Contrast(
        question=question,
        of=of,
        a=float(np.mean([x for x, _ in by_seed])),
        b=float(np.mean([y for _, y in by_seed])),
        difference=difference.mean,
        low=difference.interval.low,
        high=difference.interval.high,
        by_seed=by_seed,
        unit=unit,
        exact=exact,
    )


def format_value(value: float, unit: Unit, *, signed: bool = False) -> str:
    """Return `value` as text in its unit, or "" for NaN. A share (unit `points`) is formatted in percent."""
    if value != value:
        return ""
    if unit == "number":
        return f"{value:{'+' if signed else ''},.{0 if value == round(value) else 2}f}"
    scaled, digits = (100 * value, 1) if unit == "points" else (value, {"nats": 4, "bits": 4, "tokens": 1}.get(unit, 3))
    return f"{scaled:{'+' if signed else ''}.{digits}f}"
