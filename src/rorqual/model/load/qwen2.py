"""Qwen2, Qwen2.5 and R1-Distill-Qwen: convert `config.json` and tensor names in both directions.

Qwen2 models have biases on q, k and v.
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

LAYOUT = "Qwen2 layout: every layer has grouped-query attention with biases but no norms on q, k and v, and one dense network"


def config_from_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Convert a `config.json` to a ModelConfig. Raises ConfigError naming the first unsupported key."""
    keys = ConfigKeys(data, where)
    keys.family("qwen2", "Qwen2ForCausalLM")
    keys.expect("hidden_act", "silu")
    keys.expect("use_mrope", False)
    layers = keys.layers()
    grouped.no_sliding_window(keys, layers)
    attention = grouped.attention_from_hf(keys, attention_bias=True)
    ffn = keys.build(DenseConfig, intermediate_size=keys.take("intermediate_size"))
    return grouped.model_from_hf(keys, [keys.build(Stage, layers=layers, attention=attention, ffn=ffn)])


def _is_supported(attention: GQAConfig) -> bool:
    return attention.attention_bias and not attention.output_bias and not attention.qk_norm


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Convert a ModelConfig to the `config.json` of transformers. Raises ConfigError if transformers cannot express the model."""
    attention, ffn = grouped.attention_of(config, LAYOUT, _is_supported), grouped.dense_of(config, LAYOUT)
    common = grouped.common_to_hf(config, attention, "qwen2", "Qwen2ForCausalLM")
    if attention.head_dim * attention.num_attention_heads == config.hidden_size:
        del common["head_dim"]  # published files omit head_dim
    return common | {"intermediate_size": ffn.intermediate_size, "use_sliding_window": False}


def name_map(config: ModelConfig) -> NameMap:
    """Map the name of every tensor of a model to its name in published checkpoints of this family."""
    grouped.attention_of(config, LAYOUT, _is_supported)
    grouped.dense_of(config, LAYOUT)
    return grouped.name_map(config, grouped.dense_names)
