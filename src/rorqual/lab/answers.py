"""The experiment `answers`: what several samples, a verifier, a budget for thinking, a second look, early stopping, and a cascade of
two models do to accuracy, and how many tokens they cost.

Sixteen samples of each problem are drawn once per seed. Votes, the best of several samples, and early stopping reuse them. Every
way to get an answer is compared with the greedy answer to the same problems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rorqual.core.records import RunDir
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.verify import scored, write_training_rows
from rorqual.lab.answers_report import BIG, GREEDY, LITTLE, SCORED, SIXTEEN, conclusion
from rorqual.lab.experiment import Experiment, amount
from rorqual.lab.finding import Finding
from rorqual.lab.job import Compute, ExperimentJob, Measure, Train, evaluation, evaluation_file
from rorqual.recipes.models import Size
from rorqual.recipes.quickstart import TASK
from rorqual.recipes.sft import sft
from rorqual.tasks.base import Split
from rorqual.train.run import Run

VERIFIER = "answers-verifier"
REFINED, GRADED = "refined", "graded"
SAMPLES, GRADED_SAMPLES = 16, 4
"""Number of samples per problem for votes, and for the verifier's training data."""
VERIFIER_ROWS = "verifier.jsonl"


class AnswersExperiment(Experiment):
    """The experiment on the families of the quickstart. `count` is the number of problems per family and level."""

    name = "answers"
    title = "Computation at the answer"
    claim = "stopping 16 votes when sure saves at least 30 % of their tokens, and the accuracy is at most 1 point lower"
    source = "Adaptive-Consistency, 2305.11860, abstract"
    first_seed = 200

    task: ClassVar[str] = TASK
    options: ClassVar[Mapping[str, Any]] = {"hard": 0.5}
    count: ClassVar[int] = 25
    graded: ClassVar[int] = 100
    max_tokens: ClassVar[int] = 96
    verified: ClassVar[bool] = True
    """Whether a verifier is trained."""
    rounds: ClassVar[int] = 2
    budgets: ClassVar[tuple[int, ...]] = (10, 20, 30, 40)
    seconds: ClassVar[float] = 3.0
    """Rough core-seconds to answer all problems once."""

    def trained(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        """Return the jobs that train the model and the small model of the cascade."""

        def run(size: Size, steps: int) -> Run:
            options = dict(self.options)
            return sft(
                task=self.task, size=size, steps=amount(steps, share), rows=8, row=512, options=options, seed=seed
            )

        return [
            Train(name=BIG, estimate=150 * share, make=partial(run, "small", 400)),
            Train(name=LITTLE, estimate=60 * share, make=partial(run, "student", 300)),
        ]

    def verifier(self, seed: int, place: Path, share: float) -> Run:
        """Return the run that trains the verifier on graded samples, starting from the model itself."""
        return sft(
            data=str(place / VERIFIER_ROWS),
            start=str(place / BIG),
            steps=amount(120, share),
            rows=8,
            row=512,
            lr=1e-3,
            seed=seed,
        )

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        several = SamplingParams(max_tokens=self.max_tokens, temperature=0.6, n=SAMPLES, seed=seed)
        greedy = SamplingParams(max_tokens=self.max_tokens)

        def measured(
            name: str,
            model: str = BIG,
            split: Split = "test",
            params: SamplingParams = greedy,
            count: int = 0,
            **more: Any,
        ) -> Measure:
            return Measure(
                name=f"{model}-{name}",
                estimate=self.seconds * params.n**0.7 * (1 + more.get("refine", 0)) * share,
                needs=(model,),
                model=model,
                seed=seed,
                task=self.task,
                options=dict(self.options),
                count=amount(count or self.count, share, 1),
                split=split,
                params=params,
                more=more,
            )

        jobs = [
            *self.trained(seed, place, share),
            measured(GREEDY),
            measured("sixteen", params=several, votes=True),
            *(measured(f"budget-{budget}", params=replace(greedy, think_budget=budget)) for budget in self.budgets),
            measured(REFINED, refine=self.rounds),
            measured(GREEDY, LITTLE),
            measured(f"{GREEDY}-dev", LITTLE, "dev", count=2 * self.count),
        ]
        if not self.verified:
            return jobs
        return [
            *jobs,
            measured(GRADED, split="train", params=replace(several, n=GRADED_SAMPLES), count=self.graded),
            Compute(name=VERIFIER_ROWS, estimate=0.1, needs=(f"{BIG}-{GRADED}",), function=write_rows),
            Train(name=VERIFIER, estimate=100 * share, needs=(VERIFIER_ROWS,),
                  make=partial(self.verifier, seed, place, share)),
            Compute(name=SCORED, estimate=self.seconds * share, needs=(VERIFIER, SIXTEEN), function=score_samples),
        ]  # fmt: skip

    def conclude(self, places: Mapping[int, Path]) -> Finding:
        return self.found(places, **conclusion(places, self.budgets))


def write_rows(place: Path) -> int:
    """Write the verifier's training data, and return the number of rows."""
    return write_training_rows(evaluation(place, f"{BIG}-{GRADED}"), place / VERIFIER_ROWS)


def score_samples(place: Path) -> float:
    """Save the sixteen samples with the verifier's scores. Return the mean score."""
    verifier = Engine(RunDir(place / VERIFIER).path, threads=1, record_experts=False)
    result = scored(evaluation(place, SIXTEEN), verifier, VERIFIER)
    result.save(evaluation_file(place, SCORED))
    scores = [sample.score or 0.0 for sample in result.samples]
    return sum(scores) / len(scores)
