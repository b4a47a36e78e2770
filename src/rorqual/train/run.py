"""A run: a whole training as one value, which `run.yaml` holds and repeats."""

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
    """Where weights and tokenizer come from. `run` empty: fresh weights. `tokenizer`: `bytes`, `bpe:SIZE` (learned from the
    source's text), or a `tokenizer.json`; with a `run` the run's own is taken."""

    run: str = ""
    tokenizer: str = "bytes"


Dtype = Literal["float32", "bfloat16"]


class Agreement(Config):
    """How far trainer and sampler may differ on what was just sampled, the sampler's expert choices replayed.

    `mean` and `most` are absolute differences of log-probabilities in nats, `gap` how far a replayed expert may lie below the
    router's own choice, in score.
    """

    mean: NonNegative
    most: NonNegative
    gap: NonNegative


FLOAT32 = Agreement(mean=1e-6, most=1e-4, gap=1e-4)
BFLOAT16 = Agreement(mean=1e-2, most=1.0, gap=0.05)
"""A trainer in bf16 beside a sampler in fp32. Measured on the quickstart's model: mean 3e-3, most 0.21, gap 0.009 (docs/LOG.md)."""
SHALLOW = 8
"""Layers up to which `FLOAT32` holds."""


def agreement(dtype: Dtype, layers: int) -> Agreement:
    """How far a model of so many layers may differ. In fp32 roundings add up from layer to layer: SmolLM2, with 30, differs by 1.4e-6
    in the mean and by 4e-5 at most (docs/LOG.md)."""
    if dtype != "float32":
        return BFLOAT16
    scale = max(1.0, layers / SHALLOW)
    return Agreement(mean=scale * FLOAT32.mean, most=scale * FLOAT32.most, gap=scale * FLOAT32.gap)


class Extension(Config):
    """More steps in the same folder: after step `from_step` the schedule is of `new_steps`, up to there it was of `old_steps`."""

    from_step: Natural
    old_steps: Count
    new_steps: Count


BACKENDS = {"fast": "torch", "invariant": "torch-invariant"}
"""What `backend` says of an older run.yaml's `arithmetic`."""


class Run(Config):
    """Amounts of work are numbers of steps and samples; no clock decides anything, so one seed gives one result.

    `micro_batches`: into how many parts an update is divided; worker threads share them. It never changes a gradient by more
    than rounding, but it fixes the order of sums, so it belongs to the run and the number of threads does not.

    `backend` 'torch-invariant': the trainer rounds as the engine does (docs/engine.md), so that in float32 its log-probabilities of what was
    just sampled are the sampler's, bit for bit. It is slower, and off by default.

    `tune`: what is trained (docs/adapters.md). Where that is not everything, routers are frozen and so are their biases: `balance`
    moves none.

    `extensions` and `versions` are no settings: the loop writes them, where `steps` grew in the same folder, and for the families whose
    problems are drawn.
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
        """Read a run.yaml from before backends had names, and resolve a backend in a file."""
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
            raise ValueError(f"tune.kind={self.tune.kind} trains a part of a run's model: name the run (from=RUN)")
        for objective in self.objectives:
            if isinstance(objective, MultiToken) and objective.depth != modules:
                raise ValueError(
                    f"objective mtp has depth {objective.depth}, the model has {modules} prediction modules"
                )
            if missing := objective.needs() - self.source.gives():
                raise ValueError(
                    f"objective {objective.kind} needs {', '.join(sorted(missing))}, which source {self.source.kind} does not "
                    "give (a KL term needs source.reference=RUN)"
                )
            if isinstance(objective, AuxBalance) and self.micro_batches > 1:
                raise ValueError(
                    f"objective aux_balance is a product of means over the whole batch: micro_batches=1, not {self.micro_batches}"
                )
        return self
