"""Configurations of published models by name, as their `config.json` says (dimensions: the V2, V3 and Qwen3 reports)."""

from __future__ import annotations

from rorqual.core.errors import ConfigError, nearest
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.ops.rope import Rope, Yarn

_V3_NAMES = ("deepseek-v3", "deepseek-r1", "deepseek-v3.1")
_QWEN3 = {
    # name: hidden, intermediate, layers, heads, tied; all have 8 key-value heads of 128
    "qwen3-0.6b": (1024, 3072, 28, 16, True),
    "qwen3-1.7b": (2048, 6144, 28, 16, True),
    "qwen3-4b": (2560, 9728, 36, 32, True),
    "qwen3-8b": (4096, 12288, 36, 32, False),
    "qwen3-14b": (5120, 17408, 40, 40, False),
    "qwen3-32b": (5120, 25600, 64, 64, False),
}


def preset_names() -> tuple[str, ...]:
    """Every name that `preset` knows."""
    return ("deepseek-v2-lite", "deepseek-v2", *_V3_NAMES, *_QWEN3)


def preset(name: str) -> ModelConfig:
    """The configuration called `name`; an unknown name is a `ConfigError` with the nearest one."""
    if name == "deepseek-v2-lite":
        return _v2_lite()
    if name == "deepseek-v2":
        return _v2()
    if name in _V3_NAMES:
        return _v3()
    if name in _QWEN3:
        return _qwen3(*_QWEN3[name])
    raise ConfigError(f"unknown model '{name}'", where="preset", remedy=nearest(name, preset_names()))


def _deepseek_rope(mscale: float) -> Rope:
    yarn = Yarn(factor=40.0, original_max_position_embeddings=4096, mscale=mscale, mscale_all_dim=mscale)
    return Rope(theta=10000.0, yarn=yarn)


def _mla(heads: int, q_lora_rank: int, mscale: float) -> MLAConfig:
    return MLAConfig(
        num_attention_heads=heads,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        rope=_deepseek_rope(mscale),
    )


def _v2_lite() -> ModelConfig:
    attention = _mla(16, 0, 0.707)
    moe = MoEConfig(
        n_routed_experts=64,
        num_experts_per_tok=6,
        moe_intermediate_size=1408,
        n_shared_experts=2,
        scoring_func="softmax",
        norm_topk_prob=False,
        group_score="max",
        score_bias=False,
    )
    dense = DenseConfig(intermediate_size=10944)
    return ModelConfig(
        vocab_size=102400,
        hidden_size=2048,
        stages=(Stage(layers=1, attention=attention, ffn=dense), Stage(layers=26, attention=attention, ffn=moe)),
        max_position_embeddings=163840,
    )


def _v2() -> ModelConfig:
    attention = _mla(128, 1536, 0.707)
    moe = MoEConfig(
        n_routed_experts=160,
        num_experts_per_tok=6,
        moe_intermediate_size=1536,
        n_shared_experts=2,
        n_group=8,
        topk_group=3,
        scoring_func="softmax",
        norm_topk_prob=False,
        routed_scaling_factor=16.0,
        group_score="max",
        score_bias=False,
    )
    dense = DenseConfig(intermediate_size=12288)
    return ModelConfig(
        vocab_size=102400,
        hidden_size=5120,
        stages=(Stage(layers=1, attention=attention, ffn=dense), Stage(layers=59, attention=attention, ffn=moe)),
        max_position_embeddings=163840,
    )


def _v3() -> ModelConfig:
    attention = _mla(128, 1536, 1.0)
    moe = MoEConfig(
        n_routed_experts=256,
        num_experts_per_tok=8,
        moe_intermediate_size=2048,
        n_shared_experts=1,
        n_group=8,
        topk_group=4,
        routed_scaling_factor=2.5,
    )
    dense = DenseConfig(intermediate_size=18432)
    return ModelConfig(
        vocab_size=129280,
        hidden_size=7168,
        stages=(Stage(layers=3, attention=attention, ffn=dense), Stage(layers=58, attention=attention, ffn=moe)),
        max_position_embeddings=163840,
        num_nextn_predict_layers=1,
    )


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, tied: bool) -> ModelConfig:
    attention = GQAConfig(
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, qk_norm=True, rope=Rope(theta=1_000_000.0)
    )
    return ModelConfig(
        vocab_size=151936,
        hidden_size=hidden,
        stages=(Stage(layers=layers, attention=attention, ffn=DenseConfig(intermediate_size=intermediate)),),
        max_position_embeddings=40960,
        tie_word_embeddings=tied,
    )
