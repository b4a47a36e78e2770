"""Llama 2 to 3.3, SmolLM2 and R1-Distill-Llama: convert `config.json` and tensor names in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rorqual.model.attention import GQAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig
from rorqual.model.load import grouped
from rorqual.model.load.keys import ConfigKeys
from rorqual.model.load.names import NameMap

LAYOUT = (
    "Llama layout: every layer has grouped-query attention without norms on q and k, biases on all four projections"
    " or on none, and one dense network"
)


def config_from_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Convert a `config.json` to a ModelConfig. Raises ConfigError naming the first unsupported key."""
    keys = ConfigKeys(data, where)
    keys.family("llama", "LlamaForCausalLM")
    keys.expect("hidden_act", "silu")
    keys.expect("mlp_bias", False)
    keys.expect("is_llama_config", True)  # the trainer of SmolLM2 writes is_llama_config and rope_interleaved
    keys.expect("rope_interleaved", False)
    bias = keys.take("attention_bias", False)
    attention = grouped.attention_from_hf(keys, attention_bias=bias, output_bias=bias)
    ffn = keys.build(DenseConfig, intermediate_size=keys.take("intermediate_size"))
    layers = keys.layers()
    return grouped.model_from_hf(keys, [keys.build(Stage, layers=layers, attention=attention, ffn=ffn)])


def _is_supported(attention: GQAConfig) -> bool:
    return not attention.qk_norm and attention.attention_bias == attention.output_bias


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Convert a ModelConfig to the `config.json` of transformers. Raises ConfigError if transformers cannot express the model."""
    attention, ffn = grouped.attention_of(config, LAYOUT, _is_supported), grouped.dense_of(config, LAYOUT)
    common = grouped.common_to_hf(config, attention, "llama", "LlamaForCausalLM")
    bias = {"attention_bias": attention.attention_bias, "mlp_bias": False}
    return common | bias | {"intermediate_size": ffn.intermediate_size}


def name_map(config: ModelConfig) -> NameMap:
    """Map the name of every tensor of a model to its name in published checkpoints of this family."""
    grouped.attention_of(config, LAYOUT, _is_supported)
    grouped.dense_of(config, LAYOUT)
    return grouped.name_map(config, grouped.dense_names)
