"""A run: a whole training as one value, which `run.yaml` holds and repeats."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from rorqual.core.config import Config, one_of
from rorqual.model.config import ModelConfig
from rorqual.train.balance import Balance
from rorqual.train.objectives import MultiToken, NextToken, Objective
from rorqual.train.optim import AdamWConfig, OptimConfig
from rorqual.train.sources import SourceConfig


class Start(Config):
    """Where weights and tokenizer come from. `run` empty: fresh weights. `tokenizer`: `bytes`, `bpe:SIZE` (learned from the
    source's text), or a `tokenizer.json`; with a `run` the run's own is taken."""

    run: str = ""
    tokenizer: str = "bytes"


class Run(Config):
    """Amounts of work are numbers of steps and samples; no clock decides anything, so one seed gives one result.

    `micro_batches`: into how many parts an update is divided; worker threads share them. It never changes a gradient by more
    than rounding, but it fixes the order of sums, so it belongs to the run and the number of threads does not.
    """

    recipe: str
    seed: int = Field(0, ge=0)
    steps: int = Field(ge=1)
    start: Start = Start()
    chat: str = "deepseek"
    model: ModelConfig
    source: Annotated[SerializeAsAny[SourceConfig], one_of(SourceConfig)]
    objectives: tuple[Annotated[SerializeAsAny[Objective], one_of(Objective)], ...] = (NextToken(),)
    optim: Annotated[SerializeAsAny[OptimConfig], one_of(OptimConfig)] = AdamWConfig()
    balance: Balance = Balance()
    micro_batches: int = Field(2, ge=1)
    save_seconds: float = Field(5.0, gt=0)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_logprob_diff: float = 1e-4
    mean_logprob_diff: float = 1e-6

    @model_validator(mode="after")
    def _fits(self) -> Self:
        modules = self.model.num_nextn_predict_layers
        for objective in self.objectives:
            if isinstance(objective, MultiToken) and objective.depth != modules:
                raise ValueError(
                    f"objective mtp has depth {objective.depth}, the model has {modules} prediction modules"
                )
        return self
