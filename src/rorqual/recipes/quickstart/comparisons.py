"""The report's comparisons: paired differences between two evaluations, over all problem families and for each family.

The confidence intervals are valid for the models of this one quickstart. Comparing training methods needs several seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rorqual.core.records import Thinking
from rorqual.evals.compare import Comparison, SampleMeasure, compare_pair, did_think, is_right
from rorqual.evals.evaluation import Evaluation, Grain
from rorqual.evals.stats import Interval
from rorqual.evals.table import comparison_table
from rorqual.report.table import Table

CONFIDENCE = 0.99
Evaluations = Mapping[tuple[str, Thinking], Evaluation]


@dataclass(frozen=True)
class ReportComparison:
    """Two evaluations of the same problems, and the measure in which the report compares them."""

    title: str
    before: tuple[str, Thinking]
    after: tuple[str, Thinking]
    measure: SampleMeasure = is_right

    def rows(self, evaluations: Evaluations, grain: Grain) -> list[Comparison]:
        """Return the paired differences between the two evaluations, over all families or for each family, as `grain`
        selects."""
        both = (evaluations[self.before], evaluations[self.after])
        return compare_pair(*both, grain=grain, measure=self.measure, confidence=CONFIDENCE)

    def table(self, evaluations: Evaluations) -> Table:
        """Return a table of the paired differences over all families and for each family."""
        return comparison_table([*self.rows(evaluations, "all"), *self.rows(evaluations, "family")], self.title)


OWN_CHOICE = ReportComparison("right by own choice: before, then after GRPO", ("before", "auto"), ("after", "auto"))
OF_TEACHER = (
    OWN_CHOICE,
    ReportComparison("right when made to think: before, then after GRPO", ("before", "on"), ("after", "on")),
    ReportComparison("thinks by own choice: before, then after GRPO", ("before", "auto"), ("after", "auto"), did_think),
    ReportComparison("right after GRPO: at once, then made to think", ("after", "off"), ("after", "on")),
)
OF_STUDENTS = {
    "distilled-over-reinforced": ReportComparison("right: reinforced, then distilled", ("reinforced", "auto"), ("distilled", "auto")),
    "distilled-over-base": ReportComparison("right: base, then distilled", ("student-base", "auto"), ("distilled", "auto")),
    "reinforced-over-base": ReportComparison("right: base, then reinforced", ("student-base", "auto"), ("reinforced", "auto")),
    "distilled-over-answers": ReportComparison("right: answers alone, then distilled", ("answers-only", "auto"), ("distilled", "auto")),
}  # fmt: skip


def sign_of(interval: Interval) -> Literal["higher", "lower", "open"]:
    """Return `higher` or `lower` if an interval lies above or below zero, or `open` if the interval contains zero."""
    return "higher" if interval.low > 0 else "lower" if interval.high < 0 else "open"
