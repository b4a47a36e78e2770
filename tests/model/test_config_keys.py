"""Each key of a published `config.json`: an absent one is what transformers takes it for, and another function is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from rorqual.core.errors import ConfigError
from rorqual.model import ModelConfig, Stage
from rorqual.model.attention import AttentionConfig, GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, FFNConfig, MoEConfig
from rorqual.model.load.find import family_for, family_of
from rorqual.model.load.keys import MOST_LAYERS
from rorqual.ops.rope import Llama3, Rope, Yarn

SIZES = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 20,
    "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
LEAST: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES | {"num_key_value_heads": 2},
    "qwen3": SIZES | {"num_key_value_heads": 2},
    "qwen3_moe": SIZES | EXPERTS | {"num_key_value_heads": 2, "num_experts": 4, "head_dim": 8},
    "deepseek_v3": SIZES | EXPERTS | LATENT | {
        "n_routed_experts": 8, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "n_shared_experts": 1,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    },
    "deepseek_v2": SIZES | EXPERTS | LATENT | {
        "n_routed_experts": 8, "first_k_dense_replace": 1, "n_shared_experts": 2, "norm_topk_prob": False,
        "routed_scaling_factor": 1.0, "topk_method": "greedy",
    },
}  # fmt: skip
"""The fewest keys that say a model of each family."""


def read(data: dict[str, Any]) -> ModelConfig:
    return family_of(data["model_type"], "there").config_from_hf(data, "there")


def least(family: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": family, **LEAST[family], **changes}


@pytest.mark.parametrize("family", LEAST)
def test_an_absent_key_is_what_transformers_takes_it_for(family: str) -> None:
    """A file with the fewest keys, and the file that transformers writes of it with every key: one model."""
    # transformers writes one prediction module where nothing is said, and has none in its model.
    none = {"num_nextn_predict_layers": 0} if family == "deepseek_v3" else {}
    whole = AutoConfig.for_model(family, **LEAST[family], **none).to_dict()
    assert len(whole) > len(LEAST[family]) + 10
    assert read(least(family)) == read(whole)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe"])
def test_each_head_has_a_key_of_its_own_where_the_file_does_not_count_them(family: str) -> None:
    data = least(family)
    data.pop("num_key_value_heads", None)
    attention = read(data).stages[0].attention
    assert isinstance(attention, GQAConfig) and attention.num_key_value_heads == attention.num_attention_heads == 4


@pytest.mark.parametrize(("family", "wide"), [("llama", 8), ("qwen2", 8), ("qwen3", 128), ("qwen3_moe", 8)])
def test_a_heads_width_where_the_file_does_not_say_it(family: str, wide: int) -> None:
    """Qwen3's class in transformers has heads of 128 whatever the width of the model; the others divide it."""
    for absent in ({}, {"head_dim": None}):
        data = {key: value for key, value in least(family).items() if key != "head_dim"} | absent
        assert read(data).stages[0].attention.head_dim == wide  # type: ignore[attr-defined]
    assert read(least(family, head_dim=6)).stages[0].attention.head_dim == 6  # type: ignore[attr-defined]


def test_deepseek_keys_that_a_file_may_lack() -> None:
    """DeepSeek's code: no layer is dense, no expert is shared, V3 norms its gates by sigmoid, V2 does not by softmax."""
    optional = (
        "first_k_dense_replace", "n_group", "topk_group", "n_shared_experts", "norm_topk_prob", "routed_scaling_factor",
        "topk_method",
    )  # fmt: skip
    for family, v3 in (("deepseek_v3", True), ("deepseek_v2", False)):
        plain = {key: value for key, value in least(family).items() if key not in optional}
        (stage,) = read(plain).stages
        expected = MoEConfig(
            n_routed_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            scoring_func="sigmoid" if v3 else "softmax",
            norm_topk_prob=v3,
            group_score="top2" if v3 else "max",
            score_bias=v3,
        )
        assert stage.layers == 3 and stage.ffn == expected
        unsaid = {"n_group": None, "topk_group": None, "n_shared_experts": None}
        assert read(plain | unsaid) == read(plain)
        assert read(plain | {"q_lora_rank": None}).stages[0].attention.q_lora_rank == 0  # type: ignore[attr-defined]


def test_a_greedy_router_of_v2_has_no_groups_whatever_the_file_says_of_them() -> None:
    said = {"n_group": 4, "topk_group": 2}
    greedy, limited = (read(least("deepseek_v2", topk_method=m, **said)) for m in ("greedy", "group_limited_greedy"))
    assert [(c.stages[-1].ffn.n_group, c.stages[-1].ffn.topk_group) for c in (greedy, limited)] == [(1, 1), (4, 2)]  # type: ignore[attr-defined]


