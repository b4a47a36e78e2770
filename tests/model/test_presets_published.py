"""Every preset is its published `config.json`, written down a second time in the words of that file."""

from __future__ import annotations

from typing import Any

import pytest

from rorqual.model.load.find import family_of
from rorqual.model.presets import preset, preset_names

ENDS = {"hidden_act": "silu", "initializer_range": 0.02, "rope_scaling": None}
QWEN2 = ENDS | {
    "model_type": "qwen2", "use_sliding_window": False, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768,
}  # fmt: skip
QWEN3 = ENDS | {
    "model_type": "qwen3", "attention_bias": False, "head_dim": 128, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "max_position_embeddings": 40960, "vocab_size": 151936, "use_sliding_window": False,
}  # fmt: skip
QWEN3_MOE = QWEN3 | {
    "model_type": "qwen3_moe", "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False,
}  # fmt: skip
LLAMA = ENDS | {
    "model_type": "llama", "attention_bias": False, "mlp_bias": False, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "rope_theta": 5e5, "max_position_embeddings": 131072, "vocab_size": 128256,
}  # fmt: skip
DEEPSEEK = ENDS | {
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_layer_freq": 1,
    "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 163840, "tie_word_embeddings": False,
}  # fmt: skip


def llama3(factor: float) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_scaling": scaling | {"original_max_position_embeddings": 8192}}


def yarn(mscale: float) -> dict[str, Any]:
    scaling = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
    return {"rope_scaling": scaling | {"mscale": mscale, "mscale_all_dim": mscale}}


def dense(hidden: int, intermediate: int, layers: int, heads: int, tied: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "tie_word_embeddings": tied, **more,
    }  # fmt: skip


def qwen2(groups: int, vocab: int = 152064) -> dict[str, Any]:
    return QWEN2 | {"num_key_value_heads": groups, "vocab_size": vocab}


V3 = DEEPSEEK | yarn(1.0) | {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
    "first_k_dense_replace": 3, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_group": 8,
    "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
}  # fmt: skip
V32 = V3 | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
V2 = DEEPSEEK | yarn(0.707) | {
    "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 5120, "intermediate_size": 12288, "num_hidden_layers": 60,
    "first_k_dense_replace": 1, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1536, "n_group": 8,
    "topk_group": 3, "topk_method": "group_limited_greedy", "scoring_func": "softmax", "norm_topk_prob": False,
    "routed_scaling_factor": 16.0,
}  # fmt: skip
LITE = V2 | {
    "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
    "q_lora_rank": None, "n_routed_experts": 64, "moe_intermediate_size": 1408, "n_group": 1, "topk_group": 1,
    "topk_method": "greedy", "routed_scaling_factor": 1.0,
}  # fmt: skip
R1_SMALL = {"max_position_embeddings": 131072, "rope_theta": 1e4}
R1_LARGE = {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
PUBLISHED: dict[str, dict[str, Any]] = {
    "deepseek-v3": V3, "deepseek-r1": V3, "deepseek-v3.1": V3, "deepseek-v3.2": V32, "deepseek-v2": V2, "deepseek-v2-lite": LITE,
    "qwen2.5-0.5b": qwen2(2, 151936) | dense(896, 4864, 24, 14, True),
    "qwen2.5-1.5b": qwen2(2, 151936) | dense(1536, 8960, 28, 12, True),
    "qwen2.5-3b": qwen2(2, 151936) | dense(2048, 11008, 36, 16, True),
    "qwen2.5-7b": qwen2(4) | dense(3584, 18944, 28, 28),
    "qwen2.5-14b": qwen2(8) | dense(5120, 13824, 48, 40),
    "qwen2.5-32b": qwen2(8) | dense(5120, 27648, 64, 40),
    "qwen2.5-72b": qwen2(8) | dense(8192, 29568, 80, 64),
    "deepseek-r1-distill-qwen-1.5b": qwen2(2, 151936) | dense(1536, 8960, 28, 12) | R1_SMALL,
    "deepseek-r1-distill-qwen-7b": qwen2(4) | dense(3584, 18944, 28, 28) | R1_SMALL,
    "deepseek-r1-distill-qwen-14b": qwen2(8) | dense(5120, 13824, 48, 40) | R1_LARGE,
    "deepseek-r1-distill-qwen-32b": qwen2(8) | dense(5120, 27648, 64, 40) | R1_LARGE,
    "qwen3-0.6b": QWEN3 | dense(1024, 3072, 28, 16, True),
    "qwen3-1.7b": QWEN3 | dense(2048, 6144, 28, 16, True),
    "qwen3-4b": QWEN3 | dense(2560, 9728, 36, 32, True),
    "qwen3-8b": QWEN3 | dense(4096, 12288, 36, 32),
    "qwen3-14b": QWEN3 | dense(5120, 17408, 40, 40),
    "qwen3-32b": QWEN3 | dense(5120, 25600, 64, 64),
    "qwen3-30b-a3b": QWEN3_MOE | dense(2048, 6144, 48, 32, moe_intermediate_size=768),
    "qwen3-235b-a22b": QWEN3_MOE | dense(4096, 12288, 94, 64, moe_intermediate_size=1536),
    "llama-3.1-8b": LLAMA | dense(4096, 14336, 32, 32) | llama3(8.0),
    "llama-3.1-70b": LLAMA | dense(8192, 28672, 80, 64) | llama3(8.0),
    "llama-3.1-405b": LLAMA | dense(16384, 53248, 126, 128) | llama3(8.0),
    "llama-3.2-1b": LLAMA | dense(2048, 8192, 16, 32, True) | llama3(32.0),
    "llama-3.2-3b": LLAMA | dense(3072, 8192, 28, 24, True) | llama3(32.0),
    "deepseek-r1-distill-llama-8b": LLAMA | dense(4096, 14336, 32, 32) | llama3(8.0),
    "deepseek-r1-distill-llama-70b": LLAMA | dense(8192, 28672, 80, 64) | llama3(8.0),
    "smollm2-135m": LLAMA | dense(576, 1536, 30, 9, True) | {
        "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 1e5,
        "initializer_range": 0.041666666666666664,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_what_its_published_file_says(name: str) -> None:
    data = PUBLISHED[name]
    assert family_of(data["model_type"], name).config_from_hf(data, name) == preset(name)


def test_every_preset_has_its_file_here() -> None:
    assert sorted(preset_names()) == sorted(PUBLISHED)
