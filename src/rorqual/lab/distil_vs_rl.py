"""Compare distillation with RL (GRPO) and with controls on a small model.

All compared branches start from one base student and cost about the same number of core-seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rorqual.core.config import override_fields
from rorqual.core.records import RunDir
from rorqual.evals.compare import did_think
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.passk import mean_pass_at_k
from rorqual.factory.config import FactoryConfig
from rorqual.lab.experiment import (
    SHARE,
    ArmPair,
    Experiment,
    Quantity,
    Readings,
    by_family,
    mean_of,
    scale_amount,
    values_in_group_all,
)
from rorqual.lab.job import ExperimentJob, SampleJob, TrainJob, load_evaluation, run_cost
from rorqual.lab.student import (
    BASE,
    EIGHT,
    HARD,
    RL,
    ROUNDING,
    TASK,
    TRIES,
    base_jobs,
    evaluation_job,
    evaluation_jobs,
    grpo_job,
    student_seed,
)
from rorqual.lab.teacher import TEACHER, teacher_jobs
from rorqual.recipes.distil import distil, on_policy
from rorqual.recipes.quickstart import FULL
from rorqual.recipes.sft import sft
from rorqual.tasks.task import Verdict as Graded
from rorqual.train.run import Run

SAMPLES, DISTIL, GOLD, MORE, ON_POLICY = "dr-samples", "dr-distil", "dr-gold", "dr-more", "dr-on-policy"
OWN, FORCED, THINKS, EIGHT_TRIES, COST = (
    "own choice",
    "made to think",
    "thinks, own choice",
    "solved in eight tries",
    "core-seconds",
)
WINDOW, MOST = (0.05, 0.50), 0.8
"""Required range of the base student's pass@8 in every family, and the required fraction of (family, seed) pairs whose pass@8
lies in this range.

GRPO needs some right answers to learn from, and room to improve. For every family, the mean pass@8 over
seeds must lie in `WINDOW`. Each pass@8 is measured on 60 problems.
"""
EQUAL = {COST: 0.15}
"""The costs of two branches in core-seconds count as equal if they differ by at most 15 % in every seed."""
RL_COST = {"tokens": 44e-6, "sampled_tokens": 28e-6}
SUPERVISED, SAMPLING, SCORED = 0.096, 19.0, 0.95
"""Core-seconds of an SFT step, of sampling the teacher, and of an on-policy distillation step, measured on seeds 1 and 11.

`RL_COST` has the core-seconds of GRPO per trained token and per sampled token, including grading. The cost of GRPO
depends on the length of the sampled answers. Every other branch of a seed takes as many steps as fit into the cost of
GRPO. The number of steps is computed from token counts and fixed costs per token, so this number does not depend on time
measured during the run.
"""
TUNING = [f"optim.lr={FULL.student_lr}", f"optim.adamw.lr={FULL.student_adamw_lr}"]
"""Learning rates for a model that is already trained: half of the learning rates for a new model."""


class DistilVsRl(Experiment):
    """The experiment `distil-vs-rl`. The compared branches start from one base student and take about the same number
    of core-seconds."""

    name = "distil-vs-rl"
    title = "Distillation against reinforcement on a small model"
    claim = (
        "distilling reasoning from a large model makes a small model better than reinforcement of the small model does"
    )
    source = "DeepSeek-R1, arXiv 2501.12948, section 4.1 and table 6"
    arms = {
        BASE: "base",
        DISTIL: "distilled",
        RL: "reinforced",
        GOLD: "the generator's own steps",
        MORE: "the base's own data, longer",
        ON_POLICY: "distilled on-policy",
        TEACHER: "teacher",
    }
    quantities = {OWN: SHARE, FORCED: SHARE, THINKS: SHARE, EIGHT_TRIES: Quantity("points"), COST: Quantity("tokens")}
    wording = {OWN: "the accuracy", RL: "after reinforcement", DISTIL: "after distillation"}
    note = (
        "Core-seconds do not include the base student. Those of distillation include sampling, verifying and filtering."
    )

    def __init__(self) -> None:
        compared = {OWN: ((RL, DISTIL), (BASE, RL), (BASE, DISTIL), (RL, MORE), (DISTIL, GOLD), (DISTIL, ON_POLICY), (RL, ON_POLICY),
                          (TEACHER, DISTIL)),
                    FORCED: ((RL, DISTIL), (BASE, RL), (TEACHER, DISTIL))}  # fmt: skip
        self.pairs = tuple(
            ArmPair(question=f"{quantity}: {self.arms[a]} against {self.arms[b]}", quantity=quantity, a=a, b=b)
            for quantity, both in compared.items()
            for a, b in both
        )
        self.pairs = (replace(self.pairs[0], claimed=("all",), equal=EQUAL), *self.pairs[1:])

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        own = student_seed(seed)
        trained = [
            grpo_job(own, place, share),
            SampleJob(name=SAMPLES, estimate=24 * share, config=_sampling_config(place, own, share), needs=(TEACHER,)),
            TrainJob(name=DISTIL, estimate=58 * share, make=lambda: _distil_run(place, own), needs=(RL, SAMPLES)),
            TrainJob(name=GOLD, estimate=78 * share, make=lambda: _tune_run(place, own, 1.0), needs=(RL,)),
            TrainJob(
                name=MORE, estimate=78 * share, make=lambda: _tune_run(place, own, FULL.student_think), needs=(RL,)
            ),
            TrainJob(name=ON_POLICY, estimate=78 * share, make=lambda: _on_policy_run(place, own), needs=(RL, TEACHER)),
        ]
        measuring = [job for branch in (DISTIL, RL) for job in evaluation_jobs(branch, own, share)]
        measuring += [
            job for branch in (GOLD, MORE, ON_POLICY) for job in evaluation_jobs(branch, own, share, ("auto",))
        ]
        # The teacher is made to think when it writes the student's training samples, so it is measured in both modes.
        measuring += [
            evaluation_job(_evaluation_name(TEACHER, mode), TEACHER, own, share, thinking=mode)
            for mode in ("auto", "on")
        ]
        return [*teacher_jobs(seed, place, share), *base_jobs(own, place, share), *trained, *measuring]

    def read(self, place: Path) -> Readings:
        own = {arm: load_evaluation(place, _evaluation_name(arm, "auto")) for arm in self.arms}
        forced = {arm: load_evaluation(place, _evaluation_name(arm, "on")) for arm in (BASE, RL, DISTIL, TEACHER)}
        sampling = SampleJob(name=SAMPLES, estimate=0, config=_sampling_config(place, 0, 1)).cost(place)
        costs = {arm: run_cost(RunDir(place / arm)) for arm in self.arms if arm != BASE}
        costs[DISTIL] += sampling
        costs[TEACHER] += run_cost(RunDir(place / "teacher-base"))
        return {
            OWN: {arm: by_family(found) for arm, found in own.items()},
            FORCED: {arm: by_family(found) for arm, found in forced.items()},
            THINKS: {arm: by_family(found, did_think) for arm, found in own.items()},
            EIGHT_TRIES: {
                BASE: {family: {0: rate} for family, rate in pass_at_eight(load_evaluation(place, EIGHT)).items()}
            },
            COST: {arm: values_in_group_all([cost.core_seconds]) for arm, cost in costs.items()},
        }

    def reason_for_no_verdict(self, seeds: Sequence[Readings]) -> str:
        """Return "" if the base student's pass@8 lies in `WINDOW`. Otherwise, return why the experiment gives no verdict."""
        rates = [[mean_of(one, EIGHT_TRIES, BASE, family) for family in one[EIGHT_TRIES][BASE]] for one in seeds]
        inside = [WINDOW[0] <= rate <= WINDOW[1] for of_seed in rates for rate in of_seed]
        means = [sum(of_family) / len(seeds) for of_family in zip(*rates, strict=True)]
        if all(WINDOW[0] <= mean <= WINDOW[1] for mean in means) and sum(inside) >= MOST * len(inside):
            return ""
        return (
            f"In eight tries, the base student solves {WINDOW[0]:.0%} to {WINDOW[1]:.0%} of the problems in only {sum(inside)} of "
            f"{len(inside)} pairs of family and seed, so there is no verdict."
        )


