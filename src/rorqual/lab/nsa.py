"""Test whether Native Sparse Attention, trained from scratch, is as good as dense attention (Yuan et al. 2025, arXiv
2502.11089).

Each seed trains two models from scratch on the same tokens, in the first three stages of the experiment `sparse`. One model has
grouped-query attention. The other model has Native Sparse Attention (kind `nsa`) with the same heads. A query of the `nsa`
model attends to compressed blocks, selected blocks and a window: together half as many keys as the longest text has tokens.
With a quarter as many keys, the first stage had not learned retrieval after 564 steps, on one seed (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rorqual.core.records import RunDir
from rorqual.lab.experiment import ArmPair, Experiment, Quantity, Readings, scale_amount
from rorqual.lab.job import ComputeJob, ExperimentJob, load_value
from rorqual.lab.long_scores import EXACT, LOSS, NEEDLE, PERCENT, POINTS, score_readings, score_solutions, solutions
from rorqual.lab.long_training import dense_model, training_jobs
from rorqual.model.attention import AttentionConfig, GQAConfig, NSAConfig
from rorqual.model.config import ModelConfig
from rorqual.model.load.run_directory import load_run

LENGTH = 256
"""Number of characters of the longest prompt. Each character is a token."""
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32}
ATTENTION: Mapping[str, AttentionConfig] = {
    "dense": GQAConfig(**HEADS),
    "nsa": NSAConfig(
        **HEADS,
        compress_block=8,
        select_block=8,
        num_selected_blocks=8,
        num_initial_blocks=0,
        num_local_blocks=1,
        window_size=32,
    ),
}
"""At `LENGTH`, a query of `nsa` attends to 32 compressed blocks, 8 blocks of 8 tokens and the last 32 tokens: 128 keys."""
MEASURED: Mapping[str, int] = {"needle": 128, "copy": 32, "count": 32}
"""Number of held-out problems of each kind on which an arm is measured."""
SLOWER = {"dense": 0.7, "nsa": 1.5}
"""Estimated core-seconds of an arm's training step, divided by the core-seconds of a step of the dense model of the experiment
`sparse`."""


def last_run_name(arm: str) -> str:
    """Return the name of the last run of an arm, which is the run that is measured."""
    return f"nsa-{arm}-short"


def model_of(arm: str) -> ModelConfig:
    """Return the model of an arm: the dense model of the experiment `sparse`, with its attention replaced by the arm's attention."""
    model = dense_model(LENGTH)
    stages = tuple(stage.model_copy(update={"attention": ATTENTION[arm]}) for stage in model.stages)
    return model.model_copy(update={"stages": stages})


def measure_arm(place: Path, *, arm: str, seed: int, share: float) -> dict[str, Any]:
    """Measure an arm's trained model on held-out problems. `result[kind]` is the result of `score_solutions` on one kind of problem."""
    run = last_run_name(arm)
    model = load_run(RunDir(place / run))
    return {
        kind: score_solutions(
            model, solutions(place, seed, kind, scale_amount(count, share), "test", LENGTH, run), record=()
        )
        for kind, count in MEASURED.items()
    }


class NSAExperiment(Experiment):
    """The experiment that trains a dense and a sparse model, and compares their losses and accuracies."""

    name = "nsa"
    title = "Native Sparse Attention from scratch"
    claim = (
        "with Native Sparse Attention, trained from scratch on the same tokens, the loss is at most 1 % higher and the needle accuracy at "
        "most 2 points lower than with dense attention"
    )
    source = "Yuan et al. 2025, 2502.11089, section 4"
    first_seed = 200
    arms = {arm: arm for arm in ATTENTION}
    quantities = {EXACT: Quantity("points"), LOSS: Quantity("nats")}
    pairs = (
        ArmPair(question="loss over that of dense attention: dense, then nsa", quantity=LOSS, a="dense", b="nsa", relative=True,
             claimed=("all",), bound=PERCENT, side="below"),
        ArmPair(question=f"{EXACT}: dense, then nsa", quantity=EXACT, a="dense", b="nsa", claimed=NEEDLE, bound=-POINTS),
    )  # fmt: skip
    wording = {
        EXACT: "the share of exact solutions",
        LOSS: "the loss",
        "needle": "on needle problems",
        "dense": "with dense attention",
        "nsa": "with Native Sparse Attention",
    }
    note = "Exact: every token of the solution is the most likely one."

    def runs_of(self, arm: str) -> tuple[str, ...]:
        return (last_run_name(arm),)

    def jobs(self, seed: int, place: Path, share: float) -> list[ExperimentJob]:
        jobs: list[ExperimentJob] = []
        for arm in ATTENTION:
            # The row length of a stage follows from `length`: the third stage of `4 * LENGTH` has texts of up to `LENGTH`.
            jobs += training_jobs(
                seed, place, share, 4 * LENGTH, upto=3, model=model_of(arm), arm=f"nsa-{arm}", slower=SLOWER[arm]
            )
            function = partial(measure_arm, arm=arm, seed=seed, share=share)
            estimate = 5 * SLOWER[arm] * share
            jobs.append(
                ComputeJob(name=f"nsa-measure-{arm}", estimate=estimate, needs=(last_run_name(arm),), function=function)
            )
        return jobs

    def read(self, place: Path) -> Readings:
        return score_readings({arm: load_value(place, f"nsa-measure-{arm}") for arm in ATTENTION})
