"""The quickstart's teacher without plain problems, trained once per seed. All experiments with one seed share one teacher."""

from __future__ import annotations

from pathlib import Path

from rorqual.lab.experiment import scale_amount
from rorqual.lab.job import ExperimentJob, TrainJob
from rorqual.recipes.grpo import grpo
from rorqual.recipes.quickstart import FULL, TASK
from rorqual.recipes.sft import sft
from rorqual.train.run import Run

BASE, TEACHER = "teacher-base", "teacher"
SFT_STEPS = 1000
"""The number of SFT steps of the stored experiments. The quickstart has more steps, for its plain problems."""


def teacher_jobs(seed: int, place: Path, share: float) -> list[ExperimentJob]:
    """Return the two training jobs of the quickstart's teacher.

    The first job is SFT on worked solutions, half of which are without thinking. The second job is GRPO with correctness as the
    reward.
    """

    def base() -> Run:
        return sft(task=TASK, size=FULL.model, steps=scale_amount(SFT_STEPS, share), rows=FULL.sft_rows, row=FULL.row,
                   think=FULL.think, options={"hard": FULL.sft_hard}, seed=seed)  # fmt: skip

    def grpo_run() -> Run:
        return grpo(task=TASK, start=str(place / BASE), steps=scale_amount(FULL.grpo_steps, share), problems=FULL.grpo_problems,
                    samples=FULL.grpo_samples, max_tokens=FULL.max_tokens, row=FULL.row, lr=FULL.lr,
                    options={"hard": FULL.grpo_hard}, seed=seed)  # fmt: skip

    return [
        TrainJob(name=BASE, estimate=370 * share, make=base),
        TrainJob(name=TEACHER, estimate=100 * share, make=grpo_run, needs=(BASE,)),
    ]
