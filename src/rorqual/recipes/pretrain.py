"""Pretraining on plain text."""

from __future__ import annotations

from rorqual.core.config import Count, NonNegative, RowLength, Rows, Seed, check_arguments
from rorqual.recipes.models import Size
from rorqual.recipes.start import start_settings, supervised_objectives
from rorqual.train.balance import BalanceConfig
from rorqual.train.optim import AdamWConfig, MuonConfig
from rorqual.train.run import Run
from rorqual.train.schedule import LearningRateSchedule
from rorqual.train.sources import TextConfig


@check_arguments
def pretrain(
    data: str,
    start: str = "",
    tokenizer: str = "bytes",
    size: Size = "small",
    steps: Count = 2000,
    rows: Rows = 32,
    row: RowLength = 64,
    sequence_balance: NonNegative = 0.0,
    seed: Seed = 0,
) -> Run:
    """Pretrain on a text file by next-token prediction. The last tenth of the file is held out."""
    begin, model, chat = start_settings(start, tokenizer, size, row)
    return Run(
        recipe="pretrain",
        seed=seed,
        steps=steps,
        start=begin,
        chat=chat,
        model=model,
        source=TextConfig(data=data, rows=rows, row=row),
        objectives=supervised_objectives(model, sequence_balance),
        optim=MuonConfig(
            lr=0.02, adamw=AdamWConfig(lr=2e-3, betas=(0.9, 0.98)), schedule=LearningRateSchedule(warmup=50, decay=0.4)
        ),
        balance=BalanceConfig(gamma=0.01),
    )
