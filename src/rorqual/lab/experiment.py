"""The base class of experiments. An experiment has arms, quantities that are measured on each arm, pairs of arms to compare,
and a rule for the verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rorqual.evals.compare import is_right
from rorqual.evals.evaluation import Evaluation, GradedSample, mean_per_problem
from rorqual.evals.verdict import SEEDS, Verdict, combine_verdicts
from rorqual.lab.finding import Contrast, Finding, Side, Unit, contrast_of_values, format_value
from rorqual.lab.job import ExperimentJob
from rorqual.report.table import Table
from rorqual.tasks.task import Verdict as Graded

Readings = Mapping[str, Mapping[str, Mapping[str, Mapping[Any, float]]]]
"""The readings: the values measured in one seed, as readings[quantity][arm][group][item]. An item is a problem, a document or a
run."""
FIRST_SEED = 100
"""First seed of the published results. Settings were chosen with seeds below `FIRST_SEED`, on problems of the dev
split."""


@dataclass(frozen=True)
class Quantity:
    """The unit of a measured quantity. With `shares`, each value is the share of right samples of one problem, and the interval
    of a contrast is at least as wide as a score interval."""

    unit: Unit = "number"
    shares: bool = False


SHARE = Quantity("points", shares=True)


@dataclass(frozen=True, kw_only=True)
class ArmPair:
    """Two arms that are compared in a quantity. The pair has one contrast for each group in `groups`, or for every group if
    `groups` is empty. A contrast is named `of`, or after its group if `of` is empty.

    The contrasts that `claimed` names are parts of the claim: the difference `b - a` must lie on `side` of `bound`.
    With `relative`, the values of a seed are divided by that seed's mean of arm `a`. `equal` maps each quantity that must be
    equal in both arms to a tolerance. If a quantity in `equal` differs between the arms by more than its tolerance in any seed,
    there is no verdict.
    """

    question: str
    quantity: str
    a: str
    b: str
    groups: tuple[str, ...] = ()
    of: str = ""
    claimed: tuple[str, ...] = ()
    bound: float = 0.0
    side: Side = "above"
    relative: bool = False
    equal: Mapping[str, float] = field(default_factory=dict)

    def contrasts(self, seeds: Sequence[Readings], quantity: Quantity) -> Iterator[Contrast]:
        """Yield a contrast for each group. An item is left out if only one of the two arms has a value for it."""
        first, second = ([one[self.quantity][arm] for one in seeds] for arm in (self.a, self.b))
        for group in self.groups or dict.fromkeys(group for one in first for group in one):
            pairs = [self._pair_by_seed(a.get(group, {}), b.get(group, {})) for a, b in zip(first, second, strict=True)]
            if sides := [pair for pair in pairs if len(pair[0])]:
                values = zip(*sides, strict=True)
                unit: Unit = "ratio" if self.relative else quantity.unit
                yield contrast_of_values(self.question, *values, unit=unit, of=self.of or group, shares=quantity.shares)

    def _pair_by_seed(self, a: Mapping[Any, float], b: Mapping[Any, float]) -> tuple[np.ndarray, np.ndarray]:
        items = [item for item in a if item in b]
        old, new = (np.asarray([values[item] for item in items]) for values in (a, b))
        return (old / old.mean(), new / old.mean()) if self.relative else (old, new)

    def describe_unequal_quantity(self, seeds: Sequence[Readings]) -> str:
        """Return a sentence about the first quantity of `equal` in which the arms differ by more than the tolerance.

        Return "" if all quantities of `equal` are within their tolerance.
        """
        for name, tolerance in self.equal.items():
            ratios = [mean_of(one, name, self.b) / mean_of(one, name, self.a) for one in seeds]
            if any(abs(ratio - 1) > tolerance + 1e-12 for ratio in ratios):
                return (
                    f"{self.question}: the {name} are {min(ratios):.2f} to {max(ratios):.2f} times those of the first arm, by seed. "
                    f"The rule allows a difference of {tolerance:.0%} in each seed, so there is no verdict."
                )
        return ""


class Experiment(ABC):
    """Base class of experiments. `claim` is the statement to test, and `source` names the publication with this statement."""

    name: str
    title: str
    claim: str
    source: str
    seeds: ClassVar[int] = SEEDS
    """Number of seeds of the experiment's published result."""
    first_seed: ClassVar[int] = FIRST_SEED
    """First seed of the published result. This seed is higher than `FIRST_SEED` if results of seed `FIRST_SEED` or later seeds
    were seen before the settings were final."""
    arms: Mapping[str, str]
    """The label of each arm."""
    quantities: Mapping[str, Quantity]
    pairs: tuple[ArmPair, ...]
    note: str = ""
    """A remark that the page shows below the tables."""

    @abstractmethod
    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        """Return the jobs of one seed in dependency order.

        The jobs write to the folder `place`, and do the fraction `share` (0 to 1) of the full work.
        """

    @abstractmethod
    def read(self, place: Path) -> Readings:
        """Return the readings of one seed: what its finished jobs measured. The same files give the same readings."""

    def reason_for_no_verdict(self, seeds: Sequence[Readings]) -> str:
        """Return why no pair of arms can be compared, or "" if all pairs can be compared."""
        return ""

    def verdict(self, contrasts: Sequence[Contrast], void: Sequence[str] = ()) -> Verdict:
        """Return the verdict on the claim. The verdict depends only on the contrasts that are parts of the claim. Each question
        in `void` counts as a part of the claim with the verdict "open".
        """
        undecided: list[Verdict] = ["open" for _ in void]
        return combine_verdicts([verdict for *_, verdict in self._contrasts_with_verdicts(contrasts, void)] + undecided)

    def _contrasts_with_verdicts(
        self, contrasts: Sequence[Contrast], void: Sequence[str]
    ) -> Iterator[tuple[ArmPair, Contrast, Verdict]]:
        for pair in self.pairs:
            for contrast in contrasts:
                if contrast.question == pair.question and contrast.of in pair.claimed:
                    verdict = contrast.judge(pair.bound, pair.side)
                    yield pair, contrast, "open" if pair.question in void else verdict

    def conclude(self, places: Mapping[int, Path]) -> Finding:
        """Return the finding from the finished jobs of all seeds. The same files give the same finding."""
        seeds = [self.read(place) for place in places.values()]
        contrasts = [one for pair in self.pairs for one in pair.contrasts(seeds, self.quantities[pair.quantity])]
        void = {pair.question: text for pair in self.pairs if (text := pair.describe_unequal_quantity(seeds))}
        found = {(contrast.question, contrast.of) for contrast in contrasts}
        for pair in self.pairs:
            if any((pair.question, of) not in found for of in pair.claimed):
                void[pair.question] = f"{pair.question}: nothing was measured in both arms, so there is no verdict."
        if objection := self.reason_for_no_verdict(seeds):
            void = {pair.question: objection for pair in self.pairs}
        goals = [
            f"{contrast.question} ({contrast.of}): {contrast.text()}. "
            f"Goal: {pair.side} {format_value(pair.bound, contrast.unit)}: {verdict}."
            for pair, contrast, verdict in self._contrasts_with_verdicts(contrasts, [*void])
        ]
        return Finding(
            experiment=self.name,
            title=self.title,
            claim=self.claim,
            source=self.source,
            verdict=self.verdict(contrasts, [*void]),
            words=(
                *goals,
                *dict.fromkeys(void.values()),
            ),
            seeds=tuple(places),
            contrasts=tuple(contrasts),
            tables=tuple(self._table(name, seeds, tuple(places)) for name in self.quantities if name in seeds[0]),
        )

    def _table(self, name: str, seeds: Sequence[Readings], numbers: Sequence[int]) -> Table:
        """Return a table of a quantity with one row per arm. A row has the mean over seeds for each group, then each seed's
        mean for the first group."""
        unit, arms = self.quantities[name].unit, seeds[0][name]
        groups = [*dict.fromkeys(group for arm in arms.values() for group in arm)]
        rows = []
        for arm in arms:
            means = [float(np.mean([mean_of(one, name, arm, group) for one in seeds])) for group in groups]
            each = [mean_of(one, name, arm, groups[0]) for one in seeds]
            rows.append((self.arms.get(arm, arm), *(format_value(value, unit) for value in (*means, *each))))
        heads = (
            name,
            *(f"{group}, %" if unit == "points" else group for group in groups),
            *(f"seed {seed}" for seed in numbers),
        )
        return Table(title=name, heads=heads, rows=tuple(rows), note=self.note)


