"""Configurations of published models.

All values come from the `config.json` of each model. The dimensions agree with the V2, V3, Qwen2.5, Qwen3 and Llama 3
reports. Qwen2.5 presets follow the Instruct models. Some Qwen2.5 base models differ from the Instruct models in context
length or norm epsilon.
"""

from __future__ import annotations

from rorqual.core.errors import ConfigError, nearest
from rorqual.model.attention import DSAConfig, GQAConfig, MLAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.ffn.router import GroupedTopKConfig
from rorqual.ops.rope import Llama3, Rope, Yarn

_V3_NAMES = ("deepseek-v3", "deepseek-r1", "deepseek-v3.1")
_QWEN3 = {
    # name: hidden size, intermediate size, layers, heads, tied embeddings. All have 8 key-value heads with head_dim 128.
    "qwen3-0.6b": (1024, 3072, 28, 16, True),
    "qwen3-1.7b": (2048, 6144, 28, 16, True),
    "qwen3-4b": (2560, 9728, 36, 32, True),
    "qwen3-8b": (4096, 12288, 36, 32, False),
    "qwen3-14b": (5120, 17408, 40, 40, False),
    "qwen3-32b": (5120, 25600, 64, 64, False),
}


_QWEN3_MOE = {
    # name: hidden size, expert intermediate size, layers, heads.
    # All have 4 key-value heads with head_dim 128 and route each token to 8 of 128 experts.
    "qwen3-30b-a3b": (2048, 768, 48, 32),
    "qwen3-235b-a22b": (4096, 1536, 94, 64),
}
_QWEN2 = {
    # name: hidden size, intermediate size, layers, heads, key-value heads, tied embeddings,
    # vocabulary size, context length, RoPE theta, norm epsilon
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2, True, 151936, 32768, 1e6, 1e-6),
    "qwen2.5-1.5b": (1536, 8960, 28, 12, 2, True, 151936, 32768, 1e6, 1e-6),
    "qwen2.5-3b": (2048, 11008, 36, 16, 2, True, 151936, 32768, 1e6, 1e-6),
    "qwen2.5-7b": (3584, 18944, 28, 28, 4, False, 152064, 32768, 1e6, 1e-6),
    "qwen2.5-14b": (5120, 13824, 48, 40, 8, False, 152064, 32768, 1e6, 1e-6),
    "qwen2.5-32b": (5120, 27648, 64, 40, 8, False, 152064, 32768, 1e6, 1e-6),
    "qwen2.5-72b": (8192, 29568, 80, 64, 8, False, 152064, 32768, 1e6, 1e-6),
    "deepseek-r1-distill-qwen-1.5b": (1536, 8960, 28, 12, 2, False, 151936, 131072, 1e4, 1e-6),
    "deepseek-r1-distill-qwen-7b": (3584, 18944, 28, 28, 4, False, 152064, 131072, 1e4, 1e-6),
    "deepseek-r1-distill-qwen-14b": (5120, 13824, 48, 40, 8, False, 152064, 131072, 1e6, 1e-5),
    "deepseek-r1-distill-qwen-32b": (5120, 27648, 64, 40, 8, False, 152064, 131072, 1e6, 1e-5),
}
_LLAMA3 = {
    # name: hidden size, intermediate size, layers, heads, tied embeddings, RoPE factor. All have 8 key-value heads.
    "llama-3.1-8b": (4096, 14336, 32, 32, False, 8.0),
    "llama-3.1-70b": (8192, 28672, 80, 64, False, 8.0),
    "llama-3.1-405b": (16384, 53248, 126, 128, False, 8.0),
    "llama-3.2-1b": (2048, 8192, 16, 32, True, 32.0),
    "llama-3.2-3b": (3072, 8192, 28, 24, True, 32.0),
    "deepseek-r1-distill-llama-8b": (4096, 14336, 32, 32, False, 8.0),
    "deepseek-r1-distill-llama-70b": (8192, 28672, 80, 64, False, 8.0),
}


def preset_names() -> tuple[str, ...]:
    """Return every name that `preset` accepts."""
    deepseek = ("deepseek-v2-lite", "deepseek-v2", *_V3_NAMES, "deepseek-v3.2")
    return (*deepseek, *_QWEN3, *_QWEN3_MOE, *_QWEN2, *_LLAMA3, "smollm2-135m")


