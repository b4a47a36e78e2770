"""The base class of experiments. An experiment has arms, quantities that are measured on each arm, pairs of arms to compare,
and a rule for the verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rorqual.evals.compare import is_right
from rorqual.evals.evaluation import Evaluation, GradedSample, mean_per_problem
from rorqual.evals.verdict import SEEDS, combine_verdicts
from rorqual.lab.finding import Contrast, Finding, Side, Unit, contrast_of_values, format_value
from rorqual.lab.headline import ClaimPart
from rorqual.lab.job import ExperimentJob
from rorqual.lab.per_problem import Readings, SeedValues, pack_readings
from rorqual.report.table import Table
from rorqual.tasks.task import Verdict as Graded

FIRST_SEED = 100
"""First seed of the published results. Settings were chosen with seeds below `FIRST_SEED`, on problems of the dev
split."""


@dataclass(frozen=True)
class Quantity:
    """The unit of a measured quantity. With `shares`, each value is the share of right samples of one problem, and the interval
    of a contrast is at least as wide as a score interval. An `exact` quantity is computed from the configuration."""

    unit: Unit = "number"
    shares: bool = False
    exact: bool = False


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
                yield contrast_of_values(
                    self.question, *values, unit=unit, of=self.of or group, shares=quantity.shares, exact=quantity.exact
                )

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
    wording: Mapping[str, str]
    """The words of the headline for each quantity, arm and group of a claimed pair, such as "the held-out loss", "with the router
    bias" and "in layer 1". The group "all" has no words."""
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

    def runs_of(self, arm: str) -> tuple[str, ...]:
        """Return the names of the runs that are measured in an arm, as paths in the seed's folder."""
        return (arm,)

    def judgement(self, contrasts: Sequence[Contrast], void: Mapping[str, str] = {}) -> dict[str, Any]:
        """Return the fields `verdict`, `headline` and `words` of a finding with these contrasts.

        The verdict depends only on the contrasts that are parts of the claim. A part that was not measured is open. `void` maps
        each question that has no verdict to the reason, and the parts with this question are open. The headline has one sentence
        for each part. `words` has the figures and the goal of each part, and the reasons.
        """
        parts = self.claim_parts(contrasts, void)
        goals = (
            f"{one.question} ({one.of}): {one.text()}. Goal: {part.side} {format_value(part.bound, one.unit)}: {part.verdict}."
            for part in parts
            if (one := part.contrast)
        )
        return {
            "verdict": combine_verdicts([part.verdict or "open" for part in parts]),
            "headline": " ".join(part.sentence() for part in parts),
            "words": (*goals, *dict.fromkeys(void.values())),
        }

    def claim_parts(self, contrasts: Sequence[Contrast], void: Collection[str] = ()) -> list[ClaimPart]:
        """Return the parts of the claim with their verdicts by the contrasts."""
        found = {(contrast.question, contrast.of): contrast for contrast in reversed(contrasts)}
        return [
            self._claim_part(pair, of, found.get((pair.question, of)), pair.question in void)
            for pair in self.pairs
            for of in pair.claimed
        ]

    def _claim_part(self, pair: ArmPair, of: str, contrast: Contrast | None, void: bool) -> ClaimPart:
        group = "" if of in ("all", pair.of) else f" {self.wording[of]}"
        return ClaimPart(
            measure=self.wording[pair.quantity],
            a=self.wording[pair.a],
            b=self.wording[pair.b],
            where=group + "".join(f" at equal {name}" for name in pair.equal),
            side=pair.side,
            bound=pair.bound,
            unit="%" if pair.relative else self.quantities[pair.quantity].unit,
            contrast=contrast,
            verdict=None if contrast is None else "open" if void else contrast.judge(pair.bound, pair.side),
        )

    def conclude(self, places: Mapping[int, Path]) -> Finding:
        """Return the finding from the finished jobs of all seeds. The same files give the same finding."""
        return self.judge_seeds({seed: pack_readings(self.read(place)) for seed, place in places.items()})

    def judge_seeds(self, per_problem: Mapping[int, SeedValues]) -> Finding:
        """Return the finding from the value of each problem for each seed, such as those that a finding stores."""
        seeds = [values.readings() for values in per_problem.values()]
        contrasts = [one for pair in self.pairs for one in pair.contrasts(seeds, self.quantities[pair.quantity])]
        void = {pair.question: text for pair in self.pairs if (text := pair.describe_unequal_quantity(seeds))}
        found = {(contrast.question, contrast.of) for contrast in contrasts}
        for pair in self.pairs:
            if any((pair.question, of) not in found for of in pair.claimed):
                void[pair.question] = f"{pair.question}: nothing was measured in both arms, so there is no verdict."
        if objection := self.reason_for_no_verdict(seeds):
            void = {pair.question: objection for pair in self.pairs}
        arms = dict.fromkeys(arm for quantity in seeds[0].values() for arm in quantity)
        return Finding(
            experiment=self.name,
            title=self.title,
            claim=self.claim,
            source=self.source,
            seeds=tuple(per_problem),
            contrasts=tuple(contrasts),
            tables=tuple(self._table(name, seeds, tuple(per_problem)) for name in self.quantities if name in seeds[0]),
            runs={
                arm: tuple(f"seed-{seed}/{run}" for seed in per_problem for run in self.runs_of(arm)) for arm in arms
            },
            per_problem=tuple(per_problem.values()),
            **self.judgement(contrasts, void),
        )

    def judge_again(self, finding: Finding) -> Finding:
        """Apply the current claim and rule to a stored finding: to the values of each problem, or in an older finding to its
        contrasts. An older finding whose words give a reason for no verdict stays open."""
        if finding.per_problem is None:
            reason = next((words for words in finding.words if "no verdict" in words), "")
            update = self.judgement(finding.contrasts, {pair.question: reason for pair in self.pairs if reason})
        else:
            judged = self.judge_seeds(dict(zip(finding.seeds, finding.per_problem, strict=True)))
            update = judged.model_dump(include={"verdict", "headline", "words", "contrasts", "tables"})
        return Finding.model_validate(finding.model_dump() | {"title": self.title, "claim": self.claim} | update)

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
