"""Conversion of a model with latent attention to sparse attention. The converted model has the same weights, and a new indexer
in each attention layer."""

from __future__ import annotations

from pathlib import Path

import torch

from rorqual.convert.files import check_target_unused
from rorqual.convert.merge import write_model
from rorqual.core.config import parse_config
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.model.attention import AttentionConfig, DSAConfig, MLAConfig
from rorqual.model.config import ModelConfig
from rorqual.model.init import build
from rorqual.model.load.run_directory import load_run


def sparse_config(
    model: ModelConfig,
    *,
    index_n_heads: int,
    index_head_dim: int,
    index_topk: int,
    index_dtype: str | None = None,
    where: str = "",
) -> ModelConfig:
    """Return the config `model` with an indexer added to each attention layer. Raises ConfigError if a layer is not MLA with
    `q_lora_rank`."""
    index = {"kind": "dsa", "index_n_heads": index_n_heads, "index_head_dim": index_head_dim, "index_topk": index_topk}
    index |= {"index_dtype": index_dtype}

    def with_indexer(attention: AttentionConfig) -> DSAConfig:
        if type(attention) is not MLAConfig or not attention.q_lora_rank:
            reason = "has no q_lora_rank" if isinstance(attention, MLAConfig) else f"is of kind {attention.kind}"
            raise ConfigError(
                f"an indexer needs attention of kind mla with q_lora_rank, but this model's attention {reason}",
                where=where,
                remedy="Start from a model with mla, such as a teacher of `rorqual quickstart` or an imported DeepSeek-V3.",
            )
        return parse_config(DSAConfig, {**attention.model_dump(mode="json"), **index}, where=where)

    stages = tuple(s.model_copy(update={"attention": with_indexer(s.attention)}) for s in model.stages)
    return parse_config(
        ModelConfig,
        {**model.model_dump(mode="json"), "stages": [s.model_dump(mode="json") for s in stages]},
        where=where,
    )


@torch.no_grad()
def add_indexers(run: RunDir, dst: Path, config: ModelConfig, *, seed: int = 0) -> Path:
    """Add newly initialized indexers to the model of `run`, and write the model as the run directory `dst`.

    Return the checkpoint folder of `dst`. `config` is the `sparse_config` of the model. While a sequence has at most
    `index_topk` tokens, the outputs of the new model equal the outputs of `run`'s model.
    """
    check_target_unused(dst)
    dense, model = load_run(run), build(config, seed=seed)
    model.load_state_dict(dense.state_dict(), strict=False)  # `build` has initialized the indexers
    return write_model(dst, model, run, {"recipe": "sparsify", "dense": {"run": str(run.path), "seed": seed}})
