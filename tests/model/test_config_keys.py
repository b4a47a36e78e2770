"""Each key of a published `config.json`: an absent one is what transformers takes it for, and another function is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from rorqual.core.errors import ConfigError
from rorqual.model import ModelConfig
from rorqual.model.ffn import MoEConfig
from rorqual.model.load.config_keys import MOST_LAYERS
from rorqual.model.load.find import family_of
from rorqual.ops.rope import Llama3Scaling, Rope, Yarn

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


@pytest.mark.parametrize("family", LEAST)
def test_a_size_that_no_default_can_stand_for_is_named_where_it_is_missing(family: str) -> None:
    latent = family.startswith("deepseek")
    needed = [
        *SIZES,
        *(LATENT.keys() - {"num_key_value_heads"} if latent else ()),
        *(EXPERTS if "num_experts_per_tok" in LEAST[family] else ()),
    ]
    for key in sorted(
        {*needed, *(["n_routed_experts"] if latent else [])}
        - ({"intermediate_size"} if family == "qwen3_moe" else set())
    ):
        with pytest.raises(ConfigError, match=f"'{key}' is missing"):
            read({name: value for name, value in least(family).items() if name != key})


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


def test_v2_norms_its_gates_or_scales_them_and_a_file_that_says_both_is_refused() -> None:
    one, other = ({"norm_topk_prob": True}, {"routed_scaling_factor": 4.0})
    assert read(least("deepseek_v2", **one)).stages[-1].ffn.router.norm_topk_prob  # type: ignore[attr-defined]
    assert read(least("deepseek_v2", **other)).stages[-1].ffn.router.routed_scaling_factor == 4.0  # type: ignore[attr-defined]
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
        ("num_key_value_heads", 2), ("head_dim", 10), ("rms_norm_eps", 1e-5), ("qk_head_dim", 6), ("topk_method", "random"), ("topk_method", []),
        ("first_k_dense_replace", 4), ("first_k_dense_replace", -1), ("index_topk", 64), ("hidden_size", "wide"),
        ("v_head_dim", "wide"), ("n_group", 3),
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
    llama3 = Llama3Scaling(factor=8.0, original_max_position_embeddings=16)
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
        with pytest.raises(ConfigError, match="RoPE scaling"):
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
