"""Qwen2 and Qwen2.5 (biases on q, k and v), and R1's distillations into them: `config.json` and tensor names, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rorqual.model.attention import GQAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig
from rorqual.model.load import grouped
from rorqual.model.load.keys import ConfigKeys
from rorqual.model.load.names import NameMap

LAYOUT = "Qwen2 layout: every layer is grouped-query attention with biases on q, k and v and no norms on them, and one dense network"


def config_from_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """A published or saved `config.json` as ours; what this model cannot express is a `ConfigError` naming the key."""
    keys = ConfigKeys(data, where)
    keys.family("qwen2", "Qwen2ForCausalLM")
    keys.expect("hidden_act", "silu")
    keys.expect("use_mrope", False)
    layers = keys.layers()
    grouped.no_sliding_window(keys, layers)
    attention = grouped.attention_from_hf(keys, attention_bias=True)
    ffn = keys.build(DenseConfig, intermediate_size=keys.take("intermediate_size"))
    return grouped.model_from_hf(keys, [keys.build(Stage, layers=layers, attention=attention, ffn=ffn)])


def _fits(attention: GQAConfig) -> bool:
    return attention.attention_bias and not attention.output_bias and not attention.qk_norm


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that transformers reads; a model that it cannot express is a `ConfigError`."""
    attention, ffn = grouped.attention_of(config, LAYOUT, _fits), grouped.dense_of(config, LAYOUT)
    common = grouped.common_to_hf(config, attention, "qwen2", "Qwen2ForCausalLM")
    if attention.head_dim * attention.num_attention_heads == config.hidden_size:
        del common["head_dim"]  # published files have none
    return common | {"intermediate_size": ffn.intermediate_size, "use_sliding_window": False}


def name_map(config: ModelConfig) -> NameMap:
    """Every tensor of a model of this family."""
    grouped.attention_of(config, LAYOUT, _fits)
    grouped.dense_of(config, LAYOUT)
    return grouped.name_map(config, grouped.dense_names)
