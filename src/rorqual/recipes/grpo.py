"""Reinforcement on problems with checkable answers."""

from __future__ import annotations

from typing import Any

from rorqual.core.records import Thinking
from rorqual.recipes.start import beginning
from rorqual.train.balance import Balance
from rorqual.train.objectives import GRPO
from rorqual.train.optim import AdamWConfig
from rorqual.train.run import BFLOAT16, FLOAT32, Dtype, Run
from rorqual.train.schedule import Schedule
from rorqual.train.sources import RolloutConfig


def grpo(
    task: str,
    start: str,
    data: str = "",
    steps: int = 40,
    problems: int = 32,
    samples: int = 12,
    max_tokens: int = 96,
    row: int = 128,
    temperature: float = 1.0,
    thinking: Thinking = "auto",
    options: dict[str, Any] | None = None,
    lr: float = 1e-4,
    seed: int = 0,
    dtype: Dtype = "float32",
) -> Run:
    """Reinforce a run on a task, on correctness alone: groups of samples, the right ones up, the wrong ones down (GRPO).

    `data` is the file or folder of a task that reads files.
    No KL term and an asymmetric clip (DAPO); groups with one reward only teach nothing, are left out and counted.
    """
    begin, model = beginning(start, "bytes", "small", row)
    return Run(
        recipe="grpo",
        dtype=dtype,
        agreement=FLOAT32 if dtype == "float32" else BFLOAT16,
        seed=seed,
        steps=steps,
        start=begin,
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
        ),
        objectives=(GRPO(temperature=temperature),),
        optim=AdamWConfig(lr=lr, betas=(0.9, 0.95), schedule=Schedule(warmup=3, decay=0.5, final=0.1)),
        balance=Balance(gamma=0.0),
    )