def test_v2_norms_its_gates_or_scales_them_and_a_file_that_says_both_is_refused() -> None:
    one, other = ({"norm_topk_prob": True}, {"routed_scaling_factor": 4.0})
    assert read(least("deepseek_v2", **one)).stages[-1].ffn.norm_topk_prob  # type: ignore[attr-defined]
    assert read(least("deepseek_v2", **other)).stages[-1].ffn.routed_scaling_factor == 4.0  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="norm_topk_prob"):
        read(least("deepseek_v2", **one, **other))
    assert read(least("deepseek_v3", **one, **other))


ANOTHER: dict[str, list[tuple[str, Any]]] = {
    "llama": [("hidden_act", "gelu"), ("mlp_bias", True), ("is_llama_config", False), ("rope_interleaved", True)],
    "qwen2": [("hidden_act", "gelu"), ("use_mrope", True), ("use_sliding_window", True)],
    "qwen3": [("hidden_act", "gelu"), ("attention_bias", True), ("use_sliding_window", True)],
    "qwen3_moe": [("hidden_act", "gelu"), ("attention_bias", True), ("use_sliding_window", True)],
    "deepseek_v3": [
        ("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True), ("moe_layer_freq", 2), ("rope_interleave", False),
        ("num_key_value_heads", 2), ("head_dim", 10), ("rms_norm_eps", 1e-5), ("qk_head_dim", 6), ("topk_method", "random"),
        ("first_k_dense_replace", 4), ("first_k_dense_replace", -1),
    ],
    "deepseek_v2": [("num_nextn_predict_layers", 1), ("hidden_act", "gelu"), ("mlp_bias", True)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [(family, key, value) for family, changes in ANOTHER.items() for key, value in changes],
)
def test_a_value_that_means_another_function_is_refused_by_its_key(family: str, key: str, value: Any) -> None:
    read(least(family))
    with pytest.raises(ConfigError, match=key) as caught:
        read(least(family, **{key: value}))
    assert "there" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("qwen2", {"layer_types": ["full_attention"] * 3, "sliding_window": 4096, "max_window_layers": 2}),
        ("qwen3", {"layer_types": ["full_attention"] * 3, "sliding_window": None, "max_window_layers": 3}),
        ("llama", {"is_llama_config": True, "rope_interleaved": False, "mlp_bias": False, "head_dim": 8}),
        ("deepseek_v3", {"head_dim": 4, "qk_head_dim": 10, "num_key_value_heads": 4, "rope_interleave": True}),
        ("deepseek_v3", {"num_key_value_heads": None, "head_dim": None, "qk_head_dim": None, "moe_layer_freq": 1}),
        ("deepseek_v3", {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "ep_size": 1, "seq_aux": True}),
        ("qwen3_moe", {"mlp_only_layers": None, "decoder_sparse_step": 1, "num_local_experts": 4}),
        ("llama", {"architectures": None}),
    ],
    ids=["window", "no window", "llama", "deepseek", "null", "router", "experts", "no architecture"],
)
def test_keys_that_say_what_holds_without_them_change_nothing(family: str, said: dict[str, Any]) -> None:
    assert read(least(family, **said)) == read(least(family))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("count", [2, 4])
def test_kinds_of_layers_must_be_as_many_as_the_layers(family: str, count: int) -> None:
    with pytest.raises(ConfigError, match="layer_types"):
        read(least(family, layer_types=["full_attention"] * count))


def test_a_number_of_layers_is_a_whole_number_from_one() -> None:
    for wrong in (0, -1, True, 2.0, "3", MOST_LAYERS + 1):
        with pytest.raises(ConfigError, match="num_hidden_layers"):
            read(least("llama", num_hidden_layers=wrong))
    assert [len(read(least("llama", num_hidden_layers=n)).layers) for n in (1, MOST_LAYERS)] == [1, MOST_LAYERS]


def test_all_layers_may_be_dense_before_the_experts_begin() -> None:
    """`first_k_dense_replace` from none to all."""
    for dense in range(4):
        kinds = [stage.ffn.kind for stage in read(least("deepseek_v3", first_k_dense_replace=dense)).layers]
        assert kinds == ["dense"] * dense + ["moe"] * (3 - dense)


# ---- how the context was extended

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def rope_of(family: str = "llama", **keys: Any) -> Rope:
    rope = read(least(family, **keys)).stages[0].attention.rope  # type: ignore[attr-defined]
    assert isinstance(rope, Rope)
    return rope