def preset(name: str) -> ModelConfig:
    """Return the configuration called `name`. Raises ConfigError with the nearest name if `name` is unknown."""
    alone = {
        "deepseek-v2-lite": _v2_lite,
        "deepseek-v2": _v2,
        "deepseek-v3.2": _v32,
        "smollm2-135m": _smollm2,
        **dict.fromkeys(_V3_NAMES, _v3),
    }
    if name in alone:
        return alone[name]()
    if name in _QWEN3:
        return _qwen3(*_QWEN3[name])
    if name in _QWEN3_MOE:
        return _qwen3_moe(*_QWEN3_MOE[name])
    if name in _QWEN2:
        return _qwen2(*_QWEN2[name])
    if name in _LLAMA3:
        return _llama3(*_LLAMA3[name])
    raise ConfigError(f"unknown model preset '{name}'", where="preset", remedy=nearest(name, preset_names()))


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
        router=GroupedTopKConfig(
            n_routed_experts=64,
            num_experts_per_tok=6,
            scoring_func="softmax",
            norm_topk_prob=False,
            group_score="max",
            score_bias=False,
        ),
        moe_intermediate_size=1408,
        n_shared_experts=2,
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
        router=GroupedTopKConfig(
            n_routed_experts=160,
            num_experts_per_tok=6,
            n_group=8,
            topk_group=3,
            scoring_func="softmax",
            norm_topk_prob=False,
            routed_scaling_factor=16.0,
            group_score="max",
            score_bias=False,
        ),
        moe_intermediate_size=1536,
        n_shared_experts=2,
    )
    dense = DenseConfig(intermediate_size=12288)
    return ModelConfig(
        vocab_size=102400,
        hidden_size=5120,
        stages=(Stage(layers=1, attention=attention, ffn=dense), Stage(layers=59, attention=attention, ffn=moe)),
        max_position_embeddings=163840,
    )


def _v3() -> ModelConfig:
    return _v3_with(_mla(128, 1536, 1.0))


def _v32() -> ModelConfig:
    fields = {"kind": "dsa", "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
    return _v3_with(DSAConfig(**(dict(_mla(128, 1536, 1.0)) | fields)))


def _v3_with(attention: MLAConfig) -> ModelConfig:
    moe = MoEConfig(
        router=GroupedTopKConfig(
            n_routed_experts=256, num_experts_per_tok=8, n_group=8, topk_group=4, routed_scaling_factor=2.5
        ),
        moe_intermediate_size=2048,
        n_shared_experts=1,
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


def _qwen3_moe(hidden: int, expert: int, layers: int, heads: int) -> ModelConfig:
    attention = GQAConfig(
        num_attention_heads=heads, num_key_value_heads=4, head_dim=128, qk_norm=True, rope=Rope(theta=1_000_000.0)
    )
    moe = MoEConfig(
        router=GroupedTopKConfig(n_routed_experts=128, num_experts_per_tok=8, scoring_func="softmax", score_bias=False),
        moe_intermediate_size=expert,
    )
    return ModelConfig(
        vocab_size=151936,
        hidden_size=hidden,
        stages=(Stage(layers=layers, attention=attention, ffn=moe),),
        max_position_embeddings=40960,
    )


def _qwen2(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    groups: int,
    tied: bool,
    vocab: int,
    length: int,
    theta: float,
    eps: float,
) -> ModelConfig:
    attention = GQAConfig(
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=hidden // heads,
        attention_bias=True,
        rope=Rope(theta=theta),
    )
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        stages=(Stage(layers=layers, attention=attention, ffn=DenseConfig(intermediate_size=intermediate)),),
        max_position_embeddings=length,
        rms_norm_eps=eps,
        tie_word_embeddings=tied,
    )


def _llama3(hidden: int, intermediate: int, layers: int, heads: int, tied: bool, factor: float) -> ModelConfig:
    scaling = Llama3(factor=factor, original_max_position_embeddings=8192)
    attention = GQAConfig(
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=hidden // heads,
        rope=Rope(theta=500_000.0, llama3=scaling),
    )
    return ModelConfig(
        vocab_size=128256,
        hidden_size=hidden,
        stages=(Stage(layers=layers, attention=attention, ffn=DenseConfig(intermediate_size=intermediate)),),
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )


def _smollm2() -> ModelConfig:
    attention = GQAConfig(num_attention_heads=9, num_key_value_heads=3, head_dim=64, rope=Rope(theta=100_000.0))
    return ModelConfig(
        vocab_size=49152,
        hidden_size=576,
        stages=(Stage(layers=30, attention=attention, ffn=DenseConfig(intermediate_size=1536)),),
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=1 / 24,
    )
