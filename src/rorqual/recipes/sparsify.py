"""Convert a model with latent attention (MLA) to DeepSeek Sparse Attention (DeepSeek-V3.2-Exp, section 2.1.1).

The stages of `sparsify` are: add an indexer to each attention layer, train only the indexers while attention is dense
(warm-up), and train the whole model with sparse attention. A stage is skipped if the files in its folder show that the stage is
complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rorqual.convert.sparse import add_indexers, sparse_config
from rorqual.core.config import Config, Count, Natural, Positive, RowLength, Rows, Seed, read_yaml
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.data.chat.find import read_chat_name
from rorqual.model.adapter import IndexerTuning
from rorqual.model.load.run_directory import read_model_config
from rorqual.recipes.sft import sft
from rorqual.recipes.start import finetune_optim, supervised_objectives
from rorqual.train.loop import fit
from rorqual.train.objectives import IndexerWarmup
from rorqual.train.optim import AdamWConfig
from rorqual.train.run import Dtype, Run, StartConfig
from rorqual.train.schedule import LearningRateSchedule
from rorqual.train.sources import SourceConfig


class SparsifyConfig(Config):
    """Settings of `sparsify`."""

    index_topk: Count = Field(description="positions that each query attends to")
    index_n_heads: Count = Field(4, description="heads of the indexer")
    index_head_dim: Natural = Field(0, description="width of the indexer's heads; 0: qk_rope_head_dim, at least 32")
    index_dtype: Literal["float8_e4m3fn"] | None = Field(None, description="type of cached index keys")
    warmup: Count = Field(100, description="steps that train only the indexers")
    warmup_lr: Positive = Field(1e-2, description="learning rate of the warm-up")
    steps: Count = Field(400, description="steps of training with sparse attention")
    lr: Positive = Field(3e-4, description="their learning rate")
    data: str = Field("", description="training data; default: that of RUN")
    task: str = Field("", description="task of the training data")
    options: dict[str, Any] = Field({}, description="arguments of the task")
    rows: Rows | None = Field(None, description="rows per batch")
    row: RowLength | None = Field(None, description="tokens per row")
    seed: Seed = Field(0, description="seed of the batches")
    device: str = Field("cpu", description="device of the tensors")
    dtype: Dtype = Field("float32", description="type of matrix products")


def sparsify(start: RunDir, out: Path, config: SparsifyConfig, *, threads: int = 1, quiet: bool = False) -> RunDir:
    """Run all stages in the folder `out`, skip complete stages, and return the run with sparse attention.

    Raises ConfigError if the attention of `start` cannot have an indexer, if a training row has at most `index_topk` positions, or if
    neither `config` nor `start` states the training data.
    """
    source, dense = source_of(start, config), read_model_config(start)
    if config.index_topk >= source.row:
        raise ConfigError(
            f"index_topk={config.index_topk} is not below the row length {source.row}, so attention would stay dense in training",
            where="sparsify",
            remedy="Lower index_topk, or raise row.",
        )
    added, warm, sparse = RunDir(out / "indexers"), RunDir(out / "warmup"), RunDir(out / "sparse")
    rope = max(getattr(stage.attention, "qk_rope_head_dim", 0) for stage in dense.stages)
    width = config.index_head_dim or max(rope, 32)
    model = sparse_config(
        dense,
        index_n_heads=config.index_n_heads,
        index_head_dim=width,
        index_topk=config.index_topk,
        index_dtype=config.index_dtype,
        where=str(start.path),
    )
    if not added.config_file.is_file():
        add_indexers(start, added.path, model, seed=config.seed)
    elif read_model_config(added) != model or added.config().get("dense") != {
        "run": str(start.path),
        "seed": config.seed,
    }:
        raise ConfigError(
            "the indexers in this folder belong to another model or seed, or have other settings",
            where=str(added.config_file),
            remedy="Give another folder OUT, or use the settings of the first command.",
        )
    chat = read_chat_name(added)
    shared: dict[str, Any] = {"recipe": "sparsify", "chat": chat, "model": model, "source": source}
    shared |= {name: getattr(config, name) for name in ("seed", "device", "dtype")}
    warmup = Run(
        steps=config.warmup,
        start=StartConfig(run=str(added.path)),
        objectives=(IndexerWarmup(depth=model.num_nextn_predict_layers),),
        optim=AdamWConfig(lr=config.warmup_lr, schedule=LearningRateSchedule(warmup=min(10, config.warmup))),
        tune=IndexerTuning(),
        **shared,
    )
    train = Run(
        steps=config.steps,
        start=StartConfig(run=str(warm.path)),
        objectives=supervised_objectives(model),
        optim=finetune_optim(config.lr),
        **shared,
    )
    for name, run, place in (("warm up the indexers", warmup, warm), ("train with sparse attention", train, sparse)):
        if not quiet:
            print(f"{name}: {run.steps} steps")
        fit(run, place, threads=threads, quiet=quiet, extend=False)
    return sparse


def source_of(start: RunDir, config: SparsifyConfig) -> SourceConfig:
    """Return the source of the training data. If `config` sets neither `data` nor `task`, return the source that `start` was
    trained on."""
    sizes = {name: value for name in ("rows", "row") if (value := getattr(config, name)) is not None}
    if config.data or config.task:
        return sft(data=config.data, task=config.task, start=str(start.path), options=config.options, **sizes).source
    if "source" not in start.config():
        raise ConfigError(
            "the run does not state its training data", where=str(start.path), remedy="Add data=FILE or task=NAME."
        )
    source = read_yaml(Run, start.config_file).source
    if source.uses_rollout_engine:
        raise ConfigError(
            f"the run was trained on samples that it generated (source {source.kind})",
            where=str(start.path),
            remedy="Add data=FILE or task=NAME with worked solutions.",
        )
    return source.model_copy(update=sizes)
