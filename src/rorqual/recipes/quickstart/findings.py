"""The data of the quickstart's report, read from its folder. Errors name the missing or invalid file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict

from rorqual.core.config import Config, parse
from rorqual.core.errors import DataError
from rorqual.core.ledger import CORE_HOUR
from rorqual.core.records import RunDir, Thinking
from rorqual.evals.evaluation import Evaluation
from rorqual.recipes.quickstart.paths import MODES, WHEN, QuickstartPaths

REMEDY = "Repeat the command that made this folder: it resumes."
Record = dict[str, Any]


class ForeignFile(Config):
    """Base class of files that other packages write and may extend. Unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ExpertsReport(ForeignFile):
    """Expert usage: `share` [layer][family][expert] by family, and `load` [layer][expert] over all families."""

    layers: tuple[int | str, ...]
    families: tuple[str, ...]
    share: tuple[tuple[tuple[float, ...], ...], ...]
    load: tuple[tuple[float, ...], ...]


class StageCost(ForeignFile):
    """The cost of one stage: `seconds` of wall-clock time and `core_seconds` of processor time.

    `solved` counts the right answers that the stage produced. `spent_tokens` also counts tokens that were processed
    twice, because the process was killed and resumed.
    """

    name: str
    tokens: float = 0
    flops: float = 0
    solved: float = 0
    core_seconds: float = 0
    seconds: float = 0
    spent_tokens: float = 0

    def money(self, core_hour: float) -> float:
        """Return the cost in USD if a core-hour costs `core_hour` USD."""
        return self.core_seconds / 3600 * core_hour


class Branch(ForeignFile):
    """A model in the student comparison, with the thinking modes of its evaluations and the stages that make up its
    cost.

    The cost of a student excludes the training of the base student, which all branches share.
    """

    name: str
    title: str
    modes: tuple[Thinking, ...]
    stages: tuple[str, ...] = ()


class Summary(ForeignFile):
    """Sizes of teacher (`model`) and `student`, the cost of each stage, and the `command` and `seed` with which the run
    can be repeated.

    `branches` is empty if the run has no student. `samples` counts the teacher's samples. `core_hour` is USD per
    core-hour.
    """

    model: dict[str, float | int | str]
    student: dict[str, float | int | str] = {}
    stages: tuple[StageCost, ...]
    branches: tuple[Branch, ...] = ()
    samples: dict[str, int] = {}
    core_hour: float = CORE_HOUR
    seed: int
    command: str

    def cost_of(self, branch: Branch) -> StageCost:
        """Return the total cost of the branch's own stages as one `StageCost`. Its name is the branch's title."""
        own = [stage for stage in self.stages if stage.name in branch.stages]
        return total_cost(branch.title, own)


def total_cost(name: str, stages: Sequence[StageCost]) -> StageCost:
    """Return the sum of several stages as one `StageCost`."""
    fields = ("tokens", "flops", "solved", "core_seconds", "seconds")
    return StageCost(name=name, **{field: sum(getattr(stage, field) for stage in stages) for field in fields})


@dataclass(frozen=True)
class Findings:
    """All data that the report shows. `sft` and `grpo` hold one record per step, in ascending order.

    `students` holds the evaluations of each branch. `training` holds the records of branches trained from the base
    student.
    """

    sft: Sequence[Record]
    grpo: Sequence[Record]
    evaluations: dict[tuple[str, Thinking], Evaluation]
    experts: ExpertsReport
    summary: Summary
    students: dict[tuple[str, Thinking], Evaluation] = field(default_factory=dict)
    training: dict[str, list[Record]] = field(default_factory=dict)

    def right(self, when: str, mode: Thinking = "auto") -> float:
        """Return the model's accuracy over all families, before or after GRPO."""
        return self.evaluations[when, mode].rows("all")[0].accuracy

    def thought(self, when: str) -> float:
        """Return the share of problems on which the model chose to think, before or after GRPO."""
        return self.evaluations[when, "auto"].rows("all")[0].thought

    def share(self, branch: str, mode: Thinking = "auto") -> float | None:
        """Return the accuracy of a branch over all families, or None if it was not measured."""
        evaluation = self.students.get((branch, mode))
        return evaluation.rows("all")[0].accuracy if evaluation else None

    @property
    def families(self) -> list[str]:
        """The families of the evaluation, in order."""
        return list(dict.fromkeys(sample.family for sample in self.evaluations["before", "auto"].samples))


F = TypeVar("F", bound=ForeignFile)


def _read(cls: type[F], path: Path) -> F:
    try:
        data = json.loads(_found(path).read_bytes())
    except ValueError as error:
        raise DataError(f"the file is not valid JSON: {error}", where=str(path), remedy=REMEDY) from None
    return parse(cls, data, where=str(path))


def _found(path: Path) -> Path:
    if not path.is_file():
        raise DataError("the report needs this file, but it is missing", where=str(path), remedy=REMEDY)
    return path


def series(records: Sequence[Record], *names: str) -> list[tuple[float, float]]:
    """Return the steps and values of a metric. The value of a record is the first of `names` that is a number.

    Records without any of `names` are skipped.
    """
    values = [
        (
            record.get("step", place),
            next((record[name] for name in names if isinstance(record.get(name), int | float)), None),
        )
        for place, record in enumerate(records)
    ]
    return [(float(step), float(value)) for step, value in values if value is not None]


def read_records(folder: Path, stage: str) -> list[Record]:
    """Return the records of `stage` in `folder`, one per step. If a resumed run repeated a step, its last record counts."""
    run = RunDir(folder)
    _found(run.metrics_file)
    records = [record for record in run.metrics() if isinstance(record, dict) and record.get("stage", stage) == stage]
    if not records:
        raise DataError(f"no record of stage '{stage}'", where=str(run.metrics_file), remedy=REMEDY)
    by_step = {int(record.get("step", place)): record for place, record in enumerate(records)}
    return [by_step[step] for step in sorted(by_step)]


def read_findings(folder: Path) -> Findings:
    """Read a folder with the layout that `build_report` describes. Raises DataError with the name of a missing or invalid file."""
    paths = QuickstartPaths(folder)
    sft, grpo = read_records(folder / "base", "sft"), read_records(folder / "teacher", "grpo")
    evaluations = {
        (when, mode): Evaluation.load(_found(paths.evaluation(f"{when}-{mode}"))) for when in WHEN for mode in MODES
    }
    experts = _read(ExpertsReport, paths.evaluation("experts"))
    _check_shape(experts, paths.evaluation("experts"))
    summary = _read(Summary, paths.summary)
    students = {
        (b.name, mode): Evaluation.load(_found(paths.measured(b.name, mode)))
        for b in summary.branches
        for mode in b.modes
    }
    training = {name: read_records(folder / name, recipe) for name, recipe in TRAINED.items() if summary.branches}
    return Findings(sft, grpo, evaluations, experts, summary, students, training)


TRAINED = {"distilled": "distil", "answers-only": "sft", "reinforced": "grpo"}
"""Recipe of each branch that is trained from the base student, keyed by the branch's folder."""


def _check_shape(experts: ExpertsReport, path: Path) -> None:
    layers, families = len(experts.layers), len(experts.families)
    widths = {len(row) for layer in experts.share for row in layer} | {len(row) for row in experts.load}
    fits = len(experts.share) == len(experts.load) == layers and all(len(layer) == families for layer in experts.share)
    if not fits or len(widths) > 1:
        raise DataError(
            f"share must be [{layers} layers][{families} families][experts] and load [{layers} layers][experts]",
            where=str(path),
            remedy=REMEDY,
        )
