"""The complete settings of a training run, stored in `run.yaml` so that the run can be repeated."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import SerializeAsAny, model_validator

from rorqual.core.config import Config, Count, Natural, NonNegative, Positive, Seed, one_of
from rorqual.core.registry import load_recorded_plugins
from rorqual.model.adapter import FullTuning, Tune
from rorqual.model.config import ModelConfig
from rorqual.ops.backends import absolute_backend_name, backend
from rorqual.train.balance import BalanceConfig
from rorqual.train.objectives import DPO, AuxBalance, IndexerWarmup, MultiToken, NextToken, Objective
from rorqual.train.optim import AdamWConfig, OptimConfig
from rorqual.train.sources import PreferencesConfig, SourceConfig


class StartConfig(Config):
    """The initial weights and the tokenizer of a run.

    `run` is a run directory whose weights and tokenizer are used. If `run` is empty, weights are newly initialized, and
    `tokenizer` is `bytes`, `bpe:SIZE` (trained on the source's text) or the path of a `tokenizer.json`.
    """

    run: str = ""
    tokenizer: str = "bytes"


Dtype = Literal["float32", "bfloat16"]


class SamplerAgreementLimits(Config):
    """Limits on the difference between trainer and sampler, both with the same weights and the sampler's expert choices.

    `mean` and `most` limit the average and the largest absolute difference of log-probabilities, in nats. `gap` limits how far
    the router scores of the replayed experts may be below the scores of the router's own choice.
    """

    mean: NonNegative
    most: NonNegative
    gap: NonNegative


FLOAT32 = SamplerAgreementLimits(mean=1e-6, most=1e-4, gap=1e-4)
BFLOAT16 = SamplerAgreementLimits(mean=1e-2, most=1.0, gap=0.05)
"""Limits on the difference between a bf16 trainer and an fp32 sampler.

On the quickstart's model, the measured differences were 3e-3 nats (`mean`), 0.21 nats (`most`) and 0.009 (`gap`) (docs/LOG.md).
"""
SHALLOW = 8
"""Largest number of layers for which the `FLOAT32` limits are used unscaled."""


def agreement_limits(dtype: Dtype, layers: int) -> SamplerAgreementLimits:
    """Return the limits on the difference of trainer and sampler for a model with `layers` layers. In fp32 the limits grow with
    depth, because rounding errors add up.

    For SmolLM2 with 30 layers, trainer and sampler differ by 1.4e-6 nats on average and by at most 4e-5 nats
    (docs/LOG.md).
    """
    if dtype != "float32":
        return BFLOAT16
    scale = max(1.0, layers / SHALLOW)
    return SamplerAgreementLimits(mean=scale * FLOAT32.mean, most=scale * FLOAT32.most, gap=scale * FLOAT32.gap)


class RunExtension(Config):
    """A record that a run was extended. After step `from_step`, the schedule spans `new_steps` instead of `old_steps`."""

    from_step: Natural
    old_steps: Count
    new_steps: Count


BACKENDS = {"fast": "torch", "invariant": "torch-invariant"}
"""Maps each value of `arithmetic`, a setting of older Rorqual versions, to a backend."""


class Run(Config):
    """The settings of a training run. The length of a run is set in steps and samples, not in time, so that the seed determines
    the trained weights.

    `micro_batches` is the number of micro-batches per update, which worker threads process in parallel. `micro_batches` is a
    setting because the number of micro-batches determines the order of sums and thus the rounding of gradients. The number of
    threads does not affect results.

    `backend=torch-invariant` makes the trainer round like the engine (docs/explanation/engine.md). With
    `torch-invariant` in float32, the trainer's log-probabilities of new samples are bit-identical to the sampler's.
    `torch-invariant` is slower than the default backend.

    `tune` selects the weights to train (docs/how-to/adapters.md). Unless `tune` trains the whole model, routers and their
    biases are frozen, and `balance` has no effect.

    The loop writes `extensions`, `versions`, `frozen_models` and `plugins`, which are not settings. `extensions` records each
    later increase of `steps`. `versions` records the version of each generated problem family. `frozen_models` records the
    SHA-256 of the checkpoint of the teacher or the reference. `plugins` records the plug-in files that were loaded, as path ->
    SHA-256. A config with `plugins` loads these files.
    """

    recipe: str
    seed: Seed = 0
    steps: Count
    start: StartConfig = StartConfig()
    chat: str = "deepseek"
    model: ModelConfig
    source: Annotated[SerializeAsAny[SourceConfig], one_of(SourceConfig)]
    objectives: tuple[Annotated[SerializeAsAny[Objective], one_of(Objective)], ...] = (NextToken(),)
    optim: Annotated[SerializeAsAny[OptimConfig], one_of(OptimConfig)] = AdamWConfig()
    balance: BalanceConfig = BalanceConfig()
    tune: Annotated[SerializeAsAny[Tune], one_of(Tune)] = FullTuning()
    micro_batches: Count = 2
    save_seconds: Positive = 5.0
    device: str = "cpu"
    dtype: Dtype = "float32"
    backend: str = "torch"
    agreement: SamplerAgreementLimits = FLOAT32
    extensions: tuple[RunExtension, ...] = ()
    versions: dict[str, int] = {}
    frozen_models: dict[str, str] = {}
    plugins: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _rename_older_settings(cls, value: Any) -> Any:
        """Load the recorded plug-ins, and convert the setting `arithmetic` of older Rorqual versions. If `backend` contains a path,
        make the path absolute."""
        if isinstance(value, dict):
            load_recorded_plugins(value.get("plugins"), "run.yaml (plugins)")
        if isinstance(value, dict) and value.get("arithmetic") in BACKENDS:
            value = {**value, "backend": BACKENDS[value["arithmetic"]]}
            del value["arithmetic"]
        if isinstance(value, dict) and isinstance(value.get("backend"), str):
            value = {**value, "backend": absolute_backend_name(value["backend"])}
        return value

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        backend(self.backend)
        modules = self.model.num_nextn_predict_layers
        if not self.tune.trains_all and not self.start.run:
            raise ValueError(
                f"tune.kind={self.tune.kind} trains a part of an existing model; name the run of that model (from=RUN)"
            )
        sparse = any(attention.has_indexer for attention in self.model.attentions)
        if sparse != any(isinstance(objective, IndexerWarmup) for objective in self.objectives):
            raise ValueError(
                "attention with an indexer needs the objective sparse (or indexer_warmup), because no other objective trains its indexers"
                if sparse
                else "the objectives sparse and indexer_warmup need attention with an indexer, such as kind dsa "
                "(`rorqual sparsify` adds indexers to a model)"
            )
        unfit = (NextToken, MultiToken) if isinstance(self.source, PreferencesConfig) else (DPO,)
        for objective in self.objectives:
            if isinstance(objective, MultiToken) and objective.depth != modules:
                raise ValueError(
                    f"objective mtp has depth {objective.depth}, but the model has {modules} prediction modules"
                )
            mtp = any(isinstance(other, MultiToken) for other in self.objectives) or self.tune.kind == "indexer"
            if isinstance(objective, IndexerWarmup) and objective.depth != (modules if mtp else 0):
                raise ValueError(
                    f"objective {objective.kind} has depth {objective.depth}, but the run trains {modules if mtp else 0} prediction modules"
                )
            if isinstance(objective, unfit):
                raise ValueError(
                    f"objective {objective.kind} cannot train on source {self.source.kind}: only dpo and objectives like it, "
                    "which tell the two replies of a pair apart, use source preferences"
                )
            if missing := objective.required_batch_fields() - self.source.provided_batch_fields():
                raise ValueError(
                    f"objective {objective.kind} needs {', '.join(sorted(missing))}, which source {self.source.kind} does not "
                    "provide (a KL term needs source.reference=RUN)"
                )
            if isinstance(objective, AuxBalance) and self.micro_batches > 1:
                raise ValueError(
                    f"objective aux_balance needs the whole batch in one micro-batch: set micro_batches=1, not {self.micro_batches}"
                )
        return self
