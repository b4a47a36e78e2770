"""The paths of all files in the folder that `rorqual teach` writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rorqual.core.errors import ConfigError
from rorqual.core.journal import json_line, read_lines
from rorqual.core.records import RunDir, write_atomic

EARLIER = "earlier, with fewer minutes"


class TeachPaths:
    """The paths of the files and folders in `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.settings = out / "teach.yaml"
        self.data = out / "data"
        """The folder of the `examples` task: train, dev and the sealed test split."""
        self.teacher = out / "teacher"
        """The folder of the teacher's samples."""
        self.reasons = self.teacher / "reasons.json"
        self.sft_rows = out / "sft.jsonl"
        """The rows for supervised fine-tuning: those of the train split, with reasoning if replies are to have some."""
        self.base = out / "base"
        """The imported base model. If the base model is a run in another folder, this folder does not exist."""
        self.sft, self.grpo = RunDir(out / "sft"), RunDir(out / "grpo")
        """The folders of the training runs."""
        self.best = RunDir(out / "best")
        """The checkpoint of `sft` that is best on the dev split."""
        self.model = RunDir(out / "model")
        """The run with the taught model."""
        self.ledger = out / "ledger.jsonl"
        self.dev = out / "dev.jsonl"
        """One line for each checkpoint that was measured on the dev split."""
        self.ended_early = out / "ended-early.json"
        """This file exists if training ended early because it took too long."""
        self.grpo_result = out / "grpo.json"
        """Whether the model that GRPO trained is used, and the reason."""
        self.grpo_plan = out / "grpo-plan.json"
        """The training run of GRPO, or the reason why GRPO is skipped."""
        self.plan = out / "plan.json"
        self.answerer = out / "answerer.json"
        """The chosen rungs, and the promise."""
        self.choice = out / "choice.json"
        """The names of the chosen rung and of the best other one. The file is written before the test split is read."""
        self.test_probabilities = out / "test-probabilities.json"
        """The probability that the chosen rung's answer to each test example is right, after calibration."""
        self.memory = out / "memory.json"
        """The largest memory that a `teach` process has used so far."""
        self.results = out / "results.json"
        self.report = out / "report.html"

    def remove_language_model(self) -> None:
        """Remove the taught model and all that was made from it, so that it is trained anew. The rungs that were measured stay.

        The time so far becomes that of the stage `EARLIER`, which does not count toward the minutes of the new model.
        """
        if self.ledger.is_file():
            earlier = (json_line(line | {"stage": EARLIER}) for line in read_lines(self.ledger))
            write_atomic(self.ledger, b"".join(earlier))
        for run in (self.sft, self.grpo, self.best, self.model):
            shutil.rmtree(run.path, ignore_errors=True)
        shutil.rmtree(self.out / "evals", ignore_errors=True)
        made = (self.plan, self.dev, self.ended_early, self.grpo_result, self.grpo_plan)
        said = (self.choice, self.answerer, self.test_probabilities, self.results, self.report)
        for file in (*made, *said, *(self.out / "rungs").glob("language-model*.json")):
            file.unlink(missing_ok=True)

    def evaluation_file(self, name: str) -> Path:
        """Return the result file of a rung on the test split."""
        return self.out / "evals" / f"{_slug(name)}.json"

    def held_out_file(self, name: str) -> Path:
        """Return the file of a rung's answers to held-out examples."""
        return self.out / "rungs" / f"{_slug(name)}.json"

    def rung_file(self, name: str) -> Path:
        """Return the file of a fitted rung."""
        return self.out / "rungs" / f"{_slug(name)}.skops"


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def has_answerer(folder: Path) -> bool:
    """Return whether `rorqual teach` wrote `folder` and chose what answers. Raises ConfigError if it has not chosen yet."""
    paths = TeachPaths(folder)
    found = os.path.isfile(paths.answerer)  # also False for a text that is too long for a path
    if not found and os.path.isfile(paths.settings):
        raise ConfigError(
            "`rorqual teach` has not chosen what answers here",
            where=str(paths.answerer),
            remedy=f"Repeat the command that writes {folder}, or give {paths.model.path}, the language model alone.",
        )
    return found
