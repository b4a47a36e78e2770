"""Evaluations with given verdicts, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.lab.job import evaluation_file
from rorqual.tasks.task import Verdict

MARKS = {"1": Verdict.RIGHT, "0": Verdict.WRONG, "-": Verdict.UNGRADED}


def graded(verdicts: Mapping[str, str], tokens: int = 1, tries: int = 1, own: str = "") -> Evaluation:
    """Return an evaluation with one mark per sample of each family, `tries` samples per problem. Every third problem thinks.
    `own` tells a seed's problems from those of others."""
    samples = [
        GradedSample(
            key=f"{family} {number // tries}{own}", family=family, prompt="", answer="", reply="", reasoning=None, verdict=MARKS[mark],
            tokens=tokens, thinking_tokens=tokens // 2, thought=number % 3 == 0, truncated=False,
        )
        for family, line in verdicts.items()
        for number, mark in enumerate(line)
    ]  # fmt: skip
    return Evaluation(task="t", split="test", seed=0, count=8, per_family=True, thinking="auto", params=SamplingParams(n=tries),
                      samples=tuple(samples))  # fmt: skip


def save_graded(place: Path, name: str, verdicts: Mapping[str, str], tokens: int = 1, tries: int = 1) -> None:
    """Save such an evaluation where the job `name` saves its own."""
    evaluation_file(place, name).parent.mkdir(parents=True, exist_ok=True)
    graded(verdicts, tokens, tries).save(evaluation_file(place, name))
