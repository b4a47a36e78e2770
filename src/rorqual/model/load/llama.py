"""Llama 2 to 3.3, and what has their architecture (SmolLM2, R1's distillations): `config.json` and names, both ways."""

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
    "Llama layout: every layer is grouped-query attention without norms on q and k, with biases on all four products"
    " or on none, and one dense network"
)


def config_from_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """A published or saved `config.json` as ours; what this model cannot express is a `ConfigError` naming the key."""
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
    """The `config.json` that transformers reads; a model that it cannot express is a `ConfigError`."""
    attention, ffn = grouped.attention_of(config, LAYOUT, _fits), grouped.dense_of(config, LAYOUT)
    common = grouped.common_to_hf(config, attention, "llama", "LlamaForCausalLM")
    bias = {"attention_bias": attention.attention_bias, "mlp_bias": False}
    return common | bias | {"intermediate_size": ffn.intermediate_size}


def name_map(config: ModelConfig) -> NameMap:
    """Every tensor of a model of this family."""
    grouped.attention_of(config, LAYOUT, _fits)
    grouped.dense_of(config, LAYOUT)
    return grouped.name_map(config, grouped.dense_names)
