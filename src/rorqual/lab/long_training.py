"""Train models on long problems (task `long`) in stages of growing length. The experiments `sparse` and `nsa` train models in
these stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from rorqual.core.records import RunDir
from rorqual.data.tokenizer import BASE_VOCAB
from rorqual.lab.experiment import scale_amount
from rorqual.lab.job import ExperimentJob, JobCost, TrainJob, run_cost
from rorqual.model.attention import MLAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig
from rorqual.train.loop import fit
from rorqual.train.optim import AdamWConfig, MuonConfig
from rorqual.train.run import Run, StartConfig
from rorqual.train.schedule import LearningRateSchedule
from rorqual.train.sources import WorkedConfig

KINDS: Mapping[str, str] = {"needle": "needle", "copy": "copied number", "count": "counting after the text"}
LENGTH = 1024
"""Number of characters of the longest prompt. Each character is a token."""
REPLY = 76
"""Number of tokens of a row that are reserved for the longest reply and the special tokens."""
MUON_RATE, ADAMW_RATE = 0.006, 1.2e-2


@dataclass(frozen=True)
class TrainingStage:
    """A stage of the training. `options` are options of the task `long`. A step has `rows` rows of `row` tokens."""

    name: str
    options: Mapping[str, Any]
    steps: int
    rows: int
    row: int
    core_seconds: float
    decay: float = 0.0


DENSE = "sparse-dense"
PAIRS = "pairs"
LEARNED, STARTS = 0.1, 8
"""Retrieval counts as learned if the mean loss of the last 50 steps of the stage `PAIRS` is below `LEARNED`. If retrieval is
not learned, training begins again with other initial weights. Training begins at most `STARTS` times in all.

A model that answers with a random value from the text has a loss of about 0.4.
"""


def stages(length: int) -> tuple[TrainingStage, ...]:
    """Return the stages of the dense training, which ends with texts of up to `length` characters.

    The model first learns retrieval, from short texts with few pairs and without other problems. Then the model learns
    to count, even from short texts. With longer texts, retrieval and counting need more steps. If other problems are mixed in,
    retrieval needs more steps (docs/LOG.md).
    """
    few = {"length": 50, "shortest": 30, "pairs": 4, "questions": 4}
    short = {"names": list(KINDS), "length": length // 4, "shortest": 64, "questions": 8}
    long = {"names": list(KINDS), "length": length, "shortest": max(64, length // 8), "questions": 8}
    return (
        TrainingStage(PAIRS, {"names": ["needle"]} | few, 600, 32, 148, 180),
        TrainingStage("mixed", {"names": list(KINDS)} | few, 1000, 32, 148, 200),
        TrainingStage("short", short, 800, 8, length // 4 + REPLY, 130),
        TrainingStage("dense", long, 1200, 4, length + REPLY, 650, 0.5),
    )


def dense_model(length: int) -> ModelConfig:
    """Return the dense model: three layers with latent attention and dense feed-forward networks."""
    mla = MLAConfig(
        num_attention_heads=4,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
    )
    return ModelConfig(
        vocab_size=BASE_VOCAB,
        hidden_size=64,
        stages=(Stage(layers=3, attention=mla, ffn=DenseConfig(intermediate_size=128)),),
        max_position_embeddings=2 * length,
        initializer_range=0.1,
    )


@dataclass(frozen=True, kw_only=True)
class TrainUntilLearned(TrainJob):
    """A training run that is restarted from other initial weights until the model has learned the problems.

    From some initial weights, the model learned retrieval within 500 to 750 steps. From other initial weights, the model did
    not learn retrieval within 1,250 steps (docs/LOG.md). The decision to restart uses only training losses, and all arms of a
    seed share the final run. The cost of the job includes the runs of all starts.
    """

    def do_job(self, place: Path) -> JobCost:
        run, out = self.make(), RunDir(place / self.name)
        cost = JobCost(seconds=0, core_seconds=0)
        for start in range(STARTS):
            failed = RunDir(place / f"{self.name}-{start}")
            if not failed.path.exists():
                fit(run.model_copy(update={"seed": run.seed + 1000 * start}), out, threads=1, quiet=True, extend=False)
                if start == STARTS - 1 or fmean([record["loss"] for record in out.metrics()][-50:]) < LEARNED:
                    break
                out.path.rename(failed.path)
            cost += run_cost(failed)
        return cost + run_cost(out)


def stage_run(
    number: int,
    place: Path,
    seed: int,
    share: float,
    length: int = LENGTH,
    model: ModelConfig | None = None,
    arm: str = "sparse",
) -> Run:
    """Return the training run of stage `number` of an arm. The run starts from the run
    of the previous stage. The default model is `dense_model`."""
    before, stage = stages(length)[number - 1], stages(length)[number]
    steps = scale_amount(stage.steps, share)
    return Run(
        recipe="sft",
        seed=seed,
        steps=steps,
        start=StartConfig(run=str(place / f"{arm}-{before.name}")) if number else StartConfig(),
        model=model or dense_model(length),
        source=WorkedConfig(
            task="long", options=dict(stage.options), think=float(number > 0), rows=stage.rows, row=stage.row
        ),
        optim=MuonConfig(
            lr=MUON_RATE,
            adamw=AdamWConfig(lr=ADAMW_RATE, betas=(0.9, 0.98)),
            schedule=LearningRateSchedule(warmup=max(1, min(20, steps // 10)), decay=stage.decay),
        ),
        micro_batches=1,
        save_seconds=20.0,
    )


def training_jobs(
    seed: int,
    place: Path,
    share: float,
    length: int,
    *,
    upto: int,
    model: ModelConfig | None = None,
    arm: str = "sparse",
    slower: float = 1.0,
) -> list[ExperimentJob]:
    """Return the jobs of the first `upto` stages of an arm. `slower` is the time of the arm's training step divided by the time
    of a training step with `dense_model`."""
    jobs: list[ExperimentJob] = []
    for number, stage in enumerate(stages(length)[:upto]):
        needs = (jobs[-1].name,) if jobs else ()
        make = partial(stage_run, number, place, seed, share, length, model, arm)
        train = TrainUntilLearned if stage.name == PAIRS else TrainJob
        estimate = stage.core_seconds * slower * share
        jobs.append(train(name=f"{arm}-{stage.name}", estimate=estimate, needs=needs, make=make))
    return jobs
