"""Distillation: train a student on a teacher's samples, or on the teacher's probabilities for the student's own samples."""

from __future__ import annotations

from typing import Any, Literal

from rorqual.core.config import (
    Count,
    Natural,
    NonNegative,
    Positive,
    RowLength,
    Rows,
    Seed,
    Share,
    Temperature,
    check_arguments,
)
from rorqual.core.records import Thinking
from rorqual.recipes.models import Size
from rorqual.recipes.start import (
    finetune_optim,
    indexer_objectives,
    start_settings,
    supervised_objectives,
    supervised_optimizer,
)
from rorqual.train.balance import BalanceConfig
from rorqual.train.objectives import Distil, NextToken
from rorqual.train.objectives.distil import Divergence
from rorqual.train.run import Dtype, Run, agreement_limits
from rorqual.train.sources import DistilledConfig, OnPolicyConfig


@check_arguments
def distil(
    data: str,
    start: str = "",
    tokenizer: str = "bytes",
    size: Size = "student",
    objective: Literal["sequence", Divergence] = "sequence",
    alpha: Share = 0.1,
    next_token: NonNegative = 0.0,
    longer: Literal["error", "skip"] = "error",
    lr: NonNegative = 0.0,
    steps: Count = 600,
    rows: Rows = 32,
    row: RowLength = 128,
    seed: Seed = 0,
) -> Run:
    """Train a student, from a run or from random weights, on a teacher's samples.

    data=FILE.parquet is a file that `rorqual distil` wrote. With objective=sequence, the student is trained with the
    next-token loss on the samples, like DeepSeek-R1's students. With objective=forward, reverse, skewed or skewed_reverse, the
    loss is the KL divergence of this name between the student's distribution and the teacher's stored log-probabilities. The
    next-token loss, multiplied by `next_token`, is added to the KL divergence.
    """
    begin, model, chat = start_settings(start, tokenizer, size, row, default_size="student")
    if objective == "sequence":
        objectives = supervised_objectives(model)
    else:
        tokens = (NextToken(coefficient=next_token),) if next_token else ()
        objectives = (Distil(divergence=objective, alpha=alpha), *tokens, *indexer_objectives(model))
    return Run(
        recipe="distil",
        seed=seed,
        steps=steps,
        start=begin,
        chat=chat,
        model=model,
        source=DistilledConfig(data=data, rows=rows, row=row, longer=longer, logits=objective != "sequence"),
        objectives=objectives,
        optim=supervised_optimizer(lr),
        balance=BalanceConfig(gamma=0.01),
    )


@check_arguments
def on_policy(
    teacher: str,
    start: str,
    task: str,
    data: str = "",
    divergence: Divergence = "reverse",
    alpha: Share = 0.1,
    top_k: Natural = 0,
    steps: Count = 40,
    problems: Count = 64,
    samples: Count = 4,
    max_tokens: Count = 96,
    row: RowLength = 128,
    temperature: Temperature = 1.0,
    thinking: Thinking = "auto",
    options: dict[str, Any] | None = None,
    lr: Positive = 5e-4,
    seed: Seed = 0,
    dtype: Dtype = "float32",
) -> Run:
    """Distil a teacher into a student on the student's own samples. The training uses no reward.

    The loss is the divergence between the student's and the teacher's probabilities at each token, by default the reverse KL
    over the whole vocabulary. With `top_k`, the divergence is computed over the teacher's `top_k` most likely tokens, and all
    less likely tokens count as one bucket.
    """
    begin, model, chat = start_settings(start, "bytes", "small", row)
    return Run(
        recipe="on_policy",
        dtype=dtype,
        agreement=agreement_limits(dtype, len(model.layers)),
        seed=seed,
        steps=steps,
        start=begin,
        chat=chat,
        model=model,
        source=OnPolicyConfig(
            teacher=teacher,
            task=task,
            data=data,
            options=options or {},
            problems=problems,
            samples=samples,
            temperature=temperature,
            max_tokens=max_tokens,
            thinking=thinking,
            top_k=top_k,
            row=row,
        ),
        objectives=(
            Distil(divergence=divergence, alpha=alpha, sampling_temperature=temperature),
            *indexer_objectives(model),
        ),
        optim=finetune_optim(lr),
        balance=BalanceConfig(gamma=0.0),
    )
