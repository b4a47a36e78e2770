"""What a family can express is written so that it is read as the same model; anything else is refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from rorqual.core.errors import ConfigError
from rorqual.model import ModelConfig, Stage
from rorqual.model.attention import AttentionConfig, GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, FFNConfig, MoEConfig
from rorqual.model.load.find import family_for
from rorqual.ops.rope import Llama3Scaling, Rope, Yarn

LAYERS = DenseConfig(intermediate_size=20)
MOE = MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
SOFTMAX = {"scoring_func": "softmax", "score_bias": False}
MLA = MLAConfig(num_attention_heads=2, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=6)


def gqa(**fields: Any) -> GQAConfig:
    return GQAConfig(**{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8} | fields)


def model(*layers: tuple[AttentionConfig, FFNConfig], **fields: Any) -> ModelConfig:
    stages = tuple(Stage(layers=1, attention=attention, ffn=ffn) for attention, ffn in layers)
    return ModelConfig(vocab_size=40, hidden_size=32, stages=stages, **fields)


def moe(**fields: Any) -> MoEConfig:
    own = {name: value for name, value in fields.items() if name in MoEConfig.model_fields}
    router = MOE.router.model_copy(update={name: value for name, value in fields.items() if name not in own})
    return MOE.model_copy(update=own | {"router": router})


QWEN_MOE = (gqa(qk_norm=True), moe(**SOFTMAX))
EXPRESSED: dict[str, ModelConfig] = {
    "llama": model((gqa(), LAYERS), initializer_range=0.5),
    "qwen2": model((gqa(attention_bias=True), LAYERS), rms_norm_eps=1e-5),
    "qwen2, narrow heads": model((gqa(attention_bias=True, head_dim=6), LAYERS)),
    "qwen3": model((gqa(qk_norm=True), LAYERS), tie_word_embeddings=True),
    "qwen3_moe": model(QWEN_MOE, (QWEN_MOE[0], LAYERS)),
    "qwen3_moe, no dense layer": model(QWEN_MOE),
    "deepseek_v3": model((MLA, LAYERS), (MLA, MOE), num_nextn_predict_layers=1, initializer_range=0.5),
    "deepseek_v3, no dense layer, tied": model((MLA, MOE), tie_word_embeddings=True),
    "deepseek_v2, greedy": model((MLA, moe(**SOFTMAX, norm_topk_prob=False, group_score="max"))),
    "deepseek_v2, groups": model(
        (MLA, moe(**SOFTMAX, n_group=2, topk_group=2, norm_topk_prob=False, group_score="max"))
    ),
}


@pytest.mark.parametrize("name", EXPRESSED)
def test_what_is_written_is_read_as_the_same_model_here_and_by_transformers(name: str) -> None:
    config = EXPRESSED[name]
    family = family_for(config)
    data = family.config_to_hf(config)
    assert data["model_type"] == name.split(",")[0]
    assert family.config_from_hf(data, "there") == config
    theirs = AutoConfig.for_model(data["model_type"], **{k: v for k, v in data.items() if k != "model_type"}).to_dict()
    assert family.config_from_hf(theirs, "theirs") == config
    assert data.get("q_lora_rank", None) is None, "0 is not None to those who read the file"
    for key in ("hidden_act", "attention_bias", "num_key_value_heads", "num_hidden_layers", "head_dim"):
        assert key not in data or data[key] == theirs[key], key


def test_a_router_without_groups_may_score_them_in_either_way() -> None:
    """One group is chosen whatever its score, so that the file says nothing of it."""
    config = model((MLA, moe(**SOFTMAX, norm_topk_prob=False, group_score="top2")))
    assert family_for(config).config_to_hf(config)["topk_method"] == "greedy"


def test_qwen2_says_a_heads_width_only_where_it_does_not_follow() -> None:
    written = {
        name: family_for(EXPRESSED[name]).config_to_hf(EXPRESSED[name]) for name in ("qwen2", "qwen2, narrow heads")
    }
    assert "head_dim" not in written["qwen2"] and written["qwen2, narrow heads"]["head_dim"] == 6


def yarned(**fields: float) -> Rope:
    return Rope(yarn=Yarn(factor=4.0, original_max_position_embeddings=16, **fields))


def turned(rope: Rope) -> MLAConfig:
    return MLA.model_copy(update={"rope": rope})


UNSAID: dict[str, ModelConfig] = {
    "two widths of heads": model((gqa(), LAYERS), (gqa(num_key_value_heads=4), LAYERS)),
    "two dense networks": model((gqa(), LAYERS), (gqa(), DenseConfig(intermediate_size=24))),
    "a prediction module without latents": model((gqa(), LAYERS), num_nextn_predict_layers=1),
    "norms and biases": model((gqa(qk_norm=True, attention_bias=True), LAYERS)),
    "norms and a bias of the output": model((gqa(qk_norm=True, output_bias=True), LAYERS)),
    "norms and all biases": model((gqa(qk_norm=True, attention_bias=True, output_bias=True), LAYERS)),
    "a bias of the output alone": model((gqa(output_bias=True), LAYERS)),
    "experts without norms of queries": model((gqa(), moe(**SOFTMAX))),
    "qwen's experts with groups": model((QWEN_MOE[0], moe(**SOFTMAX, n_group=2))),
    "qwen's experts with a shared one": model((QWEN_MOE[0], moe(**SOFTMAX, n_shared_experts=1))),
    "qwen's experts by sigmoid": model((QWEN_MOE[0], moe(score_bias=False))),
    "qwen's experts with a bias": model((QWEN_MOE[0], moe(scoring_func="softmax"))),
    "qwen's experts scaled": model((QWEN_MOE[0], moe(**SOFTMAX, routed_scaling_factor=2.0))),
    "qwen's two kinds of experts": model(QWEN_MOE, (QWEN_MOE[0], moe(**SOFTMAX, num_experts_per_tok=1))),
    "an mscale outside DeepSeek": model((gqa(rope=yarned(mscale_all_dim=1.0)), LAYERS)),
    "experts before a dense layer": model((MLA, MOE), (MLA, LAYERS)),
    "two kinds of deepseek's experts": model((MLA, moe(num_experts_per_tok=1)), (MLA, MOE)),
    "two latents": model((MLA, LAYERS), (MLA.model_copy(update={"kv_lora_rank": 12}), MOE)),
    "another epsilon": model((MLA, MOE), rms_norm_eps=1e-5),
    "latents scaled as llama3": model((turned(Rope(llama3=Llama3Scaling(factor=8.0, original_max_position_embeddings=16))), MOE)),
    "latents divided": model((turned(Rope(linear=2.0)), MOE)),
    "latents with an attention factor": model((turned(yarned(attention_factor=1.5)), MOE)),
    "v3's groups by their best": model((MLA, moe(n_group=2, group_score="max"))),
    "v3 by softmax": model((MLA, moe(scoring_func="softmax"))),
    "v2 by sigmoid": model((MLA, moe(score_bias=False, group_score="max"))),
    "v2's groups by their two best": model((MLA, moe(**SOFTMAX, n_group=2))),
    "a prediction module of v2": model((MLA, moe(**SOFTMAX)), num_nextn_predict_layers=1),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAID)
def test_what_no_published_file_can_say_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no published family can express"):
        family_for(UNSAID[name])


def test_the_same_layouts_with_yarn_are_expressed() -> None:
    for config in (model((gqa(rope=yarned()), LAYERS)), model((turned(yarned()), MOE))):
        family = family_for(config)
        assert family.config_from_hf(family.config_to_hf(config), "there") == config
