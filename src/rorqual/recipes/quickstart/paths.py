"""The layout of the quickstart's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rorqual.core.records import RunDir, Thinking

WHEN = ("before", "after")
MODES: tuple[Thinking, ...] = ("auto", "on", "off")
BRANCHES: dict[str, tuple[Thinking, ...]] = {
    "teacher": ("auto", "on"),
    "student-base": ("auto", "on"),
    "distilled": ("auto", "on"),
    "reinforced": ("auto", "on"),
    "answers-only": ("auto",),
}
"""For each model's folder: the thinking modes in which the model is evaluated on the student's problems."""


@dataclass(frozen=True)
class QuickstartPaths:
    """The paths of the quickstart's files and folders in `out`."""

    out: Path

    def run(self, name: str) -> RunDir:
        """Return the run directory of a training stage.

        `name` is `base`, `teacher`, `student-able`, `student-base`, `distilled`, `reinforced` or `answers-only`.
        """
        return RunDir(self.out / name)

    @property
    def base(self) -> RunDir:
        return self.run("base")

    @property
    def teacher(self) -> RunDir:
        return self.run("teacher")

    @property
    def samples(self) -> Path:
        """The data factory's folder, with the teacher's samples."""
        return self.out / "samples"

    @property
    def samples_file(self) -> Path:
        """The file with the verified and filtered samples of the teacher."""
        return self.samples / "data.parquet"

    @property
    def answers_file(self) -> Path:
        """The file with the training data of the student `answers-only`: problems and final answers of the teacher's samples,
        without reasoning."""
        return self.out / "answers.jsonl"

    @property
    def evals(self) -> Path:
        return self.out / "evals"

    def evaluation(self, name: str) -> Path:
        """Return the result file of the evaluation `name`."""
        return self.evals / f"{name}.json"

    def evaluation_file(self, branch: str, mode: str) -> Path:
        """Return the result file of a branch's evaluation on the student's problems."""
        return self.evaluation(f"student-{branch}-{mode}")

    @property
    def ledger(self) -> Path:
        return self.out / "ledger.jsonl"

    @property
    def summary(self) -> Path:
        return self.out / "summary.json"