def test_the_same_extension_in_either_form_is_one() -> None:
    """`rope_theta` and `rope_scaling` as published, `rope_parameters` as transformers 5 writes it, `type` or `rope_type`; null: not said."""
    yarn = Yarn(factor=4.0, original_max_position_embeddings=16, beta_fast=8.0)
    expected = Rope(theta=500.0, yarn=yarn)
    scaling = YARN | {"beta_fast": 8.0}
    assert rope_of(rope_theta=500.0, rope_scaling=scaling) == expected
    assert rope_of(rope_parameters=scaling | {"rope_theta": 500.0}) == expected
    both = scaling | {"rope_type": "yarn", "rope_theta": 500.0, "mscale": None, "truncate": True}
    assert rope_of(rope_theta=500.0, rope_scaling=both, rope_parameters=both) == expected
    assert rope_of(rope_parameters={"rope_type": "default", "rope_theta": 500.0, "factor": None}) == Rope(theta=500.0)
    assert rope_of(rope_scaling={"type": "linear", "factor": 4.0}) == Rope(linear=4.0)
    llama3 = Llama3(factor=8.0, original_max_position_embeddings=16)
    assert rope_of(rope_scaling=LLAMA3) == Rope(llama3=llama3)
    assert rope_of(partial_rotary_factor=1.0, rope_parameters={"partial_rotary_factor": 1.0}) == Rope()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_scaling": YARN, "rope_parameters": YARN | {"factor": 8.0}}, "rope_parameters.factor"),
        ({"rope_theta": 500.0, "rope_scaling": YARN | {"rope_theta": 100.0}}, "rope_theta"),
        ({"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": YARN | {"rope_type": "linear"}}, "rope_type"),
        ({"rope_scaling": {"factor": 4.0}}, "default"),
        ({"rope_scaling": YARN | {"truncate": False}}, "truncate"),
        ({"rope_scaling": LLAMA3 | {"attention_factor": 1.5}}, "attention_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0, "original_max_position_embeddings": 16}}, "original_max"),
        ({"rope_scaling": {"type": "linear"}}, "linear"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"rope_scaling": [4.0]}, "rope_scaling"),
    ],
    ids=[
        "two factors", "two thetas", "part of a head", "part of a head, outside", "two types", "no type", "truncate",
        "llama3", "linear", "no factor", "dynamic", "list",
    ],
)  # fmt: skip
def test_an_extension_that_is_not_understood_is_refused_by_its_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rope_of(**keys)


def test_deepseek_extends_by_yarn_alone() -> None:
    assert rope_of("deepseek_v3", rope_scaling=YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}).yarn is not None
    for wrong in (LLAMA3, {"type": "linear", "factor": 4.0}, YARN | {"attention_factor": 1.5}):
        with pytest.raises(ConfigError, match="rope scaling"):
            rope_of("deepseek_v3", rope_scaling=wrong)


# ---- FP8 weights

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    "said",
    [
        {"fmt": "e4m3", "activation_scheme": "dynamic", "scale_fmt": "ue8m0"},
        {"fmt": None, "activation_scheme": None, "scale_fmt": None},
        {"modules_to_not_convert": ["lm_head"], "ignored_layers": ["lm_head"]},
    ],
    ids=["all", "null", "plain modules"],
)
def test_fp8_in_blocks_is_read(said: dict[str, Any]) -> None:
    assert read(least("llama", quantization_config=FP8 | said)) == read(least("llama"))


@pytest.mark.parametrize(
    ("said", "key"),
    [
        (FP8 | {"fmt": "e5m2"}, "fmt"),
        (FP8 | {"activation_scheme": "static"}, "activation_scheme"),
        (FP8 | {"scale_fmt": "float"}, "scale_fmt"),
        (FP8 | {"weight_block_size": [128, 64]}, "weight_block_size"),
        (FP8 | {"quant_method": "gptq"}, "quant_method"),
        (FP8 | {"bits": 8}, "bits"),
        ({"weight_block_size": [128, 128]}, "quant_method"),
        ({"quant_method": "fp8"}, "weight_block_size"),
        ("fp8", "quantization_config"),
    ],
    ids=["fmt", "activations", "scales", "block", "method", "bits", "no method", "no block", "text"],
)
def test_weights_quantised_in_another_way_are_refused_by_the_key(said: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        read(least("llama", quantization_config=said))


# ---- what a family can express

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
    return MOE.model_copy(update=fields)


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
    "latents scaled as llama3": model((turned(Rope(llama3=Llama3(factor=8.0, original_max_position_embeddings=16))), MOE)),
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
