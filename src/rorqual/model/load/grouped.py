"""Shared `config.json` keys and tensor names of the families with grouped-query attention (Llama, Qwen2, Qwen3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rorqual.core.errors import ConfigError
from rorqual.model.attention import GQAConfig
from rorqual.model.block import PreNormConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig
from rorqual.model.load.keys import ConfigKeys, rope_to_hf
from rorqual.model.load.layers import ends, norms, swiglu, tied_head
from rorqual.model.load.names import NameEntry, NameMap


def attention_from_hf(keys: ConfigKeys, *, head_dim: int = 0, **kind: bool) -> GQAConfig:
    """Return the attention of a `config.json`.

    `head_dim` is the default for an absent key; 0 means `hidden_size` / heads. `kind` sets the family's norms and
    biases.
    """
    heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
    if not (wide := keys.take("head_dim", None) or head_dim):
        wide, rest = divmod(hidden, max(heads, 1))
        if rest:
            raise ConfigError(
                f"'head_dim' is missing and 'hidden_size' {hidden} is not a multiple of 'num_attention_heads' {heads}",
                where=keys.where,
            )
    attention = keys.build(
        GQAConfig,
        num_attention_heads=heads,
        num_key_value_heads=keys.take("num_key_value_heads", None) or heads,
        head_dim=wide,
        rope=keys.rope(10000.0),
        **kind,
    )
    _without_mscale(attention, keys.where)
    return attention


def _without_mscale(attention: GQAConfig, where: str) -> None:
    yarn = attention.rope.yarn
    if yarn is not None and yarn.mscale_all_dim:
        # DeepSeek's models scale the softmax by it, transformers' Llama and Qwen do not: the intended meaning is unknown.
        raise ConfigError(
            f"RoPE scaling 'yarn' sets mscale_all_dim {yarn.mscale_all_dim}, which is supported only for DeepSeek models",
            where=where,
            remedy="Express its effect as 'attention_factor'.",
        )


def no_sliding_window(keys: ConfigKeys, layers: int) -> None:
    """Refuse Qwen's sliding-window attention, which no supported published model uses."""
    keys.expect("use_sliding_window", False)
    keys.take("sliding_window", None)  # ignored if use_sliding_window is false
    keys.take("max_window_layers", None)
    keys.expect("layer_types", None, ["full_attention"] * layers)


def model_from_hf(keys: ConfigKeys, stages: Sequence[Stage]) -> ModelConfig:
    """Read the remaining keys into a ModelConfig. Raises ConfigError if a key is left unread."""
    config = keys.build(
        ModelConfig,
        vocab_size=keys.take("vocab_size"),
        hidden_size=keys.integer("hidden_size"),
        stages=tuple(stages),
        max_position_embeddings=keys.take("max_position_embeddings"),
        rms_norm_eps=keys.take("rms_norm_eps", 1e-6),
        tie_word_embeddings=keys.take("tie_word_embeddings", False),
        initializer_range=keys.take("initializer_range", 0.02),
    )
    keys.end()
    return config


def attention_of(config: ModelConfig, layout: str, fits: Callable[[GQAConfig], bool]) -> GQAConfig:
    """Return the attention that all layers share and that `fits`. Otherwise raises ConfigError describing the `layout`."""
    attention = config.stages[0].attention
    if (
        not isinstance(attention, GQAConfig)
        or not fits(attention)
        or any(stage.attention != attention or stage.block != PreNormConfig() for stage in config.stages)
        or config.num_nextn_predict_layers
    ):
        raise ConfigError(f"not a {layout}", where="config", remedy="Keep this model as a run directory.")
    _without_mscale(attention, "config")
    return attention


def dense_of(config: ModelConfig, layout: str) -> DenseConfig:
    """Return the dense network that all layers share. Otherwise raises ConfigError describing the `layout`."""
    ffn = config.stages[0].ffn
    if not isinstance(ffn, DenseConfig) or any(stage.ffn != ffn for stage in config.stages):
        raise ConfigError(f"not a {layout}", where="config", remedy="Keep this model as a run directory.")
    return ffn


def common_to_hf(config: ModelConfig, attention: GQAConfig, model_type: str, architecture: str) -> dict[str, Any]:
    """Return the `config.json` keys common to these families, without those of the feed-forward network."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": len(config.layers),
        **attention.model_dump(include={"num_attention_heads", "num_key_value_heads", "head_dim"}),
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        **rope_to_hf(attention.rope),
    }


def name_map(config: ModelConfig, feed_forward: Callable[[Stage, str, str], Iterator[NameEntry]]) -> NameMap:
    """Return the name map of every tensor. `feed_forward` maps one layer's network, given its stage, our and the published prefix."""
    entries = list(ends(config))
    for index, stage in enumerate(config.layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        entries += norms(ours, theirs)
        assert isinstance(stage.attention, GQAConfig)
        entries += _attention(stage.attention, f"{ours}.attention", f"{theirs}.self_attn")
        entries += feed_forward(stage, f"{ours}.ffn", f"{theirs}.mlp")
    return NameMap(tuple(entries), tied_head(config))


def dense_names(_: Stage, ours: str, theirs: str) -> Iterator[NameEntry]:
    """A `feed_forward` for `name_map` if every layer is dense."""
    return swiglu(ours, theirs)


def _attention(attention: GQAConfig, ours: str, theirs: str) -> Iterator[NameEntry]:
    names = [f"{part}_proj.weight" for part in "qkvo"]
    names += [f"{part}_norm.weight" for part in "qk" if attention.qk_norm]
    names += [f"{part}_proj.bias" for part in "qkv" if attention.attention_bias]
    names += ["o_proj.bias"] * attention.output_bias
    return (NameEntry(f"{ours}.{name}", (f"{theirs}.{name}",)) for name in names)
