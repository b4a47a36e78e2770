"""The `config.json` keys and tensor names shared by Llama, Qwen2 and Qwen3, which all have grouped-query attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rorqual.core.errors import ConfigError
from rorqual.model.attention import GQAConfig
from rorqual.model.block import PreNormConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig
from rorqual.model.load.config_keys import ConfigKeys, rope_to_hf
from rorqual.model.load.names import NameEntry, NameMap
from rorqual.model.load.shared_entries import embedding_and_head_entries, norm_entries, swiglu_entries, tied_head_copies


@dataclass(frozen=True)
class DenseFamily:
    """The checkpoint format of a family whose layers all have one grouped-query attention and one dense network.

    - `model_type` and `architecture`: the values of `model_type` and `architectures` in `config.json`.
    - `layout`: a description of the models that the family supports, for error messages.
    - `expected`: keys of `config.json`, each with the only value that is accepted.
    - `attention(keys)`: the values of the norm and bias fields of `GQAConfig`.
    - `fits`: whether the family supports an attention config.
    - `own(attention)`: the `config.json` keys that only the family writes.
    - `head_dim`: the default of the `config.json` key `head_dim` (`attention_from_hf`).
    - `windows`: True if `config.json` has the keys of sliding-window attention.
    - `writes_head_dim`: False if published files omit a `head_dim` that equals `hidden_size` / `num_attention_heads`.
    """

    model_type: str
    architecture: str
    layout: str
    expected: Mapping[str, Any]
    attention: Callable[[ConfigKeys], dict[str, bool]]
    fits: Callable[[GQAConfig], bool]
    own: Callable[[GQAConfig], dict[str, Any]]
    head_dim: int = 0
    windows: bool = True
    writes_head_dim: bool = True

    @property
    def model_types(self) -> tuple[str, ...]:
        """The supported values of `model_type`."""
        return (self.model_type,)

    def config_from_hf(self, data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Convert a `config.json` to a ModelConfig. Raises ConfigError naming the first unsupported key."""
        keys = ConfigKeys(data, where)
        keys.expect_family(self.model_type, self.architecture)
        for key, value in self.expected.items():
            keys.expect_value(key, value)
        layers = keys.layer_count()
        if self.windows:
            refuse_sliding_window(keys, layers)
        attention = attention_from_hf(keys, head_dim=self.head_dim, **self.attention(keys))
        ffn = keys.build(DenseConfig, intermediate_size=keys.take("intermediate_size"))
        return model_from_hf(keys, [keys.build(Stage, layers=layers, attention=attention, ffn=ffn)])

    def config_to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """Convert a ModelConfig to the `config.json` of transformers. Raises ConfigError if transformers cannot express the model."""
        attention, ffn = shared_attention(config, self.layout, self.fits), shared_dense_config(config, self.layout)
        common = common_to_hf(config, attention, self.model_type, self.architecture)
        if not self.writes_head_dim and attention.head_dim * attention.num_attention_heads == config.hidden_size:
            del common["head_dim"]
        return common | {"intermediate_size": ffn.intermediate_size} | self.own(attention)

    def name_map(self, config: ModelConfig) -> NameMap:
        """Map the name of every tensor of a model to its name in published checkpoints of the model family."""
        shared_attention(config, self.layout, self.fits)
        shared_dense_config(config, self.layout)
        return name_map(config, lambda _, prefix, hf_prefix: swiglu_entries(prefix, hf_prefix))


def attention_from_hf(keys: ConfigKeys, *, head_dim: int = 0, **kind: bool) -> GQAConfig:
    """Build the attention config of a `config.json`.

    `head_dim` is the default for an absent key `head_dim`; 0 means `hidden_size` / `num_attention_heads`. `kind` holds the
    values that the model family sets for the norm and bias fields of `GQAConfig`.
    """
    heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
    if not (dim := keys.take("head_dim", None) or head_dim):
        dim, remainder = divmod(hidden, max(heads, 1))
        if remainder:
            raise ConfigError(
                f"'head_dim' is missing and 'hidden_size' {hidden} is not a multiple of 'num_attention_heads' {heads}",
                where=keys.where,
            )
    attention = keys.build(
        GQAConfig,
        num_attention_heads=heads,
        num_key_value_heads=keys.take("num_key_value_heads", None) or heads,
        head_dim=dim,
        rope=keys.rope(10000.0),
        **kind,
    )
    _check_mscale(attention, keys.where)
    return attention


