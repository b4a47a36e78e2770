"""The experiment `zero`: what improves if a model that mostly answers without thinking is trained by RL alone?

Correctness is the only reward. A control has random rewards, because RL can also change a model's habits without any information on
correctness. Two effects are measured separately: how often the model chooses to think, and the
accuracy of the model when thinking is forced. Only the accuracy with forced thinking decides the verdict, because thinking more
often is not better reasoning.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rorqual.evals.compare import did_think
from rorqual.lab.experiment import (
    SHARE,
    ArmPair,
    Experiment,
    Quantity,
    Readings,
    by_family,
    scale_amount,
    values_in_group_all,
)
from rorqual.lab.job import ExperimentJob, TrainJob, load_evaluation
from rorqual.lab.student import BASE, RL, base_jobs, evaluation_jobs, grpo_job, grpo_run, student_seed

CHOICE, THINKS, ABLE, LENGTH = (
    "right, own choice",
    "thinks, own choice",
    "right when made to think",
    "tokens of thinking",
)
RANDOM, RANDOM_REWARD = "student-random", 0.5
"""The run with random rewards, and the probability of a reward of 1 in this run (Shao et al. 2506.10947)."""
LONG_STEPS = 150
LONG = tuple(f"zero-long-{part}" for part in range(1, 5))
"""The runs of the experiment `zero-long`, with `LONG_STEPS` steps each. All runs together take about 25 core-minutes. Each of
these runs is evaluated."""


class ZeroExperiment(Experiment):
    """The experiment that trains the base student of `distil-vs-rl` by RL alone."""

    name = "zero"
    title = "Reinforcement alone"
    claim = "reinforcement with correctness as the only reward, without worked solutions, improves reasoning"
    source = "DeepSeek-R1, arXiv 2501.12948, section 2.2; Nature, September 2025, figure 1"
    runs: ClassVar[tuple[str, ...]] = (RL,)
    """The consecutive RL runs, of which the first starts from the base student."""
    controls: ClassVar[tuple[str, ...]] = (RANDOM,)
    """The runs whose rewards are random. RL on the base student must improve more than these runs."""
    quantities = {CHOICE: SHARE, THINKS: SHARE, ABLE: SHARE, LENGTH: Quantity("tokens")}

    def __init__(self) -> None:
        self.arms = {
            BASE: "before",
            **{run: f"after part {part}" for part, run in enumerate(self.runs, 1)},
            self.runs[-1]: "after",
            **dict.fromkeys(self.controls, "after random rewards"),
        }
        self.wording = {
            ABLE: "the accuracy when made to think",
            BASE: "before reinforcement",
            self.runs[-1]: "after reinforcement",
            **dict.fromkeys(self.controls, "after reinforcement with random rewards"),
        }
        self.pairs = tuple(
            ArmPair(
                question=f"{quantity}: before against after",
                quantity=quantity,
                a=BASE,
                b=self.runs[-1],
                claimed=("all",) if quantity == ABLE else (),
            )
            for quantity in (CHOICE, THINKS, ABLE)
        ) + tuple(
            ArmPair(
                question=f"{ABLE}: random rewards against right ones",
                quantity=ABLE,
                a=control,
                b=self.runs[-1],
                claimed=("all",),
            )
            for control in self.controls
        )

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        own = student_seed(seed)
        jobs = [
            *base_jobs(own, place, share),
            grpo_job(own, place, share),
            grpo_job(own, place, share, RANDOM, RANDOM_REWARD),
        ]
        return [*jobs, *evaluation_jobs(RL, own, share), *evaluation_jobs(RANDOM, own, share)]

    def read(self, place: Path) -> Readings:
        own, forced = ({arm: load_evaluation(place, f"{arm}-{mode}") for arm in self.arms} for mode in ("auto", "on"))
        lengths = {arm: [s.thinking_tokens for s in found.samples if s.thought] for arm, found in own.items()}
        return {
            CHOICE: {arm: by_family(found) for arm, found in own.items()},
            THINKS: {arm: by_family(found, did_think) for arm, found in own.items()},
            ABLE: {arm: by_family(found) for arm, found in forced.items()},
            LENGTH: {arm: values_in_group_all(values) for arm, values in lengths.items()},
        }


class ZeroLongExperiment(ZeroExperiment):
    """A much longer RL training than in `zero`, for one seed, in parts. Each part starts from the weights of the previous part
    with a fresh optimizer."""

    name = "zero-long"
    title = "Reinforcement alone, for long"
    seeds = 1
    runs = LONG
    controls = ()

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        own = student_seed(seed)
        jobs = base_jobs(own, place, share)
        for part, (start, name) in enumerate(zip((BASE, *LONG), LONG, strict=False), 1):
            jobs.append(_training_part_job(part, start, name, own, place, share))
            jobs += evaluation_jobs(name, own, share)
        return jobs


def _training_part_job(part: int, start: str, name: str, seed: int, place: Path, share: float) -> TrainJob:
    return TrainJob(
        name=name,
        estimate=2.4 * LONG_STEPS * share,
        make=lambda: grpo_run(place / start, scale_amount(LONG_STEPS, share), seed + 1000 * part),
        needs=(start,),
    )
