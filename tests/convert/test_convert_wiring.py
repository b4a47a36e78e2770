"""Keys of a GGUF header, steps, shards and dtypes of conversions: both ways, at their bounds, and refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from rorqual.convert.gguf_keys import (
    ARCHITECTURES,
    architecture_keys,
    config_architecture,
    config_from_keys,
    keys_from_config,
)
from rorqual.convert.gguf_names import RowRangeMapping as Rows
from rorqual.convert.gguf_names import layout as gguf_layout
from rorqual.convert.hf import _shards
from rorqual.convert.safetensors_slices import TensorSpec
from rorqual.convert.tensor_jobs import TensorJob
from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.model import ModelConfig, Stage
from rorqual.model.attention import AttentionConfig, GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, FFNConfig, MoEConfig
from rorqual.model.load.find import family_for, family_of
from rorqual.ops.rope import Rope, Yarn

# ---- the keys of a GGUF file

DENSE = DenseConfig(intermediate_size=20)
MOE = MoEConfig(n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=12, n_shared_experts=2)
V2 = {"scoring_func": "softmax", "score_bias": False, "norm_topk_prob": False, "group_score": "max"}
YARN = Rope(theta=500.0, yarn=Yarn(factor=4.0, original_max_position_embeddings=16, beta_fast=8.0, beta_slow=2.0))


def gqa(**fields: Any) -> GQAConfig:
    return GQAConfig(**{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8} | fields)


def mla(**fields: Any) -> MLAConfig:
    sizes = {"kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 10, "q_lora_rank": 12}
    return MLAConfig(**{"num_attention_heads": 3} | sizes | fields)


def model(*stages: tuple[int, AttentionConfig, FFNConfig], **fields: Any) -> ModelConfig:
    layers = tuple(Stage(layers=n, attention=attention, ffn=ffn) for n, attention, ffn in stages)
    return ModelConfig(vocab_size=40, hidden_size=32, stages=layers, **fields)


def moe(**fields: Any) -> MoEConfig:
    own = {name: value for name, value in fields.items() if name in MoEConfig.model_fields}
    router = MOE.router.model_copy(update={name: value for name, value in fields.items() if name not in own})
    return MOE.model_copy(update=own | {"router": router})


LATENT = YARN.model_copy(update={"yarn": YARN.yarn.model_copy(update={"mscale": 0.707, "mscale_all_dim": 0.707})})  # type: ignore[union-attr]
QWEN: dict[str, Any] = {"scoring_func": "softmax", "score_bias": False}
QWEN_MOE = MoEConfig(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=12, **QWEN)
MODELS: dict[str, ModelConfig] = {
    "llama": model((2, gqa(), DENSE), rms_norm_eps=1e-5, max_position_embeddings=77),
    "llama, biases": model((1, gqa(attention_bias=True, output_bias=True), DENSE)),
    "llama, narrow heads, divided": model((1, gqa(head_dim=6, rope=Rope(theta=100.0, linear=4.0)), DENSE)),
    "llama, tied": model((1, gqa(num_key_value_heads=4), DENSE), tie_word_embeddings=True),
    "qwen2, yarn": model((3, gqa(attention_bias=True, rope=YARN), DENSE), tie_word_embeddings=True),
    "qwen3, one key": model((1, gqa(qk_norm=True, num_key_value_heads=1, rope=Rope(theta=1e6)), DENSE)),
    "qwen3moe": model((2, gqa(qk_norm=True, rope=YARN), QWEN_MOE)),
    "deepseek2, v3": model((1, mla(), DENSE), (2, mla(), moe(n_group=4, topk_group=3, routed_scaling_factor=2.5))),
    "deepseek2, v3, all experts": model((2, mla(rope=LATENT), moe(norm_topk_prob=False, n_shared_experts=1))),
    "deepseek2, v2": model((1, mla(rope=LATENT), DENSE), (1, mla(rope=LATENT), moe(**V2, routed_scaling_factor=16.0))),
    "deepseek2, lite": model((1, mla(q_lora_rank=0), DENSE), (26, mla(q_lora_rank=0), moe(**V2))),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_keys_of_a_header_say_the_model_both_ways(name: str) -> None:
    """The keys, and what the shapes tell, are the model again."""
    config, architecture = MODELS[name], name.split(",")[0]
    family = family_for(config)
    data = family.config_to_hf(config)
    assert config_architecture(data) == architecture and data["model_type"] in ARCHITECTURES[architecture]
    keys = {f"{architecture}.{key}": value for key, value in keys_from_config(data, architecture).items()}
    shapes = gguf_layout(config, family.name_map(config), architecture).gguf
    back = config_from_keys(keys, architecture, shapes, "there")
    assert family_of(back["model_type"], "there").config_from_hf(back, "there") == config.model_copy(
        update={"initializer_range": 0.02}
    )
    with pytest.raises(ConfigError, match="odd"):
        config_from_keys(keys | {f"{architecture}.odd": 1}, architecture, shapes, "there")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"llama.attention.value_length": 6}, "value_length"),
        ("llama", {"llama.rope.dimension_count": 4}, "dimension_count"),
        ("llama", {"llama.expert_count": 8}, "expert_count"),
        ("llama", {"llama.expert_used_count": 2}, "expert_used_count"),
        ("llama", {"llama.rope.scaling.attn_factor": 1.5}, "attn_factor"),
        ("llama", {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "longrope"),
        ("qwen2, yarn", {"qwen2.attention.key_length": 6, "qwen2.attention.value_length": 6, "qwen2.rope.dimension_count": 6}, "head_dim is 6"),
        ("deepseek2, v3", {"deepseek2.expert_gating_func": 3}, "expert_gating_func"),
        ("llama", {"llama.block_count": 2.0}, "block_count"),
        ("llama", {"llama.block_count": True}, "block_count"),
        ("llama", {"llama.attention.head_count_kv": [2, 1]}, "head_count_kv"),
    ],
    ids=["values", "rotation", "mixtral", "mixtral, used", "temperature", "kind", "qwen2", "gating", "float", "bool", "two counts"],
)  # fmt: skip
def test_a_header_of_another_function_is_refused_by_its_key(name: str, change: dict[str, Any], message: str) -> None:
    config, architecture = MODELS[name], name.split(",")[0]
    family = family_for(config)
    keys = {f"{architecture}.{k}": v for k, v in keys_from_config(family.config_to_hf(config), architecture).items()}
    shapes = gguf_layout(config, family.name_map(config), architecture).gguf
    config_from_keys(keys, architecture, shapes, "there")
    with pytest.raises((CheckpointError, ConfigError), match=message):
        config_from_keys(keys | change, architecture, shapes, "there")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (model((1, mla(), moe(**V2, n_group=2, topk_group=1))), "two best"),
        (model((1, gqa(qk_norm=True), moe(**QWEN, norm_topk_prob=False, n_shared_experts=0))), "norm_topk_prob"),
        (model((1, gqa(qk_norm=True), QWEN_MOE), (1, gqa(qk_norm=True), DENSE)), "dense"),
        (model((2, mla(q_lora_rank=0), MOE)), "q_lora_rank"),
        (model((1, mla(), moe(n_shared_experts=0))), "shared"),
    ],
    ids=["groups", "gates", "dense among", "layers", "shared"],
)
def test_what_llama_cpp_would_compute_otherwise_is_not_written(config: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_architecture(family_for(config).config_to_hf(config))


def test_one_count_for_each_layer_is_a_count() -> None:
    keys = architecture_keys(
        {"llama.a": [3, 3, 3], "llama.eps": 9.999999747378752e-06, "llama.vocab_size": 4, "qwen2.c": 1},
        "llama",
        "there",
    )
    assert keys.integer("a") == 3 and keys.take("eps") == 1e-5 and keys.integer("c", 7) == 7
    keys.refuse_unknown_keys()
    with pytest.raises(ConfigError, match="there: key 'a'"):
        architecture_keys({"llama.a": [3, 4]}, "llama", "there").integer("a")


@pytest.mark.parametrize(
    ("rows", "head", "form", "size"),
    [(12, 4, "permuted", 5), (12, 1, "same", 5), (12, 12, "permuted", 1), (7, 1, "same", 7), (8, 1, "transposed", 3)],
)
def test_steps_are_whole_heads_and_cover_every_row(rows: int, head: int, form: Any, size: int) -> None:
    steps = list(Rows("a", 0, rows, "b", 0, rows, form, head).row_steps(size))
    assert [row for begin, end in steps for row in range(begin, end)] == list(range(rows))
    assert all((end - begin) % head == 0 for begin, end in steps)
    assert all(end - begin <= max(size, head) for begin, end in steps) or (form == "transposed" and len(steps) == 1)


# ---- shards and slices


@pytest.mark.parametrize(
    ("sizes", "most", "groups"),
    [
        ([4, 4, 2], 10, [3]),
        ([4, 4, 3], 10, [2, 1]),
        ([12, 4], 10, [1, 1]),
        ([4, 12, 4, 6, 1], 10, [1, 1, 2, 1]),
        ([10, 10], 10, [1, 1]),
    ],
)
def test_a_shard_is_filled_to_the_byte_and_holds_one_tensor_at_least(
    sizes: list[int], most: int, groups: list[int]
) -> None:
    jobs = [TensorJob(TensorSpec(f"t{i}", "F8_E4M3", (size,)), ()) for i, size in enumerate(sizes)]
    found = _shards(jobs, most)
    assert [len(group) for group in found.values()] == groups and [j for group in found.values() for j in group] == jobs
    n = len(groups)
    names = [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)] if n > 1 else ["model.safetensors"]
    assert list(found) == names
