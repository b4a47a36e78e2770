"""Supervised fine-tuning on a task's worked solutions, or on conversations from a file."""

from __future__ import annotations

from typing import Any

from rorqual.core.config import Count, NonNegative, RowLength, Rows, Seed, Share, check_arguments
from rorqual.core.errors import ConfigError
from rorqual.recipes.models import Size
from rorqual.recipes.start import start_settings, supervised_objectives, supervised_optimizer
from rorqual.train.balance import BalanceConfig
from rorqual.train.run import Run
from rorqual.train.sources import ConversationsConfig, SourceConfig, WorkedConfig


@check_arguments
def sft(
    data: str = "",
    task: str = "",
    start: str = "",
    tokenizer: str = "bytes",
    size: Size = "small",
    steps: Count = 600,
    rows: Rows = 32,
    row: RowLength = 128,
    think: Share = 1.0,
    options: dict[str, Any] | None = None,
    sequence_balance: NonNegative = 0.0,
    lr: NonNegative = 0.0,
    seed: Seed = 0,
) -> Run:
    """Fine-tune on conversations (data=FILE, JSONL or Parquet of messages) or on a task's worked solutions (task=NAME).

    If both `task` and `data` are given, `data` is the file or folder that the task reads, as for task=gsm8k. The loss
    covers the assistant's tokens: thinking, answer and end of turn.

    By default, Muon trains hidden matrices and AdamW trains all other parameters. The default learning rates suit new
    small models. For a pretrained model, set `lr` (for example, 1e-3 with tune.kind=lora). If `lr` is set, AdamW trains all
    parameters at the learning rate `lr`.
    """
    if not data and not task:
        raise ConfigError("sft requires data=FILE or task=NAME", where="train sft", remedy="Add data= or task=.")
    begin, model, chat = start_settings(start, tokenizer, size, row)
    source: SourceConfig = (
        WorkedConfig(task=task, data=data, options=options or {}, think=think, rows=rows, row=row)
        if task
        else ConversationsConfig(data=data, rows=rows, row=row)
    )
    return Run(
        recipe="sft",
        seed=seed,
        steps=steps,
        start=begin,
        chat=chat,
        model=model,
        source=source,
        objectives=supervised_objectives(model, sequence_balance),
        optim=supervised_optimizer(lr),
        balance=BalanceConfig(gamma=0.01),
    )
