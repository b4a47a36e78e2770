"""Reinforcement learning on problems with checkable answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from rorqual.core.config import MOST, Count, NonNegative, Positive, RowLength, Seed, Temperature, check_arguments
from rorqual.core.records import Thinking
from rorqual.recipes.start import finetune_optim, indexer_objectives, start_settings
from rorqual.train.balance import BalanceConfig
from rorqual.train.objectives import GRPO
from rorqual.train.run import Dtype, Run, agreement_limits
from rorqual.train.sources import RolloutConfig

GroupSize = Annotated[int, Field(ge=2, le=MOST)]
Variant = Literal["none", "dapo", "dr_grpo", "gspo", "cispo", "v32"]


def variant_settings(name: Variant, max_tokens: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the settings of the objective and of the rollout source for a GRPO variant. docs/how-to/grpo.md cites the papers."""
    presets: dict[Variant, tuple[dict[str, Any], dict[str, Any]]] = {
        "none": ({}, {}),
        "dapo": (
            {},  # the default clip range and token-level mean are already DAPO's
            {"max_num_gen_batches": 4, "overlong_buffer": max(1, max_tokens // 5), "overlong_penalty": 0.5},
        ),
        "dr_grpo": ({"per": "constant", "max_tokens": max_tokens, "clip_high": 0.2}, {"std": False}),
        "gspo": (
            {"importance_sampling_level": "sequence", "per": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
            {},
        ),
        "cispo": ({"loss_type": "cispo", "clip_low": 1.0, "clip_high": 4.0}, {}),
        "v32": (
            {"per": "sequence", "clip_high": 0.2, "beta": 1e-3, "kl": "unbiased", "off_policy_delta": 0.5},
            {"std": False, "top_p": 0.95},
        ),
    }
    return presets[name]


@check_arguments
def grpo(
    task: str,
    start: str,
    data: str = "",
    steps: Count = 40,
    problems: Count = 32,
    samples: GroupSize = 12,
    max_tokens: Count = 96,
    row: RowLength = 128,
    temperature: Temperature = 1.0,
    thinking: Thinking = "auto",
    variant: Variant = "none",
    tis_cap: NonNegative = 0.0,
    beta: NonNegative | None = None,
    reference: str = "",
    options: dict[str, Any] | None = None,
    lr: Positive = 1e-4,
    seed: Seed = 0,
    dtype: Dtype = "float32",
) -> Run:
    """Train a model on a task with GRPO. By default, the only reward is the correctness of the answer.

    `data` is the file or folder that the task reads, if the task reads files. By default there is no KL term, and the
    clip range is asymmetric, as in DAPO. If all samples of a group have the same reward, the advantages of these samples are 0.
    Unless there is a KL term, training skips groups whose samples all have the same reward. The number of skipped groups is
    logged.

    `variant` selects the settings of a published GRPO variant. Each of these settings can also be set individually
    (docs/how-to/grpo.md). `beta` is the coefficient of the KL divergence from the run `reference`, by default the run that
    training starts from.
    """
    begin, model, chat = start_settings(start, "bytes", "small", row)
    objective, source = variant_settings(variant, max_tokens)
    if beta is not None:
        objective = {**objective, "beta": beta}
    return Run(
        recipe="grpo",
        dtype=dtype,
        agreement=agreement_limits(dtype, len(model.layers)),
        seed=seed,
        steps=steps,
        start=begin,
        chat=chat,
        model=model,
        source=RolloutConfig(
            task=task,
            data=data,
            options=options or {},
            problems=problems,
            samples=samples,
            temperature=temperature,
            max_tokens=max_tokens,
            thinking=thinking,
            row=row,
            reference=reference or (start if objective.get("beta") else ""),
            **source,
        ),
        objectives=(GRPO(temperature=temperature, tis_cap=tis_cap, **objective), *indexer_objectives(model)),
        optim=finetune_optim(lr),
        balance=BalanceConfig(gamma=0.0),
    )
