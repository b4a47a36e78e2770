"""Qwen3, dense: `config.json` and tensor names, both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from rorqual.core.errors import ConfigError
from rorqual.model.attention import GQAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig
from rorqual.model.load.keys import Keys, rope_to_hf
from rorqual.model.load.names import Entry, NameMap


def config_from_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """A published or saved `config.json` as ours; what this model cannot express is a `ConfigError` naming the key."""
    keys = Keys(data, where)
    keys.expect("model_type", "qwen3")
    keys.expect("hidden_act", "silu")
    keys.expect("attention_bias", False)
    keys.expect("use_sliding_window", False)
    keys.take("sliding_window", None)  # without meaning where use_sliding_window is false
    keys.take("max_window_layers", None)
    layers, heads = keys.integer("num_hidden_layers"), keys.integer("num_attention_heads")
    keys.expect("layer_types", None, ["full_attention"] * layers)
    attention = keys.build(
        GQAConfig,
        num_attention_heads=heads,
        num_key_value_heads=keys.take("num_key_value_heads", None) or heads,
        head_dim=keys.take("head_dim", 128),
        qk_norm=True,
        rope=keys.rope(10000.0),
    )
    ffn = keys.build(DenseConfig, intermediate_size=keys.take("intermediate_size"))
    config = keys.build(
        ModelConfig,
        vocab_size=keys.take("vocab_size"),
        hidden_size=keys.take("hidden_size"),
        stages=(Stage(layers=layers, attention=attention, ffn=ffn),),
        max_position_embeddings=keys.take("max_position_embeddings"),
        rms_norm_eps=keys.take("rms_norm_eps", 1e-6),
        tie_word_embeddings=keys.take("tie_word_embeddings", False),
        initializer_range=keys.take("initializer_range", 0.02),
    )
    keys.end()
    return config


def _stage(config: ModelConfig) -> tuple[GQAConfig, DenseConfig]:
    attention, ffn = config.stages[0].attention, config.stages[0].ffn
    if (
        not isinstance(attention, GQAConfig)
        or not isinstance(ffn, DenseConfig)
        or not attention.qk_norm
        or attention.attention_bias
        or config.num_nextn_predict_layers
        or any((stage.attention, stage.ffn) != (attention, ffn) for stage in config.stages)
    ):
        raise ConfigError(
            "not a Qwen3 layout: every layer is grouped-query attention with norms on q and k, without biases, and one dense network",
            where="config",
            remedy="Export such a model as a run directory.",
        )
    return attention, ffn


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that transformers reads; a model that it cannot express is a `ConfigError`."""
    attention, ffn = _stage(config)
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": len(config.layers),
        "intermediate_size": ffn.intermediate_size,
        **attention.model_dump(include={"num_attention_heads", "num_key_value_heads", "head_dim"}),
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        **rope_to_hf(attention.rope),
    }


def to_hf(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state_dict as published tensors."""
    return name_map(config).to_hf(state)


def from_hf(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Published tensors as our state_dict, bit for bit."""
    return name_map(config).from_hf(state)


def name_map(config: ModelConfig) -> NameMap:
    """Every tensor of a model of this family."""
    _stage(config)
    return NameMap(
        tuple(_entries(config)), {"lm_head.weight": "embed_tokens.weight"} if config.tie_word_embeddings else {}
    )


def _entries(config: ModelConfig) -> Iterator[Entry]:
    yield Entry("embed_tokens.weight", ("model.embed_tokens.weight",))
    yield Entry("norm.weight", ("model.norm.weight",))
    if not config.tie_word_embeddings:
        yield Entry("lm_head.weight", ("lm_head.weight",))
    for index in range(len(config.layers)):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield Entry(f"{ours}.{norm}.weight", (f"{theirs}.{norm}.weight",))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
            yield Entry(f"{ours}.attention.{name}.weight", (f"{theirs}.self_attn.{name}.weight",))
        for name in ("gate_proj", "up_proj", "down_proj"):
            yield Entry(f"{ours}.ffn.{name}.weight", (f"{theirs}.mlp.{name}.weight",))
