"""The base student of a seed: dense, a quarter of the teacher's active size, able to think and mostly answering at once.

It is where `distil-vs-rl` and `zero` begin, and what is measured of it in both.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rorqual.core.config import override
from rorqual.core.records import Thinking
from rorqual.engine.request import SamplingParams
from rorqual.lab.experiment import amount
from rorqual.lab.job import SAMPLED, Job, Measure, Train
from rorqual.recipes.grpo import grpo
from rorqual.recipes.sft import sft
from rorqual.train.run import Run

TASK = "families:add,sub,swap"
"""Families in which a guess is right at most once in 120 times: in eight tries of count, mod or kk guessing alone solves more than half."""
FAMILIES = ("add", "sub", "swap")
HARD = 1.0
"""Hard problems only: two-digit sums are learned at once, without thinking, and then reinforcement teaches to answer at once."""
BASE = "student-base"
BASE_STEPS, BASE_THINK = 600, 0.2
ROUNDING = ["agreement.most=0.001"]
"""In the small student's fp32 one token in half a million, a very unlikely one, differed by 1.5e-4 nats between trainer and sampler."""
PER_CELL, TRIES = 120, 8
EIGHT = f"{BASE}-eight-tries"
RL, RL_STEPS, RL_RATE = "student-rl", 42, 4e-4


def base_jobs(seed: int, share: float) -> list[Job]:
    """The base student, and how many problems it solves in eight tries."""

    def base() -> Run:
        return sft(task=TASK, size="student", steps=amount(BASE_STEPS, share), rows=32, row=128, think=BASE_THINK,
                   options={"hard": HARD}, seed=seed)  # fmt: skip

    tries = SamplingParams(max_tokens=80, temperature=1.0, n=TRIES)
    return [
        Train(name=BASE, estimate=59 * share, make=base),
        measured(EIGHT, BASE, seed, share, count=60, params=tries),
        *measures(BASE, seed, share),
    ]


def reinforced_job(seed: int, place: Path, share: float) -> Train:
    """GRPO on correctness alone, from the base student."""

    def run() -> Run:
        return reinforce(place / BASE, amount(RL_STEPS, share), seed)

    return Train(name=RL, estimate=88 * share, make=run, needs=(BASE,))


def reinforce(start: Path, steps: int, seed: int) -> Run:
    """GRPO from `start`; 32 problems of 12 samples a step."""
    run = grpo(task=TASK, start=str(start), steps=steps, problems=32, samples=12, max_tokens=80, row=128, lr=RL_RATE,
                options={"hard": HARD}, seed=seed)  # fmt: skip
    return override(run, ROUNDING)


def measures(model: str, seed: int, share: float, modes: tuple[Thinking, ...] = ("auto", "on")) -> list[Job]:
    """Evaluations of the run `model` on held-out problems, by its own choice and made to think."""
    return [measured(f"{model}-{mode}", model, seed, share, thinking=mode) for mode in modes]


def measured(
    name: str,
    model: str,
    seed: int,
    share: float,
    *,
    thinking: Thinking = "auto",
    count: int = PER_CELL,
    params: SamplingParams = SAMPLED,
) -> Measure:
    """One evaluation of the run `model`; `count` problems of each family and level at full share."""
    return Measure(
        name=name,
        model=model,
        seed=seed,
        task=TASK,
        options={"hard": HARD},
        count=amount(count, share),
        thinking=thinking,
        params=replace(params, seed=seed),
        estimate=4 * share,
        needs=(model,),
    )
