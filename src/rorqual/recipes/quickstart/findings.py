"""The data of the quickstart's report, read from its folder. Errors name the missing or invalid file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import field_validator

from rorqual.core.config import Config, parse_config
from rorqual.core.errors import DataError
from rorqual.core.ledger import AMOUNTS, CORE_HOUR, LedgerEntry, sum_entries
from rorqual.core.records import RunDir, Thinking, read_json
from rorqual.evals.evaluation import Evaluation
from rorqual.recipes.quickstart.paths import MODES, WHEN, QuickstartPaths

REMEDY = "Repeat the command that made this folder: it resumes."
Record = dict[str, Any]


class Branch(Config):
    """A model in the student comparison, with the thinking modes of its evaluations and the stages that make up its
    cost.

    The cost of a student excludes the training of the base student, which all branches share.
    """

    name: str
    title: str
    modes: tuple[Thinking, ...]
    stages: tuple[str, ...] = ()


class QuickstartSummary(Config):
    """The sizes of the teacher (`model`) and of the `student`, the cost of each stage by the ledger, and the `command` and
    `seed` with which the quickstart can be repeated.

    `branches` is empty if the quickstart trained no student. `samples` counts the teacher's samples. `core_hour` is the price
    of a core-hour in USD.
    """

    model: dict[str, int]
    student: dict[str, int] = {}
    stages: tuple[LedgerEntry, ...]
    branches: tuple[Branch, ...] = ()
    samples: dict[str, int] = {}
    core_hour: float = CORE_HOUR
    seed: int
    command: str

    @field_validator("stages", mode="before")
    @classmethod
    def _parse_stage_costs(cls, stages: list[dict[str, Any]]) -> list[LedgerEntry]:
        return [LedgerEntry(one["name"], **{name: one.get(name, 0) for name in AMOUNTS}) for one in stages]

    def cost_of(self, branch: Branch) -> LedgerEntry:
        """Return the total cost of the stages in `branch.stages`. The name of the returned entry is the branch's title."""
        return sum_entries((cost for cost in self.stages if cost.stage in branch.stages), branch.title)


@dataclass(frozen=True)
class Findings:
    """All data that the report shows. `sft` and `grpo` hold one record per step, in ascending order.

    `evaluations` holds the teacher's evaluations by (before or after GRPO, thinking mode), and `students` the
    evaluations of the branches by (branch, thinking mode).
    """

    sft: Sequence[Record]
    grpo: Sequence[Record]
    evaluations: dict[tuple[str, Thinking], Evaluation]
    summary: QuickstartSummary
    students: dict[tuple[str, Thinking], Evaluation] = field(default_factory=dict)

    def teacher_accuracy(self, when: str, mode: Thinking = "auto") -> float:
        """Return the teacher's accuracy over all families, before or after GRPO (`when`)."""
        return self.evaluations[when, mode].rows("all")[0].accuracy

    def thinking_share(self, when: str) -> float:
        """Return the share of problems on which the teacher chose to think, before or after GRPO (`when`)."""
        return self.evaluations[when, "auto"].rows("all")[0].thought

    def branch_accuracy(self, branch: str, mode: Thinking = "auto") -> float | None:
        """Return the accuracy of a branch over all families, or None if it was not measured."""
        evaluation = self.students.get((branch, mode))
        return evaluation.rows("all")[0].accuracy if evaluation else None

    @property
    def families(self) -> list[str]:
        """The problem families of the teacher's evaluation, in order of first appearance."""
        return list(dict.fromkeys(sample.family for sample in self.evaluations["before", "auto"].samples))


def metric_points(records: Sequence[Record], *names: str) -> list[tuple[float, float]]:
    """Return the (step, value) points of a metric. If a record has several of `names`, the value of the first of these names is used.

    Records without any of `names` are skipped.
    """
    values = [(record["step"], next((record[name] for name in names if name in record), None)) for record in records]
    return [(float(step), float(value)) for step, value in values if value is not None]


def read_findings(folder: Path) -> Findings:
    """Read a folder with the layout that `build_report` describes. Raises DataError with the name of a missing or invalid file."""
    paths = QuickstartPaths(folder)
    summary = parse_config(QuickstartSummary, read_json(paths.summary, "the summary", REMEDY), where=str(paths.summary))
    return Findings(
        sft=_read_metrics(paths.base),
        grpo=_read_metrics(paths.teacher),
        evaluations={(when, mode): _evaluation(paths.evaluation(f"{when}-{mode}")) for when in WHEN for mode in MODES},
        summary=summary,
        students={
            (b.name, mode): _evaluation(paths.evaluation_file(b.name, mode))
            for b in summary.branches
            for mode in b.modes
        },
    )


def _read_metrics(run: RunDir) -> list[Record]:
    if records := list(run.metrics()):
        return records
    raise DataError("the report needs this file, but it has no records", where=str(run.metrics_file), remedy=REMEDY)


def _evaluation(path: Path) -> Evaluation:
    return parse_config(Evaluation, read_json(path, "the evaluation", REMEDY), where=str(path))
