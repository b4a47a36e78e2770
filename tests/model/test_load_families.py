"""Checkpoint families: every name both ways, bit for bit, and transformers reads and writes the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3ForCausalLM, Qwen3ForCausalLM

from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.load import deepseek_v3, qwen3
from rorqual.model.load.find import family_for
from rorqual.model.presets import preset, preset_names
from rorqual.ops.rope import Rope, Yarn

MLA = MLAConfig(
    num_attention_heads=2,
    q_lora_rank=12,
    kv_lora_rank=8,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=6,
    rope=Rope(yarn=Yarn(factor=4.0, original_max_position_embeddings=64, mscale=0.707, mscale_all_dim=0.707)),
)
MOE = MoEConfig(
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, n_shared_experts=1, n_group=2, topk_group=1
)


def deepseek(mtp: int = 0, **fields: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=40,
        hidden_size=16,
        stages=(
            Stage(layers=1, attention=MLA, ffn=DenseConfig(intermediate_size=20)),
            Stage(layers=2, attention=MLA, ffn=MOE),
        ),
        num_nextn_predict_layers=mtp,
        **fields,
    )


def qwen(**fields: Any) -> ModelConfig:
    attention = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, qk_norm=True, rope=Rope(theta=1e6))
    stage = Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=20))
    return ModelConfig(vocab_size=40, hidden_size=16, stages=(stage,), **fields)


CASES = {
    "deepseek": (deepseek_v3, deepseek()),
    "deepseek, two prediction modules": (deepseek_v3, deepseek(mtp=2)),
    "deepseek, tied, a prediction module": (deepseek_v3, deepseek(mtp=1, tie_word_embeddings=True)),
    "qwen3": (qwen3.FAMILY, qwen()),
    "qwen3, tied": (qwen3.FAMILY, qwen(tie_word_embeddings=True)),
}


def weights(config: ModelConfig) -> dict[str, Tensor]:
    state = build(config, seed=0).state_dict()
    for name, tensor in state.items():
        if name.endswith("e_score_correction_bias"):
            tensor.normal_(generator=torch.Generator().manual_seed(1))
    return state


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one)


@pytest.mark.parametrize("case", CASES)
def test_round_trip_is_bitwise(case: str) -> None:
    family, config = CASES[case]
    state = weights(config)
    hub = family.name_map(config).to_hf(state)
    assert same(family.name_map(config).from_hf(hub), dict(state))
    assert same(family.name_map(config).to_hf(family.name_map(config).from_hf(hub)), hub)
    Decoder(config).load_state_dict(family.name_map(config).from_hf(hub), strict=True)


@pytest.mark.parametrize("name", preset_names())
def test_published_configs_round_trip(name: str) -> None:
    family = family_for(preset(name))
    assert family.config_from_hf(family.config_to_hf(preset(name)), name) == preset(name)


def test_names_are_those_of_the_published_checkpoint() -> None:
    hub = deepseek_v3.name_map(deepseek(mtp=1)).to_hf(weights(deepseek(mtp=1)))
    layer = {name.removeprefix("model.layers.3.") for name in hub if name.startswith("model.layers.3.")}
    assert {"embed_tokens.weight", "enorm.weight", "hnorm.weight", "eh_proj.weight"} <= layer
    assert {"shared_head.norm.weight", "shared_head.head.weight", "self_attn.kv_a_proj_with_mqa.weight"} <= layer
    assert {"mlp.gate.weight", "mlp.gate.e_score_correction_bias", "mlp.experts.3.gate_proj.weight"} <= layer
    assert {"mlp.shared_experts.down_proj.weight", "input_layernorm.weight"} <= layer
    assert torch.equal(hub["model.layers.3.shared_head.head.weight"], hub["lm_head.weight"])
    assert hub["model.layers.1.mlp.experts.0.up_proj.weight"].shape == (8, 16)


@pytest.mark.parametrize(("case", "cls"), [("deepseek", DeepseekV3ForCausalLM), ("qwen3, tied", Qwen3ForCausalLM)])
def test_transformers_reads_what_we_write_and_we_what_it_writes(case: str, cls: Any, tmp_path: Path) -> None:
    family, config = CASES[case]
    model = Decoder(config)
    state = weights(config)
    model.load_state_dict(state)
    (tmp_path / "config.json").write_text(json.dumps(family.config_to_hf(config)), encoding="utf-8")
    save_file(family.name_map(config).to_hf(state), tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, info = cls.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    # Of the names, not even a copy is left over; tied heads are a copy that transformers expects to be absent or equal.
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model(tokens).hidden), theirs(tokens).logits, rtol=1e-5, atol=1e-6)
    theirs.save_pretrained(tmp_path / "back")
    back = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    assert family.config_from_hf(back) == config
    assert same(family.name_map(config).from_hf(load_file(tmp_path / "back" / "model.safetensors")), dict(state))


def test_missing_and_left_over_names_are_listed() -> None:
    config = deepseek()
    hub = deepseek_v3.name_map(config).to_hf(weights(config))
    del hub["model.layers.1.mlp.experts.2.up_proj.weight"]
    hub["model.layers.9.extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        deepseek_v3.name_map(config).from_hf(hub)
    assert "missing model.layers.1.mlp.experts.2.up_proj.weight" in str(caught.value)
    assert "unexpected model.layers.9.extra" in str(caught.value)


def test_fp8_mixed_types_and_shapes_that_do_not_stack_are_refused() -> None:
    config = deepseek()
    hub = deepseek_v3.name_map(config).to_hf(weights(config))
    with pytest.raises(CheckpointError, match="float32 with scales"):
        deepseek_v3.name_map(config).from_hf(
            hub | {"model.layers.0.self_attn.o_proj.weight_scale_inv": torch.ones(1, 1)}
        )
    expert = "model.layers.1.mlp.experts.2.down_proj.weight"
    with pytest.raises(CheckpointError, match=r"experts\.2\.down_proj.*different types"):
        deepseek_v3.name_map(config).from_hf(hub | {expert: hub[expert].bfloat16()})
    with pytest.raises(CheckpointError, match="cannot be stacked"):
        deepseek_v3.name_map(config).from_hf(hub | {expert: hub[expert][:-1]})


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'deepseek-v3'"):
        preset("deepsek-v3")
