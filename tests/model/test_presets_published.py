"""Presets against published `config.json` files, written down a second time in the words of these files; their sizes: test_account.py."""

from __future__ import annotations

from typing import Any

import pytest

from rorqual.model.load.find import family_of
from rorqual.model.presets import preset, preset_names

V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
    "first_k_dense_replace": 3, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_layer_freq": 1,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_group": 8,
    "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1, "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
    "max_position_embeddings": 163840, "tie_word_embeddings": False,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
                     "mscale": 1.0, "mscale_all_dim": 1.0},
}  # fmt: skip
V2 = {key: value for key, value in V3.items() if key != "num_nextn_predict_layers"} | {
    "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 5120, "intermediate_size": 12288, "num_hidden_layers": 60,
    "first_k_dense_replace": 1, "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "moe_intermediate_size": 1536, "topk_group": 3, "topk_method": "group_limited_greedy", "scoring_func": "softmax",
    "norm_topk_prob": False, "routed_scaling_factor": 16.0,
    "rope_scaling": V3["rope_scaling"] | {"mscale": 0.707, "mscale_all_dim": 0.707},
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek-v3", "deepseek-r1", "deepseek-v3.1"), V3),
    "deepseek-v3.2": V3 | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048},
    "deepseek-v2": V2,
    "deepseek-v2-lite": V2 | {
        "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27, "num_attention_heads": 16,
        "num_key_value_heads": 16, "q_lora_rank": None, "n_routed_experts": 64, "moe_intermediate_size": 1408, "n_group": 1,
        "topk_group": 1, "topk_method": "greedy", "routed_scaling_factor": 1.0,
    },
    "qwen3-8b": {
        "model_type": "qwen3", "attention_bias": False, "head_dim": 128, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 40960, "vocab_size": 151936, "use_sliding_window": False,
        "hidden_act": "silu", "initializer_range": 0.02, "rope_scaling": None, "hidden_size": 4096, "intermediate_size": 12288,
        "num_hidden_layers": 36, "num_attention_heads": 32, "tie_word_embeddings": False,
    },
}  # fmt: skip
CONTEXTS: dict[str, tuple[int, float, float]] = {
    "deepseek-": (163840, 1e4, 1e-6), "qwen3-": (40960, 1e6, 1e-6), "qwen2.5-": (32768, 1e6, 1e-6),
    "llama-": (131072, 5e5, 1e-5), "smollm2-": (8192, 1e5, 1e-5), "deepseek-r1-distill-llama": (131072, 5e5, 1e-5),
    "deepseek-r1-distill-qwen": (131072, 1e4, 1e-6), "deepseek-r1-distill-qwen-14b": (131072, 1e6, 1e-5),
    "deepseek-r1-distill-qwen-32b": (131072, 1e6, 1e-5),
}  # fmt: skip
"""Context, theta of RoPE and epsilon of the norms, by the beginning of a name; the longest beginning counts."""
TIED = (
    "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "llama-3.2-1b", "llama-3.2-3b", "smollm2-135m",
)  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_what_its_published_file_says(name: str) -> None:
    data = PUBLISHED[name]
    assert family_of(data["model_type"], name).config_from_hf(data, name) == preset(name)


@pytest.mark.parametrize("name", preset_names())
def test_what_no_size_shows_is_what_the_file_says(name: str) -> None:
    config = preset(name)
    rope = config.stages[0].attention.rope  # type: ignore[attr-defined]
    expected = CONTEXTS[max((start for start in CONTEXTS if name.startswith(start)), key=len)]
    assert (config.max_position_embeddings, rope.theta, config.rms_norm_eps) == expected
    assert config.tie_word_embeddings == (name in TIED)
