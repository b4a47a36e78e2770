"""The experiment `effort`: does a length penalty per reasoning effort give one model whose reasoning length follows the effort?

The base model is trained to think on 35, 50 and 65 % of the problems at the three efforts, so the base model's reasoning length
depends little on the effort. Two arms train the base model with RL at all three efforts: one arm with the length penalty of
DeepSeek-V4.1-Flash, and one without. The arms differ only in this penalty.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path

from rorqual.core.config import override_fields
from rorqual.core.journal import json_line
from rorqual.core.records import write_atomic
from rorqual.engine.request import SamplingParams
from rorqual.evals.compare import did_think
from rorqual.lab.experiment import ArmPair, Experiment, Quantity, Readings, by_family, scale_amount
from rorqual.lab.job import ComputeJob, EvaluationJob, ExperimentJob, TrainJob, load_evaluation
from rorqual.recipes.grpo import grpo
from rorqual.recipes.sft import sft
from rorqual.tasks.find import load_task, safe_problems
from rorqual.train.run import Run
from rorqual.train.sources.rollouts import LengthPenaltyConfig
from rorqual.train.sources.sampler import effort_message

TASK, OPTIONS = "families:add,sub", {"hard": 0.5}
EFFORTS = LOWEST, MIDDLE, HIGHEST = 25, 50, 100
THINK = {LOWEST: 0.35, MIDDLE: 0.5, HIGHEST: 0.65}
"""For each effort, the share of the base model's training solutions that have thinking. With the same share at every effort,
the reasoning length did not follow the effort after 50 steps of RL (docs/LOG.md)."""
STRENGTHS: Mapping[str, float] = {"effort-plain": 0.0, "effort-penalty": 2.5}
"""The strength of the length penalty in each arm. At a strength of 2.5, the penalty for thinking exceeds the reward of a right
answer at effort 25, and is small at effort 100."""
BASE, ROWS, PLAIN, PENALTY = "effort-base", "effort-rows.jsonl", *STRENGTHS
LABELS = {BASE: "before", PLAIN: "reinforced without penalty", PENALTY: "reinforced with penalty"}
MAX_TOKENS, ROW = 80, 160
RIGHT, TOKENS, THINKS = "accuracy", "tokens per problem", "share of replies that think"


def evaluation_name(name: str, effort: int) -> str:
    """Return the name of the evaluation of the run `name` at the reasoning effort `effort`."""
    return f"{name}-{effort}"


class EffortExperiment(Experiment):
    """The experiment on sums and differences, with three reasoning efforts.

    The parts of the claim on neighbouring efforts were added after the results were known. They can only turn "holds" into another
    verdict.
    """

    name = "effort"
    title = "Length control by reasoning effort"
    claim = (
        "trained with a length penalty per reasoning effort, one model uses fewer tokens at each lower effort, and at most half as many "
        "at the lowest as at the highest, where it is at most 2 points less accurate than without the penalty"
    )
    source = "DeepSeek-V4.1-Flash, technical report, effort control"
    first_seed = 200
    arms = {
        evaluation_name(name, effort): f"{label}, effort {effort}"
        for name, label in LABELS.items()
        for effort in EFFORTS
    }
    quantities = {RIGHT: Quantity("points"), TOKENS: Quantity("tokens"), THINKS: Quantity("points")}
    pairs = (
        ArmPair(question=f"tokens with penalty: effort {HIGHEST}, then {LOWEST}", quantity=TOKENS, a=evaluation_name(PENALTY, HIGHEST),
             b=evaluation_name(PENALTY, LOWEST), groups=("all",), relative=True, claimed=("all",), bound=-0.5, side="below"),
        *(ArmPair(question=f"tokens with penalty: effort {more}, then {less}", quantity=TOKENS, a=evaluation_name(PENALTY, more),
               b=evaluation_name(PENALTY, less), groups=("all",), relative=True, claimed=("all",), side="below")
          for more, less in ((HIGHEST, MIDDLE), (MIDDLE, LOWEST))),
        ArmPair(question=f"right at effort {HIGHEST}: without, then with penalty", quantity=RIGHT, a=evaluation_name(PLAIN, HIGHEST),
             b=evaluation_name(PENALTY, HIGHEST), groups=("all",), claimed=("all",), bound=-0.02),
    )  # fmt: skip

    wording = {
        RIGHT: "the accuracy",
        TOKENS: "the number of tokens",
        **{
            evaluation_name(name, effort): f"at effort {effort} {label}"
            for name, label in ((PLAIN, "without the penalty"), (PENALTY, "with the penalty"))
            for effort in EFFORTS
        },
    }

    def runs_of(self, arm: str) -> tuple[str, ...]:
        return (arm.rpartition("-")[0],)

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        def base() -> Run:
            return sft(
                data=str(place / ROWS), size="student", steps=scale_amount(600, share), rows=26, row=ROW, seed=seed
            )

        def grpo_run(strength: float) -> Run:
            run = grpo(task=TASK, options=dict(OPTIONS), start=str(place / BASE), steps=scale_amount(50, share), problems=10, samples=12,
                       max_tokens=MAX_TOKENS, row=ROW, lr=4e-4, seed=seed)  # fmt: skip
            penalty = LengthPenaltyConfig(efforts=EFFORTS, strength=strength, decay=30.0, limit=1.5, tokens=MAX_TOKENS)
            source = run.source.model_copy(update={"length_penalty": penalty})
            return override_fields(run.model_copy(update={"source": source}), ["agreement.most=1e-3"])

        rows = partial(write_training_conversations, seed=seed, count=scale_amount(20_000, share))
        jobs: list[ExperimentJob] = [
            ComputeJob(name=ROWS, estimate=0.5 * share, function=rows),
            TrainJob(name=BASE, estimate=65 * share, needs=(ROWS,), make=base),
        ]
        for name, strength in STRENGTHS.items():
            jobs.append(TrainJob(name=name, estimate=85 * share, needs=(BASE,), make=partial(grpo_run, strength)))
        return [*jobs, *(self._measure_job(name, effort, seed, share) for name in LABELS for effort in EFFORTS)]

    def _measure_job(self, name: str, effort: int, seed: int, share: float) -> EvaluationJob:
        return EvaluationJob(
            name=evaluation_name(name, effort),
            estimate=3 * share,
            needs=(name,),
            model=name,
            seed=seed,
            task=TASK,
            options=dict(OPTIONS),
            count=scale_amount(60, share, 1),
            params=SamplingParams(max_tokens=MAX_TOKENS, temperature=0.6, seed=seed),
            more={"system": effort_message(effort).text},
        )

    def read(self, place: Path) -> Readings:
        found = {arm: load_evaluation(place, arm) for arm in self.arms}
        return {
            RIGHT: {arm: by_family(one) for arm, one in found.items()},
            TOKENS: {arm: by_family(one, lambda sample: float(sample.tokens)) for arm, one in found.items()},
            THINKS: {arm: by_family(one, did_think) for arm, one in found.items()},
        }


def write_training_conversations(place: Path, *, seed: int, count: int) -> int:
    """Write worked solutions as conversations, and return the number of conversations.
    `THINK` gives the probability that a solution has thinking at an effort."""
    rng = random.Random(seed)
    lines = []
    for problem in islice(safe_problems(load_task(TASK, options=dict(OPTIONS)), "train", seed), count):
        effort = rng.choice(EFFORTS)
        think = rng.random() < THINK[effort]
        reply = {"role": "assistant", "content": problem.answer} | ({"reasoning": problem.steps} if think else {})
        asked = [
            {"role": "system", "content": effort_message(effort).text},
            {"role": "user", "content": problem.prompt},
        ]
        lines.append(json_line({"messages": [*asked, reply]}))
    write_atomic(place / ROWS, lines)
    return len(lines)
