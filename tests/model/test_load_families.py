"""Checkpoint families: the presets and the names of a published checkpoint. `tests/convert` reads and writes folders."""

from __future__ import annotations

import pytest
import torch

from rorqual.core.errors import ConfigError
from rorqual.model import ModelConfig, Stage, build
from rorqual.model.attention import MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.load import deepseek_v3
from rorqual.model.load.find import family_for
from rorqual.model.presets import preset, preset_names

MLA = MLAConfig(
    num_attention_heads=2, q_lora_rank=12, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=6
)
MOE = MoEConfig(
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, n_shared_experts=1, n_group=2, topk_group=1
)


CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    stages=(
        Stage(layers=1, attention=MLA, ffn=DenseConfig(intermediate_size=20)),
        Stage(layers=2, attention=MLA, ffn=MOE),
    ),
    num_nextn_predict_layers=1,
)


@pytest.mark.parametrize("name", preset_names())
def test_published_configs_round_trip(name: str) -> None:
    family = family_for(preset(name))
    assert family.config_from_hf(family.config_to_hf(preset(name)), name) == preset(name)


def test_names_are_those_of_the_published_checkpoint() -> None:
    hub = deepseek_v3.name_map(CONFIG).to_hf(build(CONFIG, seed=0).state_dict())
    layer = {name.removeprefix("model.layers.3.") for name in hub if name.startswith("model.layers.3.")}
    assert {"embed_tokens.weight", "enorm.weight", "hnorm.weight", "eh_proj.weight"} <= layer
    assert {"shared_head.norm.weight", "shared_head.head.weight", "self_attn.kv_a_proj_with_mqa.weight"} <= layer
    assert {"mlp.gate.weight", "mlp.gate.e_score_correction_bias", "mlp.experts.3.gate_proj.weight"} <= layer
    assert {"mlp.shared_experts.down_proj.weight", "input_layernorm.weight"} <= layer
    assert torch.equal(hub["model.layers.3.shared_head.head.weight"], hub["lm_head.weight"])
    assert hub["model.layers.1.mlp.experts.0.up_proj.weight"].shape == (8, 16)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'deepseek-v3'"):
        preset("deepsek-v3")
