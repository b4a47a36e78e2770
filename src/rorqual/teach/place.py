"""The layout of the folder that `teach` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rorqual.core.records import RunDir

BEFORE, AFTER, ALONE = "base, no examples", "taught model", "taught model without calculator"


@dataclass(frozen=True)
class TeachPaths:
    """The paths of the files and folders in `out`."""

    out: Path

    @property
    def settings(self) -> Path:
        return self.out / "teach.yaml"

    @property
    def data(self) -> Path:
        """The folder of the `examples` task: train, dev and the sealed test split."""
        return self.out / "data"

    @property
    def teacher(self) -> Path:
        """The teacher's samples and reasons."""
        return self.out / "teacher"

    @property
    def reasons(self) -> Path:
        """The teacher's reasons."""
        return self.teacher / "reasons.json"

    @property
    def base(self) -> Path:
        """The imported base model, unless it is a run elsewhere."""
        return self.out / "base"

    def run(self, name: str) -> RunDir:
        """Return a training run: `sft` or `grpo`."""
        return RunDir(self.out / name)

    @property
    def best(self) -> RunDir:
        """The best checkpoint of `sft` on the dev split."""
        return self.run("best")

    @property
    def model(self) -> RunDir:
        """The taught model, as a run of its own."""
        return self.run("model")

    @property
    def evals(self) -> Path:
        return self.out / "evals"

    def evaluation(self, name: str) -> Path:
        """Return the result file of a model or baseline on the test split."""
        return self.evals / f"{name.replace(',', '').replace(' ', '-')}.json"

    @property
    def ledger(self) -> Path:
        return self.out / "ledger.jsonl"

    @property
    def dev(self) -> Path:
        """One line for each checkpoint that was measured on the dev split."""
        return self.out / "dev.jsonl"

    @property
    def ended_early(self) -> Path:
        """Exists if training ended early, at the hard cap."""
        return self.out / "ended-early.json"

    @property
    def grpo(self) -> Path:
        """Whether GRPO was used, and why or why not."""
        return self.out / "grpo.json"

    @property
    def grpo_plan(self) -> Path:
        """The run of GRPO, or why there is none."""
        return self.out / "grpo-plan.json"

    @property
    def plan(self) -> Path:
        return self.out / "plan.json"

    @property
    def baselines(self) -> Path:
        """The names of the baselines, and the lines of the examples in their prompts, once all are measured."""
        return self.out / "baselines.json"

    @property
    def memory(self) -> Path:
        """The largest memory of a process so far."""
        return self.out / "memory.json"

    @property
    def results(self) -> Path:
        """All results as JSON."""
        return self.out / "results.json"

    @property
    def report(self) -> Path:
        return self.out / "report.html"
