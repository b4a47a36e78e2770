"""Shared code of the experiments on model shape. Each arm is a training run that differs in one property of the model from the
arm with which it is compared.

The baseline model is a small DeepSeek-V3 without MTP. All arms of a seed train on the same worked solutions in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rorqual.data.tokenizer import BASE_VOCAB
from rorqual.engine.request import SamplingParams
from rorqual.lab.experiment import scale_amount
from rorqual.lab.held_out import first_problems, load_trained, mean_losses, solution_samples
from rorqual.lab.job import ComputeJob, EvaluationJob, ExperimentJob, TrainJob
from rorqual.model.account import account
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.ffn.router import GroupedTopKConfig, RouterConfig, ZeroExpertsConfig
from rorqual.recipes.start import supervised_objectives
from rorqual.tasks.task import Split
from rorqual.train.balance import BalanceConfig
from rorqual.train.optim import AdamWConfig, MuonConfig
from rorqual.train.run import Run
from rorqual.train.schedule import LearningRateSchedule
from rorqual.train.sources import WorkedConfig

TASK = "families:add,sub,mod,swap,count,kk"
OPTIONS: Mapping[str, Any] = {"hard": 0.0}
ROWS, ROW = 16, 128
CONTEXT = ROW // 2
"""The context length for which the FLOPs per token of two arms are compared. This context length is an upper bound of the mean
number of positions that a token attends to in training.
"""
MUON_RATE, ADAMW_RATE = 0.012, 4e-3
DOCUMENTS, PROBLEMS = 600, 40
"""Number of held-out solutions for measuring the loss, and number of problems per family for measuring accuracy."""
GREEDY = SamplingParams(max_tokens=80)


def baseline() -> ModelConfig:
    """Return the baseline model: one dense layer and two MoE layers, all with latent attention.

    An MoE layer has 16 routed experts, of which each token uses two, and one shared expert.
    """
    d = 64
    mla = MLAConfig(
        num_attention_heads=d // 32,
        q_lora_rank=d // 2,
        kv_lora_rank=3 * d // 8,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
    )
    moe = MoEConfig(
        router=GroupedTopKConfig(n_routed_experts=16, num_experts_per_tok=2),
        moe_intermediate_size=d // 2,
        n_shared_experts=1,
    )
    return ModelConfig(
        vocab_size=BASE_VOCAB,
        hidden_size=d,
        stages=(
            Stage(layers=1, attention=mla, ffn=DenseConfig(intermediate_size=2 * d)),
            Stage(layers=2, attention=mla, ffn=moe),
        ),
        max_position_embeddings=ROW,
        initializer_range=0.05,
    )


def with_router(model: ModelConfig, router: RouterConfig) -> ModelConfig:
    """Return `model` with another router in each MoE layer."""
    return _change_stages(
        model, lambda s: {"ffn": s.ffn.model_copy(update={"router": router})} if s.ffn.kind == "moe" else {}
    )


def with_dense_ffn(model: ModelConfig) -> ModelConfig:
    """Return `model` with a dense feed-forward network in place of each MoE network.

    The width of the dense network is chosen to preserve the FLOPs per token.
    """

    def build(width: int) -> ModelConfig:
        return _change_stages(
            model, lambda s: {"ffn": DenseConfig(intermediate_size=width)} if s.ffn.kind == "moe" else {}
        )

    wanted = account(model, context=CONTEXT).flops
    return min(
        map(build, range(1, 8 * model.hidden_size)), key=lambda m: abs(account(m, context=CONTEXT).flops - wanted)
    )


def with_multi_head_attention(model: ModelConfig, *, heads: int) -> ModelConfig:
    """Return `model` with multi-head attention in place of MLA. The head size is chosen to preserve the parameter count."""

    def build(head_dim: int) -> ModelConfig:
        attention = GQAConfig(num_attention_heads=heads, num_key_value_heads=heads, head_dim=head_dim)
        return _change_stages(model, lambda stage: {"attention": attention})

    wanted = account(model).total
    return min(map(build, range(2, 2 * model.hidden_size, 2)), key=lambda m: abs(account(m).total - wanted))


def with_mtp(model: ModelConfig) -> ModelConfig:
    """Return `model` with one MTP module."""
    return model.model_copy(update={"num_nextn_predict_layers": 1})


def _change_stages(model: ModelConfig, change: Callable[[Stage], dict[str, Any]]) -> ModelConfig:
    return model.model_copy(update={"stages": tuple(s.model_copy(update=change(s)) for s in model.stages)})


@dataclass(frozen=True)
class TrainingArm:
    """One training run of a comparison. `core_seconds` is the time of the full run on the reference machine.

    `factor` multiplies the learning rates of Muon and AdamW. The candidates for `factor` were 0.5, 1 and 2, or 0.25, 0.5 and 1
    for the arms that compare routers. `factor` is the candidate with the lowest mean loss on `DEV_SEEDS` and the dev split
    (`benchmarks/shapes.py rates`; the losses are in docs/results/lab/). Arms that differ only in the number of steps have the
    same `factor`. `options` are the options of the task.
    """

    label: str
    model: Callable[[], ModelConfig]
    steps: int
    core_seconds: float
    factor: float = 1.0
    options: Mapping[str, Any] = field(default_factory=lambda: OPTIONS)


MOE, DENSE_FLOPS, DENSE_CLOCK = "shape-moe", "shape-dense-flops", "shape-dense-clock"
FULL, MTP, PLAIN_CLOCK = "shape-full", "shape-mtp", "shape-plain-clock"
ZERO, FIXED, FIXED_CLOCK = "shape-zero", "shape-fixed", "shape-fixed-clock"
STEPS, ROUTED_STEPS = 300, 1000
DENSE_STEP, MTP_STEP = 0.83, 1.33
"""Core-seconds per step of the dense and the MTP model, relative to the baseline.

