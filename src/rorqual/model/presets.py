"""Configurations of published models, written with the keys of `config.json`.

The dimensions of the presets agree with the DeepSeek-V2, DeepSeek-V3, Qwen2.5, Qwen3 and Llama 3 reports. The Qwen2.5 presets
follow the Instruct models. Some Qwen2.5 base models differ from the Instruct models in context length or norm epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rorqual.core.errors import ConfigError, suggest_name
from rorqual.model.config import ModelConfig
from rorqual.model.load.find import family_of

HfConfig = dict[str, Any]


def _size_keys(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool = False, **more: Any) -> HfConfig:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    return sizes | {"num_attention_heads": heads, "tie_word_embeddings": tied} | more


def _qwen2_keys(
    groups: int, vocab: int = 152064, *, context: int = 32768, theta: float = 1e6, eps: float = 1e-6
) -> HfConfig:
    sizes = {"model_type": "qwen2", "num_key_value_heads": groups, "vocab_size": vocab}
    return sizes | {"max_position_embeddings": context, "rope_theta": theta, "rms_norm_eps": eps}


def _llama3_keys(factor: float) -> HfConfig:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {
        "model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 5e5, "rope_scaling": scaling | {"original_max_position_embeddings": 8192},
    }  # fmt: skip


def _deepseek_keys(mscale: float) -> HfConfig:
    scaling = {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
    return {
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "rope_theta": 1e4,
        "max_position_embeddings": 163840, "rope_scaling": scaling | {"mscale": mscale, "mscale_all_dim": mscale},
    }  # fmt: skip


_QWEN3 = {
    "model_type": "qwen3", "head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151936, "rope_theta": 1e6,
    "max_position_embeddings": 40960,
}  # fmt: skip
_QWEN3_MOE = _QWEN3 | {
    "model_type": "qwen3_moe", "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
}  # fmt: skip
_V3 = _deepseek_keys(1.0) | {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
    "first_k_dense_replace": 3, "num_attention_heads": 128, "q_lora_rank": 1536, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
}  # fmt: skip
_V32 = _V3 | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
_V2 = _deepseek_keys(0.707) | {
    "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 5120, "intermediate_size": 12288, "num_hidden_layers": 60,
    "first_k_dense_replace": 1, "num_attention_heads": 128, "q_lora_rank": 1536, "n_routed_experts": 160, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "moe_intermediate_size": 1536, "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy",
    "routed_scaling_factor": 16.0,
}  # fmt: skip
_LITE = _V2 | {
    "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27, "num_attention_heads": 16, "q_lora_rank": None,
    "n_routed_experts": 64, "moe_intermediate_size": 1408, "topk_method": "greedy", "routed_scaling_factor": 1.0,
}  # fmt: skip
_PUBLISHED: Mapping[str, HfConfig] = {
    "deepseek-v2-lite": _LITE,
    "deepseek-v2": _V2,
    "deepseek-v3": _V3,
    "deepseek-r1": _V3,
    "deepseek-v3.1": _V3,
    "deepseek-v3.2": _V32,
    "qwen3-0.6b": _QWEN3 | _size_keys(1024, 3072, 28, 16, tied=True),
    "qwen3-1.7b": _QWEN3 | _size_keys(2048, 6144, 28, 16, tied=True),
    "qwen3-4b": _QWEN3 | _size_keys(2560, 9728, 36, 32, tied=True),
    "qwen3-8b": _QWEN3 | _size_keys(4096, 12288, 36, 32),
    "qwen3-14b": _QWEN3 | _size_keys(5120, 17408, 40, 40),
    "qwen3-32b": _QWEN3 | _size_keys(5120, 25600, 64, 64),
    "qwen3-30b-a3b": _QWEN3_MOE | _size_keys(2048, 6144, 48, 32, moe_intermediate_size=768),
    "qwen3-235b-a22b": _QWEN3_MOE | _size_keys(4096, 12288, 94, 64, moe_intermediate_size=1536),
    "qwen2.5-0.5b": _qwen2_keys(2, 151936) | _size_keys(896, 4864, 24, 14, tied=True),
    "qwen2.5-1.5b": _qwen2_keys(2, 151936) | _size_keys(1536, 8960, 28, 12, tied=True),
    "qwen2.5-3b": _qwen2_keys(2, 151936) | _size_keys(2048, 11008, 36, 16, tied=True),
    "qwen2.5-7b": _qwen2_keys(4) | _size_keys(3584, 18944, 28, 28),
    "qwen2.5-14b": _qwen2_keys(8) | _size_keys(5120, 13824, 48, 40),
    "qwen2.5-32b": _qwen2_keys(8) | _size_keys(5120, 27648, 64, 40),
    "qwen2.5-72b": _qwen2_keys(8) | _size_keys(8192, 29568, 80, 64),
    "deepseek-r1-distill-qwen-1.5b": _qwen2_keys(2, 151936, context=131072, theta=1e4) | _size_keys(1536, 8960, 28, 12),
    "deepseek-r1-distill-qwen-7b": _qwen2_keys(4, context=131072, theta=1e4) | _size_keys(3584, 18944, 28, 28),
    "deepseek-r1-distill-qwen-14b": _qwen2_keys(8, context=131072, eps=1e-5) | _size_keys(5120, 13824, 48, 40),
    "deepseek-r1-distill-qwen-32b": _qwen2_keys(8, context=131072, eps=1e-5) | _size_keys(5120, 27648, 64, 40),
    "llama-3.1-8b": _llama3_keys(8.0) | _size_keys(4096, 14336, 32, 32),
    "llama-3.1-70b": _llama3_keys(8.0) | _size_keys(8192, 28672, 80, 64),
    "llama-3.1-405b": _llama3_keys(8.0) | _size_keys(16384, 53248, 126, 128),
    "llama-3.2-1b": _llama3_keys(32.0) | _size_keys(2048, 8192, 16, 32, tied=True),
    "llama-3.2-3b": _llama3_keys(32.0) | _size_keys(3072, 8192, 28, 24, tied=True),
    "deepseek-r1-distill-llama-8b": _llama3_keys(8.0) | _size_keys(4096, 14336, 32, 32),
    "deepseek-r1-distill-llama-70b": _llama3_keys(8.0) | _size_keys(8192, 28672, 80, 64),
    "smollm2-135m": _size_keys(576, 1536, 30, 9, tied=True) | {
        "model_type": "llama", "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 1e5, "initializer_range": 1 / 24,
    },
}  # fmt: skip


def preset_names() -> tuple[str, ...]:
    """Return every name that `preset` accepts."""
    return tuple(_PUBLISHED)


def preset(name: str) -> ModelConfig:
    """Return the configuration called `name`. Raises ConfigError that suggests the nearest preset name if `name` is unknown."""
    if name not in _PUBLISHED:
        raise ConfigError(f"unknown model preset '{name}'", where="preset", remedy=suggest_name(name, preset_names()))
    keys = _PUBLISHED[name]
    return family_of(keys["model_type"], name).config_from_hf(keys, name)
