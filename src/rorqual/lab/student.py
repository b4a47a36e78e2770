"""The base student: a dense model with a quarter of the teacher's active parameters. The student can think, but mostly
answers without thinking.

The experiments `distil-vs-rl` and `zero` start from the base student and share its evaluations.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rorqual.core.config import override_fields
from rorqual.core.records import Thinking
from rorqual.engine.request import SamplingParams
from rorqual.lab.experiment import scale_amount
from rorqual.lab.job import SAMPLED, EvaluationJob, ExperimentJob, TrainJob
from rorqual.recipes.grpo import grpo
from rorqual.recipes.quickstart import FULL, STUDENT_TASK
from rorqual.recipes.sft import sft
from rorqual.train.run import Run

TASK = STUDENT_TASK
"""Problem families in which a random guess is correct with probability at most 1/120.
The families count, mod and kk are left out, because random guessing reaches a pass@8 above one half in these families.
"""
HARD = FULL.student_hard
"""Share of hard problems among the student's problems: all problems are hard. Two-digit sums need no thinking, so RL on such
easy problems would favour answers without thinking."""
ABLE, BASE = "student-able", "student-base"
"""The runs of the base student, with the settings of the quickstart.

The run `ABLE` trains the student to think on 40 % of the problems. The run `BASE` continues the training for a few steps on
data with little thinking. The base student can therefore think, but seldom does.
"""
ROUNDING = [f"agreement.most={FULL.rival_agreement}"]
"""An override that raises the largest allowed difference in log-probability between trainer and sampler.

In fp32, among 500,000 sampled tokens, trainer and sampler differed by 1.5e-4 nats in the log-probability of one very unlikely
token.
"""
PER_CELL, TRIES = 120, 8
EIGHT = f"{BASE}-eight-tries"
RL = "student-rl"


def student_seed(seed: int) -> int:
    """Return the seed of the student in an experiment whose teacher has the seed `seed`.

    Results of students with seeds below 1000 were seen while settings were chosen.
    """
    return seed + 1000


def base_jobs(seed: int, place: Path, share: float) -> list[ExperimentJob]:
    """Return the jobs that train the base student and measure its pass@8."""

    def able() -> Run:
        steps = scale_amount(FULL.student_able_steps, share)
        return sft(task=TASK, size="student", steps=steps, rows=32, row=128, think=FULL.student_able_think,
                   options={"hard": HARD}, seed=seed)  # fmt: skip

    def base() -> Run:
        steps = scale_amount(FULL.student_base_steps, share)
        run = sft(task=TASK, start=str(place / ABLE), steps=steps, rows=32, row=128, think=FULL.student_think,
                  options={"hard": HARD}, seed=seed + 50)  # fmt: skip
        rate = FULL.student_base_lr
        return override_fields(run, [f"optim.lr={rate}", f"optim.adamw.lr={rate / 3}", "optim.schedule.warmup=5"])

    tries = SamplingParams(max_tokens=80, temperature=1.0, n=TRIES)
    return [
        TrainJob(name=ABLE, estimate=60 * share, make=able),
        TrainJob(name=BASE, estimate=6 * share, make=base, needs=(ABLE,)),
        evaluation_job(EIGHT, BASE, seed, share, count=60, params=tries),
        *evaluation_jobs(BASE, seed, share),
    ]


def grpo_job(seed: int, place: Path, share: float, name: str = RL, random_reward: float = 0.0) -> TrainJob:
    """Return the job that trains the base student with GRPO, with correctness as the only reward. If `random_reward` is above 0,
    each reward is instead 1 with this probability, whatever the answer."""

    def run() -> Run:
        run = grpo_run(place / BASE, scale_amount(FULL.rival_steps, share), seed)
        return override_fields(run, [f"source.random_reward={random_reward:g}"])

    return TrainJob(name=name, estimate=78 * share, make=run, needs=(BASE,))


def grpo_run(start: Path, steps: int, seed: int) -> Run:
    """Return a GRPO run that starts from the run `start`."""
    run = grpo(task=TASK, start=str(start), steps=steps, problems=FULL.rival_problems, samples=FULL.rival_samples, max_tokens=80,
               row=128, lr=FULL.rival_lr,
                options={"hard": HARD}, seed=seed)  # fmt: skip
    return override_fields(run, ROUNDING)


def evaluation_jobs(
    model: str, seed: int, share: float, modes: tuple[Thinking, ...] = ("auto", "on")
) -> list[ExperimentJob]:
    """Return the jobs that evaluate the run `model` on held-out problems, one for each thinking mode."""
    return [evaluation_job(f"{model}-{mode}", model, seed, share, thinking=mode) for mode in modes]


def evaluation_job(
    name: str,
    model: str,
    seed: int,
    share: float,
    *,
    thinking: Thinking = "auto",
    count: int = PER_CELL,
    params: SamplingParams = SAMPLED,
) -> EvaluationJob:
    """Return the job that evaluates the run `model` on `count` problems per family and level. `share` scales `count`."""
    return EvaluationJob(
        name=name,
        model=model,
        seed=seed,
        task=TASK,
        options={"hard": HARD},
        count=scale_amount(count, share),
        thinking=thinking,
        params=replace(params, seed=seed),
        estimate=4 * share,
        needs=(model,),
    )
