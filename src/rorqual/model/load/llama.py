"""Llama 2 to 3.3 and models with their architecture (SmolLM2, R1's distillations).

Converts `config.json` and tensor names in both directions.
"""

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
    """Convert a `config.json` to a ModelConfig. Raises ConfigError naming the key if this model cannot express it."""
    keys = ConfigKeys(data, where)
    keys.family("llama", "LlamaForCausalLM")
    keys.expect("hidden_act", "silu")
    keys.expect("mlp_bias", False)
    keys.expect("is_llama_config", True)  # SmolLM2's trainer writes these two
    keys.expect("rope_interleaved", False)
    bias = keys.take("attention_bias", False)
    attention = grouped.attention_from_hf(keys, attention_bias=bias, output_bias=bias)
    ffn = keys.build(DenseConfig, intermediate_size=keys.take("intermediate_size"))
    layers = keys.layers()
    return grouped.model_from_hf(keys, [keys.build(Stage, layers=layers, attention=attention, ffn=ffn)])


def _fits(attention: GQAConfig) -> bool:
    return not attention.qk_norm and attention.attention_bias == attention.output_bias


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Return the `config.json` that transformers reads. Raises ConfigError if it cannot express the model."""
    attention, ffn = grouped.attention_of(config, LAYOUT, _fits), grouped.dense_of(config, LAYOUT)
    common = grouped.common_to_hf(config, attention, "llama", "LlamaForCausalLM")
    bias = {"attention_bias": attention.attention_bias, "mlp_bias": False}
    return common | bias | {"intermediate_size": ffn.intermediate_size}


def name_map(config: ModelConfig) -> NameMap:
    """Return the name map of every tensor in a model of this family."""
    grouped.attention_of(config, LAYOUT, _fits)
    grouped.dense_of(config, LAYOUT)
    return grouped.name_map(config, grouped.dense_names)