def _check_mscale(attention: GQAConfig, where: str) -> None:
    yarn = attention.rope.yarn
    if yarn is not None and yarn.mscale_all_dim:
        # DeepSeek's models scale the softmax by mscale_all_dim, but transformers ignores it for Llama and Qwen. The
        # intended meaning of mscale_all_dim in these models is therefore unknown.
        raise ConfigError(
            f"RoPE scaling 'yarn' sets mscale_all_dim {yarn.mscale_all_dim}, which is supported only for DeepSeek models",
            where=where,
            remedy="Set 'attention_factor' to the equivalent value instead.",
        )


def refuse_sliding_window(keys: ConfigKeys, layers: int) -> None:
    """Raise ConfigError for Qwen's sliding-window attention, which is not supported.

    The published Qwen models do not enable sliding-window attention.
    """
    keys.expect_value("use_sliding_window", False)
    # transformers ignores sliding_window and max_window_layers if use_sliding_window is false.
    keys.take("sliding_window", None)
    keys.take("max_window_layers", None)
    keys.expect_value("layer_types", None, ["full_attention"] * layers)


def model_from_hf(keys: ConfigKeys, stages: Sequence[Stage]) -> ModelConfig:
    """Build the ModelConfig from `stages` and from the `config.json` keys that do not describe layers.

    Raises ConfigError for keys of the `config.json` that no code has read.
    """
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
    keys.refuse_unknown_keys()
    return config


def shared_attention(config: ModelConfig, layout: str, fits: Callable[[GQAConfig], bool]) -> GQAConfig:
    """Return the attention config shared by all layers.

    Raises ConfigError naming `layout` if the attention configs of layers differ or `fits` rejects the attention config.
    """
    attention = config.stages[0].attention
    if (
        not isinstance(attention, GQAConfig)
        or not fits(attention)
        or any(stage.attention != attention or stage.block != PreNormConfig() for stage in config.stages)
        or config.num_nextn_predict_layers
    ):
        raise ConfigError(
            f"not a {layout}", where="config", remedy="Use the run directory, because this model cannot be exported."
        )
    _check_mscale(attention, "config")
    return attention


def shared_dense_config(config: ModelConfig, layout: str) -> DenseConfig:
    """Return the dense network config shared by all layers. Raises ConfigError naming `layout` if the network configs of layers
    differ or a layer is not dense."""
    ffn = config.stages[0].ffn
    if not isinstance(ffn, DenseConfig) or any(stage.ffn != ffn for stage in config.stages):
        raise ConfigError(
            f"not a {layout}", where="config", remedy="Use the run directory, because this model cannot be exported."
        )
    return ffn


def common_to_hf(config: ModelConfig, attention: GQAConfig, model_type: str, architecture: str) -> dict[str, Any]:
    """Return the `config.json` keys that Llama, Qwen2 and Qwen3 share. The returned keys do not include keys of the
    feed-forward network."""
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
    """Return the `NameMap` of a model.

    `feed_forward(stage, prefix, hf_prefix)` yields each `NameEntry` of one layer's feed-forward network.
    """
    entries = list(embedding_and_head_entries(config))
    for index, stage in enumerate(config.layers):
        prefix, hf_prefix = f"layers.{index}", f"model.layers.{index}"
        entries += norm_entries(prefix, hf_prefix)
        assert isinstance(stage.attention, GQAConfig)
        entries += _attention_entries(stage.attention, f"{prefix}.attention", f"{hf_prefix}.self_attn")
        entries += feed_forward(stage, f"{prefix}.ffn", f"{hf_prefix}.mlp")
    return NameMap(tuple(entries), tied_head_copies(config))


def _attention_entries(attention: GQAConfig, prefix: str, hf_prefix: str) -> Iterator[NameEntry]:
    names = [f"{part}_proj.weight" for part in "qkvo"]
    names += [f"{part}_norm.weight" for part in "qk" if attention.qk_norm]
    names += [f"{part}_proj.bias" for part in "qkv" if attention.attention_bias]
    names += ["o_proj.bias"] * attention.output_bias
    return (NameEntry(f"{prefix}.{name}", (f"{hf_prefix}.{name}",)) for name in names)