`benchmarks/shapes.py speed` measured 0.81 (dense) and 1.32 (MTP), and `benchmarks/shapes.py rates` measured 0.85 and 1.35.
"""
ZERO_STEP = 1.05
"""Core-seconds per training step of the model with identity experts, relative to the model with two experts per token, as
measured on `DEV_SEEDS`."""
HARD: Mapping[str, Any] = {"hard": 0.5}
ZERO_ROUTER = ZeroExpertsConfig(
    n_routed_experts=16, zero_expert_num=8, num_experts_per_tok=3, expected_experts=2.0, routed_scaling_factor=3.0
)
FIXED_ROUTER = GroupedTopKConfig(
    n_routed_experts=16,
    num_experts_per_tok=2,
    scoring_func="softmax",
    norm_topk_prob=False,
    routed_scaling_factor=3.0,
)
ARMS: Mapping[str, TrainingArm] = {
    MOE: TrainingArm("experts + latent", baseline, STEPS, 25),
    DENSE_FLOPS: TrainingArm("dense + latent", lambda: with_dense_ffn(baseline()), STEPS, 21),
    DENSE_CLOCK: TrainingArm(
        "dense + latent (more steps)", lambda: with_dense_ffn(baseline()), round(STEPS / DENSE_STEP), 24
    ),
    FULL: TrainingArm("experts + full", lambda: with_multi_head_attention(baseline(), heads=2), STEPS, 24),
    MTP: TrainingArm("experts + latent + MTP", lambda: with_mtp(baseline()), STEPS, 33),
    ZERO: TrainingArm("identity experts", lambda: with_router(baseline(), ZERO_ROUTER), ROUTED_STEPS, 79, 0.5, HARD),
    FIXED: TrainingArm("two experts", lambda: with_router(baseline(), FIXED_ROUTER), ROUTED_STEPS, 75, 0.5, HARD),
    FIXED_CLOCK: TrainingArm(
        "two experts (more steps)",
        lambda: with_router(baseline(), FIXED_ROUTER),
        round(ROUTED_STEPS * ZERO_STEP),
        79,
        0.5,
        HARD,
    ),
    PLAIN_CLOCK: TrainingArm("experts + latent (more steps)", baseline, round(STEPS * MTP_STEP), 34),
}
DEV_SEEDS = (7, 8)


def shape_run(name: str, seed: int, share: float = 1.0, factor: float = 0.0) -> Run:
    """Return the training run of an arm. If the argument `factor` is 0, the learning rates are multiplied by the arm's
    own `factor`.

    The learning rate warms up over the first tenth of the steps and decays over the last two fifths.
    """
    arm = ARMS[name]
    model, steps, factor = arm.model(), scale_amount(arm.steps, share), factor or arm.factor
    schedule = LearningRateSchedule(warmup=max(1, steps // 10), decay=0.4)
    return Run(
        recipe="shape",
        seed=seed,
        steps=steps,
        model=model,
        source=WorkedConfig(task=TASK, options=dict(arm.options), rows=ROWS, row=ROW),
        objectives=supervised_objectives(model),
        optim=MuonConfig(
            lr=MUON_RATE * factor,
            adamw=AdamWConfig(lr=ADAMW_RATE * factor, betas=(0.9, 0.98)),
            schedule=schedule,
        ),
        balance=BalanceConfig(gamma=0.01),
        micro_batches=1,
        save_seconds=20.0,
    )


def shape_jobs(names: Iterable[str], seed: int, share: float) -> list[ExperimentJob]:
    """Return each arm's jobs: train, measure the loss on held-out solutions, and evaluate answers with forced thinking."""
    jobs: list[ExperimentJob] = []
    for name in names:
        measure = EvaluationJob(
            name=f"{name}-on",
            estimate=1 * share,
            needs=(name,),
            model=name,
            seed=seed,
            task=TASK,
            options=dict(ARMS[name].options),
            count=scale_amount(PROBLEMS, share, 1),
            thinking="on",
            params=GREEDY,
        )
        loss = ComputeJob(
            name=f"{name}-loss",
            estimate=1 * share,
            needs=(name,),
            function=partial(held_out_losses, name=name, seed=seed, count=scale_amount(DOCUMENTS, share)),
        )
        train = TrainJob(
            name=name, estimate=ARMS[name].core_seconds * share, make=partial(shape_run, name, seed, share)
        )
        jobs += [train, loss, measure]
    return jobs


def held_out_losses(place: Path, *, name: str, seed: int, count: int, split: Split = "test") -> list[float]:
    """Return the loss of the run `place/name` on each of `count` held-out solutions. All arms of a seed use the same solutions."""
    model, chat = load_trained(place / name)
    return mean_losses(model, solution_samples(first_problems(TASK, ARMS[name].options, split, seed, count), chat))
