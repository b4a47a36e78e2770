"""Dense Qwen3: convert `config.json` and tensor names in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rorqual.model.attention import GQAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig
from rorqual.model.load import grouped
from rorqual.model.load.keys import ConfigKeys
from rorqual.model.load.names import NameMap

LAYOUT = "Qwen3 layout: every layer has grouped-query attention with norms on q and k, no biases, and one dense network"


def config_from_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Convert a `config.json` to a ModelConfig. Raises ConfigError naming the first unsupported key."""
    keys = ConfigKeys(data, where)
    keys.family("qwen3", "Qwen3ForCausalLM")
    keys.expect("hidden_act", "silu")
    keys.expect("attention_bias", False)
    layers = keys.layers()
    grouped.no_sliding_window(keys, layers)
    attention = grouped.attention_from_hf(keys, head_dim=128, qk_norm=True)
    ffn = keys.build(DenseConfig, intermediate_size=keys.take("intermediate_size"))
    return grouped.model_from_hf(keys, [keys.build(Stage, layers=layers, attention=attention, ffn=ffn)])


def fits(attention: GQAConfig) -> bool:
    """Return whether `attention` is the attention of Qwen3, dense or MoE: norms on q and k, and no biases."""
    return attention.qk_norm and not attention.attention_bias and not attention.output_bias


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Convert a ModelConfig to the `config.json` of transformers. Raises ConfigError if transformers cannot express the model."""
    attention, ffn = grouped.attention_of(config, LAYOUT, fits), grouped.dense_of(config, LAYOUT)
    common = grouped.common_to_hf(config, attention, "qwen3", "Qwen3ForCausalLM")
    own = {"intermediate_size": ffn.intermediate_size, "attention_bias": False, "use_sliding_window": False}
    return common | own


def name_map(config: ModelConfig) -> NameMap:
    """Map the name of every tensor of a model to its name in published checkpoints of this family."""
    grouped.attention_of(config, LAYOUT, fits)
    grouped.dense_of(config, LAYOUT)
    return grouped.name_map(config, grouped.dense_names)