def mean_of(readings: Readings, quantity: str, arm: str, group: str = "") -> float:
    """Return the mean of a quantity over the items of `group`, or of the first group if `group` is empty. Return NaN if the
    group has no items."""
    groups = readings[quantity][arm]
    values = groups.get(group or next(iter(groups)), {})
    return float(np.mean([*values.values()])) if values else float("nan")


def by_family(found: Evaluation, value: Callable[[GradedSample], float] = is_right) -> dict[str, dict[str, float]]:
    """Return the mean value of each problem in two groupings: under "all" for all problems, and by family. If `value` is
    `is_right`, ungraded samples are left out."""
    samples = [sample for sample in found.samples if value is not is_right or sample.verdict is not Graded.UNGRADED]
    families = dict.fromkeys(sample.family for sample in found.samples)
    return {"all": mean_per_problem(samples, value)} | {
        family: mean_per_problem((sample for sample in samples if sample.family == family), value)
        for family in families
    }


def values_in_group_all(values: Sequence[float]) -> dict[str, dict[int, float]]:
    """Return values as the items of the group `all`."""
    return {"all": dict(enumerate(values))}


def scale_amount(full: int, share: float, least: int = 2) -> int:
    """Scale an amount of work, such as steps or problems, by `share`. The scaled amount is at least `least`."""
    return max(least, round(full * share))
