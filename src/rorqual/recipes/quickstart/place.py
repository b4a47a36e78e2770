"""The quickstart's folder: where each stage keeps what it made."""

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
"""The models that stand side by side in the end, by their folders, and how each is measured on the student's problems."""


@dataclass(frozen=True)
class Place:
    """Paths of files and folders; nothing is read or made here."""

    out: Path

    def run(self, name: str) -> RunDir:
        """A training: `base`, `teacher`, `student-able`, `student-base`, `distilled`, `reinforced`, `answers-only`."""
        return RunDir(self.out / name)

    @property
    def base(self) -> RunDir:
        return self.run("base")

    @property
    def teacher(self) -> RunDir:
        return self.run("teacher")

    @property
    def samples(self) -> Path:
        """What the teacher said: the factory's folder."""
        return self.out / "samples"

    @property
    def samples_file(self) -> Path:
        return self.samples / "data.parquet"

    @property
    def answers_file(self) -> Path:
        """The same problems, with the answers alone."""
        return self.out / "answers.jsonl"

    @property
    def evals(self) -> Path:
        return self.out / "evals"

    def evaluation(self, name: str) -> Path:
        return self.evals / f"{name}.json"

    def measured(self, branch: str, mode: str) -> Path:
        """The evaluation of a branch on the student's problems."""
        return self.evaluation(f"student-{branch}-{mode}")

    @property
    def ledger(self) -> Path:
        return self.out / "ledger.jsonl"

    @property
    def summary(self) -> Path:
        return self.out / "summary.json"
