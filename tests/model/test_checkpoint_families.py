"""Published configs of the families as they stand on the hub; contradictions and what cannot be expressed, by name."""

from __future__ import annotations

from typing import Any

import pytest

from rorqual.core.errors import ConfigError
from rorqual.model import ModelConfig
from rorqual.model.load.find import FAMILIES, family_for, family_of, known_model_types
from rorqual.model.presets import preset
from rorqual.ops.rope import Yarn

R1_DISTILL_QWEN = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02, "intermediate_size": 8960,
    "max_position_embeddings": 131072, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 12,
    "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 10000, "sliding_window": 4096,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.44.0", "use_cache": True,
    "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
LLAMA31 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {}},
    "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "decoder_sparse_step": 1,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
    "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
    "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
    "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}


def read(data: dict[str, Any]) -> ModelConfig:
    return family_of(data["model_type"], "there").config_from_hf(data, "there")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (R1_DISTILL_QWEN, "deepseek-r1-distill-qwen-1.5b"),
        (LLAMA31, "llama-3.1-8b"),
        (SMOLLM2, "smollm2-135m"),
        (QWEN3_MOE, "qwen3-30b-a3b"),
    ],
)
def test_published_files_are_the_presets(data: dict[str, Any], name: str) -> None:
    assert read(data) == preset(name)
    assert data["model_type"] in family_for(preset(name)).model_types


def test_qwen_yarn_as_its_card_says_to_write_it() -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    config = read(R1_DISTILL_QWEN | {"rope_scaling": scaling})
    rope = config.stages[0].attention.rope  # type: ignore[attr-defined]
    assert rope.yarn == Yarn(factor=4.0, original_max_position_embeddings=32768)
    written = family_for(config).config_to_hf(config)["rope_scaling"]
    assert "attention_factor" not in written  # 0 stands for "not said" here alone


@pytest.mark.parametrize(
    ("data", "change", "message"),
    [
        (LLAMA31, {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        (LLAMA31, {"architectures": ["Qwen2ForCausalLM"]}, "architectures"),
        (LLAMA31, {"num_attention_heads": 30}, "is not a multiple of 'num_attention_heads'"),
        (LLAMA31, {"num_key_value_heads": 5}, "num_key_value_heads"),
        (LLAMA31, {"mlp_bias": True}, "mlp_bias"),
        (LLAMA31, {"rope_interleaved": True}, "rope_interleaved"),
        (LLAMA31, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA31, {"logit_scale": 2.0}, "unknown key 'logit_scale'"),
        (LLAMA31, {"num_hidden_layers": 10**12}, "num_hidden_layers"),
        (LLAMA31, {"rope_scaling": "llama3"}, "rope_scaling"),
        (LLAMA31, {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        (LLAMA31, {"rope_scaling": {"rope_type": "llama3", "type": "yarn", "factor": 2.0}}, "rope_type"),
        (
            LLAMA31,
            {"rope_scaling": LLAMA31["rope_scaling"] | {"high_freq_factor": 1.0}},
            "low_freq_factor must be below",
        ),  # type: ignore[operator]
        (LLAMA31, {"rope_scaling": LLAMA31["rope_scaling"] | {"beta_fast": 32}}, "beta_fast"),  # type: ignore[operator]
        (LLAMA31, {"rope_parameters": {"rope_theta": 10000.0}}, "rope_theta"),
        (R1_DISTILL_QWEN, {"use_sliding_window": True}, "use_sliding_window"),
        (R1_DISTILL_QWEN, {"use_mrope": True}, "use_mrope"),
        (R1_DISTILL_QWEN, {"layer_types": ["sliding_attention"] * 28}, "layer_types"),
        (
            R1_DISTILL_QWEN,
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "mscale_all_dim": 1,
                }
            },
            "mscale_all_dim",
        ),
        (
            R1_DISTILL_QWEN,
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "truncate": False,
                }
            },
            "truncate",
        ),
        (QWEN3_MOE, {"num_experts_per_tok": 129}, "num_experts_per_tok"),
        (QWEN3_MOE, {"num_local_experts": 64}, "num_local_experts"),
        (QWEN3_MOE, {"mlp_only_layers": [48]}, "mlp_only_layers"),
        (QWEN3_MOE, {"decoder_sparse_step": 0}, "decoder_sparse_step"),
        (QWEN3_MOE, {"shared_expert_intermediate_size": 64}, "unknown key 'shared_expert_intermediate_size'"),
        (LLAMA31, {"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config.quant_method"),
        (LLAMA31, {"quantization_config": FP8 | {"weight_block_size": [64, 64]}}, "weight_block_size"),
        (LLAMA31, {"quantization_config": {"quant_method": "fp8"}}, "weight_block_size"),
    ],
)
def test_contradictions_and_unknown_functions_are_refused_by_name(
    data: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    read(data)
    with pytest.raises(ConfigError, match=message) as caught:
        read(data | change)
    assert "there" in str(caught.value)


def test_dense_layers_among_experts_are_stages() -> None:
    config = read(QWEN3_MOE | {"num_hidden_layers": 7, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    # Layers 1, 3 and 5, counted from 0, are every second; 3 is listed.
    kinds = [(stage.layers, stage.ffn.kind) for stage in config.stages]
    assert kinds == [(1, "dense"), (1, "moe"), (3, "dense"), (1, "moe"), (1, "dense")]
    family = family_for(config)
    assert family.model_types == ("qwen3_moe",)
    assert family.config_from_hf(family.config_to_hf(config), "there") == config


def test_an_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="supported: deepseek_v2, deepseek_v3, deepseek_v32, llama, qwen2, qwen3, qwen3_moe"
    ):
        family_of("mamba", "there")
    assert set(known_model_types()) == {name for family in FAMILIES for name in family.model_types}