def grpo_core_seconds(place: Path) -> float:
    """Return the cost of GRPO in core-seconds. The cost is computed from the run's token counts and the costs per token in
    `RL_COST`, so other load on the machine does not affect the cost."""
    records = list(RunDir(place / RL).metrics())
    return sum(price * record[kind] for record in records for kind, price in RL_COST.items())


def _sampling_config(place: Path, seed: int, share: float) -> FactoryConfig:
    return FactoryConfig(teacher=str(place / TEACHER), task=TASK, options={"hard": HARD}, problems=scale_amount(FULL.distil_problems, share, 24),
                         samples=1, temperature=0.6, top_p=0.95, max_tokens=80, thinking="on", seed=seed)  # fmt: skip


def _distil_run(place: Path, seed: int) -> Run:
    steps = max(2, round((grpo_core_seconds(place) - SAMPLING) / SUPERVISED))
    run = distil(
        data=str(place / SAMPLES / "data.parquet"), start=str(place / BASE), steps=steps, rows=32, row=128, seed=seed
    )
    return override_fields(run, TUNING)


def _tune_run(place: Path, seed: int, think: float) -> Run:
    steps = max(2, round(grpo_core_seconds(place) / SUPERVISED))
    run = sft(task=TASK, start=str(place / BASE), steps=steps, rows=32, row=128, think=think, options={"hard": HARD},
              seed=seed + 50_000)  # fmt: skip
    return override_fields(run, TUNING)


def _on_policy_run(place: Path, seed: int) -> Run:
    steps = max(2, round(grpo_core_seconds(place) / SCORED))
    run = on_policy(teacher=str(place / TEACHER), task=TASK, start=str(place / BASE), steps=steps, problems=32, samples=4,
                    max_tokens=80, row=128, lr=3e-3, options={"hard": HARD}, seed=seed)  # fmt: skip
    return override_fields(run, ROUNDING)


def _evaluation_name(arm: str, mode: str) -> str:
    return f"{TEACHER}-three-{mode}" if arm == TEACHER else f"{arm}-{mode}"


def pass_at_eight(result: Evaluation) -> dict[str, float]:
    """Return the mean pass@8 of the problems of each family."""
    counts: dict[str, dict[str, list[bool]]] = {}
    for sample in result.samples:
        counts.setdefault(sample.family, {}).setdefault(sample.key, []).append(sample.verdict is Graded.RIGHT)
    return {
        family: mean_pass_at_k([(len(tries), sum(tries)) for tries in problems.values()], TRIES)
        for family, problems in counts.items()
    }
