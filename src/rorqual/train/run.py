"""A run: the whole definition of a training, stored in `run.yaml` so that it can be repeated."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import SerializeAsAny, model_validator

from rorqual.core.config import Config, Count, Natural, NonNegative, Positive, Seed, one_of
from rorqual.model.adapter import Full, Tune
from rorqual.model.config import ModelConfig
from rorqual.ops.backends import backend, resolved
from rorqual.train.balance import Balance
from rorqual.train.objectives import AuxBalance, MultiToken, NextToken, Objective
from rorqual.train.optim import AdamWConfig, OptimConfig
from rorqual.train.sources import SourceConfig


class Start(Config):
    """The origin of weights and tokenizer. An empty `run` means new weights.

    `tokenizer` is `bytes`, `bpe:SIZE` (learned from the source's text), or the path of a `tokenizer.json`. With a `run`, that
    run's tokenizer is used instead.
    """

    run: str = ""
    tokenizer: str = "bytes"


Dtype = Literal["float32", "bfloat16"]


class Agreement(Config):
    """How far trainer and sampler may differ on fresh samples, with the sampler's expert choices replayed.

    `mean` and `most` limit the average and the largest absolute difference of log-probabilities, in nats. `gap` limits how far
    the score of a replayed expert may be below the router's own choice.
    """

    mean: NonNegative
    most: NonNegative
    gap: NonNegative


FLOAT32 = Agreement(mean=1e-6, most=1e-4, gap=1e-4)
BFLOAT16 = Agreement(mean=1e-2, most=1.0, gap=0.05)
"""Limits for a bf16 trainer and an fp32 sampler. The quickstart's model measured 3e-3, 0.21 and 0.009 (docs/log/training-and-quickstart.md)."""
SHALLOW = 8
"""Number of layers up to which `FLOAT32` holds."""


def agreement(dtype: Dtype, layers: int) -> Agreement:
    """Return the limits for a model with `layers` layers. In fp32 they grow with depth, since rounding errors add up.

    SmolLM2, with 30 layers, differs by 1.4e-6 on average and by at most 4e-5 (docs/log/checkpoints-and-gguf.md).
    """
    if dtype != "float32":
        return BFLOAT16
    scale = max(1.0, layers / SHALLOW)
    return Agreement(mean=scale * FLOAT32.mean, most=scale * FLOAT32.most, gap=scale * FLOAT32.gap)


class Extension(Config):
    """An increase of `steps` in the same folder. After step `from_step` the schedule spans `new_steps` instead of `old_steps`."""

    from_step: Natural
    old_steps: Count
    new_steps: Count


BACKENDS = {"fast": "torch", "invariant": "torch-invariant"}
"""The backend of each value of `arithmetic` in older run.yaml files."""


class Run(Config):
    """A whole training. Work is measured in steps and samples, never in time, so that one seed gives one result.

    `micro_batches` is the number of parts of an update, which worker threads share. It changes gradients by rounding only.
    It fixes the order of sums, so it belongs to the run; the number of threads does not.

    `backend` 'torch-invariant' makes the trainer round as the engine does (docs/explanation/engine.md). In float32 its log-probabilities of
    fresh samples then equal the sampler's bit for bit. It is slower, and not the default.

    `tune` selects the weights to train (docs/how-to/adapters.md). If that is only a part, routers and their biases are frozen, and
    `balance` has no effect.

    `extensions` and `versions` are not settings; the loop writes them. `extensions` records increases of `steps` in the same
    folder, `versions` the versions of generated problem families.
    """

    recipe: str
    seed: Seed = 0
    steps: Count
    start: Start = Start()
    chat: str = "deepseek"
    model: ModelConfig
    source: Annotated[SerializeAsAny[SourceConfig], one_of(SourceConfig)]
    objectives: tuple[Annotated[SerializeAsAny[Objective], one_of(Objective)], ...] = (NextToken(),)
    optim: Annotated[SerializeAsAny[OptimConfig], one_of(OptimConfig)] = AdamWConfig()
    balance: Balance = Balance()
    tune: Annotated[SerializeAsAny[Tune], one_of(Tune)] = Full()
    micro_batches: Count = 2
    save_seconds: Positive = 5.0
    device: str = "cpu"
    dtype: Dtype = "float32"
    backend: str = "torch"
    agreement: Agreement = FLOAT32
    extensions: tuple[Extension, ...] = ()
    versions: dict[str, int] = {}

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, value: Any) -> Any:
        """Read a run.yaml written before backends had names, and resolve a backend in a file."""
        if isinstance(value, dict) and value.get("arithmetic") in BACKENDS:
            value = {**value, "backend": BACKENDS[value["arithmetic"]]}
            del value["arithmetic"]
        if isinstance(value, dict) and isinstance(value.get("backend"), str):
            value = {**value, "backend": resolved(value["backend"])}
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        backend(self.backend)
        modules = self.model.num_nextn_predict_layers
        if not self.tune.whole and not self.start.run:
            raise ValueError(f"tune.kind={self.tune.kind} trains a part of an existing model: name its run (from=RUN)")
        for objective in self.objectives:
            if isinstance(objective, MultiToken) and objective.depth != modules:
                raise ValueError(
                    f"objective mtp has depth {objective.depth}, but the model has {modules} prediction modules"
                )
            if missing := objective.needs() - self.source.gives():
                raise ValueError(
                    f"objective {objective.kind} needs {', '.join(sorted(missing))}, which source {self.source.kind} does not "
                    "provide (a KL term needs source.reference=RUN)"
                )
            if isinstance(objective, AuxBalance) and self.micro_batches > 1:
                raise ValueError(
                    f"objective aux_balance needs the whole batch at once: set micro_batches=1, not {self.micro_batches}"
                )
        return self
