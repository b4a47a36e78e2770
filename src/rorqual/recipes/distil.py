"""A student from a teacher: trained on the teacher's samples, or on what the teacher says of the student's own."""

from __future__ import annotations

from typing import Any, Literal

from rorqual.core.config import Count, Natural, NonNegative, Positive, RowLength, Rows, Seed, Share, Temperature
from rorqual.core.errors import ConfigError
from rorqual.core.records import Thinking
from rorqual.recipes.models import Size
from rorqual.recipes.start import beginning, nudged, supervised, tuned
from rorqual.train.balance import Balance
from rorqual.train.objectives import Distil, NextToken, Objective
from rorqual.train.objectives.distil import Divergence, Tail
from rorqual.train.run import Dtype, Run, agreement
from rorqual.train.sources import DistilledConfig, OnPolicyConfig


def distil(
    data: str,
    start: str = "",
    tokenizer: str = "bytes",
    size: Size = "student",
    objective: Literal["sequence", Divergence] = "sequence",
    alpha: Share = 0.1,
    temperature: Temperature = 1.0,
    tail: Tail = "bucket",
    next_token: NonNegative = 0.0,
    longer: Literal["error", "skip"] = "error",
    lr: NonNegative = 0.0,
    steps: Count = 600,
    rows: Rows = 32,
    row: RowLength = 128,
    seed: Seed = 0,
) -> Run:
    """Train a student on a teacher's samples (data=FILE.parquet, which `rorqual distil` wrote): from a run, or fresh.

    objective=sequence: the next token of the samples, as DeepSeek-R1's students were. forward, reverse, skewed, skewed_reverse:
    KL from the teacher's stored log-probabilities, with `next_token` times the loss of the samples' own tokens beside it.
    """
    begin, model, chat = beginning(start, tokenizer, size, row)
    if objective == "sequence":
        objectives = supervised(model)
    else:
        if temperature != 1 and tail == "bucket":
            raise ConfigError(
                f"temperature={temperature}: what is not among the stored tokens cannot be softened",
                where="train distil",
                remedy="Add tail=renormalise.",
            )
        objectives = mixed_with(
            Distil(divergence=objective, alpha=alpha, temperature=temperature, tail=tail), next_token
        )
    return Run(
        recipe="distil",
        seed=seed,
        steps=steps,
        start=begin,
        chat=chat,
        model=model,
        source=DistilledConfig(data=data, rows=rows, row=row, longer=longer, logits=objective != "sequence"),
        objectives=objectives,
        optim=tuned(lr),
        balance=Balance(gamma=0.01),
    )


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
    """Distil on the student's own answers: it samples, the teacher (a run) says at each place what it would write; no reward.

    Reverse KL by default, over the whole vocabulary, or over the teacher's `top_k` likeliest tokens and the rest as one.
    """
    begin, model, chat = beginning(start, "bytes", "student", row)
    return Run(
        recipe="on_policy",
        dtype=dtype,
        agreement=agreement(dtype, len(model.layers)),
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
        objectives=(Distil(divergence=divergence, alpha=alpha, sampling_temperature=temperature),),
        optim=nudged(lr),
        balance=Balance(gamma=0.0),
    )


def mixed_with(distil: Distil, next_token: float) -> tuple[Objective, ...]:
    """The divergence and, where its coefficient is not 0, the loss of the samples' own tokens."""
    return (distil, NextToken(coefficient=next_token)) if next_token else (distil,)
