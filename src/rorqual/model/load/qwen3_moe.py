"""Qwen3 MoE (30B-A3B, 235B-A22B): convert `config.json` and tensor names in both directions.

The router of Qwen3 MoE is a softmax over all experts, without bias or groups. Qwen3 MoE has no shared experts (Qwen3 report,
section 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rorqual.core.errors import ConfigError
from rorqual.model.attention import GQAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.ffn.router import GroupedTopKConfig
from rorqual.model.load import gqa_family
from rorqual.model.load.config_keys import ConfigKeys
from rorqual.model.load.names import NameEntry, NameMap
from rorqual.model.load.qwen3 import is_qwen3_attention
from rorqual.model.load.shared_entries import routed_expert_entries, swiglu_entries

model_types = ("qwen3_moe",)
LAYOUT = (
    "Qwen3 MoE layout: every layer has grouped-query attention with norms on q and k, no biases, and one kind of experts"
    " (softmax router; no groups, shared experts, bias or scale) or one dense network"
)


def config_from_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Convert a `config.json` to a ModelConfig. Raises ConfigError naming the first unsupported key."""
    keys = ConfigKeys(data, where)
    keys.expect_family("qwen3_moe", "Qwen3MoeForCausalLM")
    keys.expect_value("hidden_act", "silu")
    keys.expect_value("attention_bias", False)
    layers = keys.layer_count()
    gqa_family.refuse_sliding_window(keys, layers)
    attention = gqa_family.attention_from_hf(keys, qk_norm=True)
    experts = keys.take("num_experts", None)
    local = keys.take("num_local_experts", None)  # transformers 5 writes num_local_experts instead of num_experts
    if None not in (experts, local) and experts != local:
        raise ConfigError(f"key 'num_experts' is {experts}, but 'num_local_experts' is {local}", where=where)
    router = keys.build(
        GroupedTopKConfig,
        n_routed_experts=local if experts is None else experts,
        num_experts_per_tok=keys.take("num_experts_per_tok"),
        scoring_func="softmax",
        norm_topk_prob=keys.take("norm_topk_prob", False),
        score_bias=False,
    )
    moe = keys.build(MoEConfig, router=router, moe_intermediate_size=keys.take("moe_intermediate_size"))
    wide = keys.build(DenseConfig, intermediate_size=keys.take("intermediate_size", 6144))
    stages = _stages(keys, attention, moe, wide, layers)
    return gqa_family.model_from_hf(keys, stages)


def _stages(keys: ConfigKeys, attention: GQAConfig, moe: MoEConfig, wide: DenseConfig, layers: int) -> list[Stage]:
    """Return the stages of dense and MoE layers.

    Layer i is MoE if i + 1 is a multiple of `decoder_sparse_step` and `mlp_only_layers` does not list i.
    """
    step, listed = keys.integer("decoder_sparse_step", 1), keys.take("mlp_only_layers", None) or []
    if step < 1 or any(layer not in range(layers) for layer in listed):
        raise ConfigError(
            f"'decoder_sparse_step' {step} or 'mlp_only_layers' {listed} is out of range for {layers} layers",
            where=keys.where,
        )
    dense = [index in listed or bool((index + 1) % step) for index in range(layers)]
    return [
        keys.build(Stage, layers=len(list(run)), attention=attention, ffn=wide if is_dense else moe)
        for is_dense, run in groupby(dense)
    ]


def _exportable_configs(
    config: ModelConfig,
) -> tuple[GQAConfig, MoEConfig, GroupedTopKConfig, DenseConfig | None, Sequence[int]]:
    """Return the configs of attention, MoE, router and dense network (None if no layer is dense), and the indices of
    dense layers."""
    attention = gqa_family.shared_attention(config, LAYOUT, is_qwen3_attention)
    kinds = [stage.ffn for stage in config.layers]
    dense = [index for index, ffn in enumerate(kinds) if isinstance(ffn, DenseConfig)]
    moe = next((ffn for ffn in kinds if isinstance(ffn, MoEConfig)), None)
    wide = kinds[dense[0]] if dense else None
    if (
        moe is None
        or not isinstance(router := moe.router, GroupedTopKConfig)
        or not (wide is None or isinstance(wide, DenseConfig))
        or any(ffn != (wide if index in dense else moe) for index, ffn in enumerate(kinds))
        or router.scoring_func != "softmax"
        or router.n_group != 1
        or moe.n_shared_experts
        or router.score_bias
        or router.routed_scaling_factor != 1.0
    ):
        raise ConfigError(
            f"not a {LAYOUT}", where="config", remedy="Use the run directory, because this model cannot be exported."
        )
    return attention, moe, router, wide, dense


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Convert a ModelConfig to the `config.json` of transformers. Raises ConfigError if transformers cannot express the model."""
    attention, moe, router, wide, dense = _exportable_configs(config)
    common = gqa_family.common_to_hf(config, attention, "qwen3_moe", "Qwen3MoeForCausalLM")
    return common | {
        "intermediate_size": moe.moe_intermediate_size if wide is None else wide.intermediate_size,
        "num_experts": router.n_routed_experts,
        **router.model_dump(include={"num_experts_per_tok", "norm_topk_prob"}),
        **moe.model_dump(include={"moe_intermediate_size"}),
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(dense),
        "attention_bias": False,
        "use_sliding_window": False,
    }


def name_map(config: ModelConfig) -> NameMap:
    """Map the name of every tensor of a model to its name in published Qwen3 MoE checkpoints."""
    _exportable_configs(config)
    return gqa_family.name_map(config, _ffn_entries)


def _ffn_entries(stage: Stage, prefix: str, hf_prefix: str) -> Iterator[NameEntry]:
    if isinstance(stage.ffn, MoEConfig):
        return routed_expert_entries(stage.ffn, prefix, hf_prefix)
    return swiglu_entries(prefix, hf_prefix)
