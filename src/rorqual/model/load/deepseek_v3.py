"""DeepSeek-V2, V3, R1, V3.1 and V3.2: convert `config.json` and tensor names in both directions.

DeepSeek-V2 has the same tensor names as V3, but no router bias. DeepSeek-V3.2 is V3 with an indexer in each attention module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from rorqual.core.errors import ConfigError
from rorqual.model.attention import DSAConfig, MLAConfig
from rorqual.model.block import PreNormConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.ffn.router import GroupedTopKConfig
from rorqual.model.load.config_keys import ConfigKeys, rope_to_hf
from rorqual.model.load.names import NameEntry, NameMap
from rorqual.model.load.shared_entries import (
    embedding_and_head_entries,
    norm_entries,
    routed_expert_entries,
    swiglu_entries,
    tied_head_copies,
)

EPSILON = 1e-6
_CLASSES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
}
model_types = tuple(_CLASSES)
LATENT = (MLAConfig, DSAConfig)
"""The config classes of the attention kinds that the checkpoint format supports. Subclasses of these classes are rejected,
because subclasses compute other functions with the same parameters."""
_INDEX = ("index_n_heads", "index_head_dim", "index_topk")
_METHODS: Mapping[str, tuple[Literal["top2", "max"], bool]] = {
    "noaux_tc": ("top2", True),
    "group_limited_greedy": ("max", False),
    "greedy": ("max", False),
}


def config_from_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Convert a `config.json` to a ModelConfig. Raises ConfigError naming the first unsupported key."""
    keys = ConfigKeys(data, where)
    model_type = keys.take("model_type")
    model_type = model_type if model_type in _CLASSES else "deepseek_v3"
    v3, sparse = model_type != "deepseek_v2", model_type == "deepseek_v32"
    keys.expect_family(model_type, _CLASSES[model_type])
    heads, hidden, layers = keys.integer("num_attention_heads"), keys.integer("hidden_size"), keys.layer_count()
    rope_dim = keys.integer("qk_rope_head_dim")
    keys.expect_value("hidden_act", "silu")
    keys.expect_value("attention_bias", False)
    keys.expect_value("mlp_bias", False)
    keys.expect_value("moe_layer_freq", 1)
    keys.expect_value("rope_interleave", True)
    keys.expect_value("num_key_value_heads", heads, None)
    keys.expect_value("head_dim", rope_dim, None)
    # DeepSeek's code and transformers normalize the latents with an epsilon of 1e-6, whatever rms_norm_eps is. Rorqual
    # has one epsilon for all norms, so it refuses an rms_norm_eps other than 1e-6.
    keys.expect_value("rms_norm_eps", EPSILON)
    nope = keys.integer("qk_nope_head_dim")
    keys.expect_value("qk_head_dim", nope + rope_dim, None)
    # Only Rorqual has the key `index_dtype`. Other software ignores it.
    index = (
        {name: keys.take(name) for name in _INDEX} | {"index_dtype": keys.take("index_dtype", None)} if sparse else {}
    )
    attention = keys.build(
        DSAConfig if sparse else MLAConfig,
        num_attention_heads=heads,
        q_lora_rank=keys.take("q_lora_rank") or 0,
        kv_lora_rank=keys.take("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope_dim,
        v_head_dim=keys.take("v_head_dim"),
        rope=keys.rope(10000.0, ("yarn",), without=("attention_factor",)),
        **index,
    )
    if sparse:
        keys.expect_value("indexer_rope_interleave", False)  # GLM's indexers interleave RoPE
        keys.expect_value("layer_types", ["indexed_attention"] * layers, None)
    config = keys.build(
        ModelConfig,
        vocab_size=keys.take("vocab_size"),
        hidden_size=hidden,
        stages=_stages(keys, attention, layers, v3=v3),
        max_position_embeddings=keys.take("max_position_embeddings"),
        tie_word_embeddings=keys.take("tie_word_embeddings", False),
        num_nextn_predict_layers=keys.take("num_nextn_predict_layers", 0) if v3 else 0,
        initializer_range=keys.take("initializer_range", 0.02),
    )
    keys.refuse_unknown_keys()
    return config


def _stages(keys: ConfigKeys, attention: MLAConfig, layers: int, *, v3: bool) -> tuple[Stage, ...]:
    dense = keys.integer("first_k_dense_replace", 0)
    if not 0 <= dense <= layers:
        raise ConfigError(
            f"key 'first_k_dense_replace' is {dense}, but the model has {layers} layers", where=keys.where
        )
    keys.expect_value("mlp_layer_types", ["dense"] * dense + ["sparse"] * (layers - dense), None)
    wide, moe = keys.build(DenseConfig, intermediate_size=keys.take("intermediate_size")), _moe_from_hf(keys, v3=v3)
    parts = ((dense, wide), (layers - dense, moe))
    return tuple(keys.build(Stage, layers=count, attention=attention, ffn=ffn) for count, ffn in parts if count)


def _moe_from_hf(keys: ConfigKeys, *, v3: bool) -> MoEConfig:
    # For V3, transformers omits `topk_method` and `scoring_func`, because its model class implies their values.
    method = keys.take("topk_method", "noaux_tc" if v3 else "greedy")
    if not isinstance(method, str) or method not in _METHODS:
        raise ConfigError(f"key 'topk_method' is {method!r}; supported: {sorted(_METHODS)}", where=keys.where)
    group_score, bias = _METHODS[method]
    groups, topk_group = keys.take("n_group", 1) or 1, keys.take("topk_group", 1) or 1
    if method == "greedy":
        groups = topk_group = 1
    norm, scale = keys.take("norm_topk_prob", v3), keys.take("routed_scaling_factor", 1.0)
    if norm and not bias and scale != 1.0:
        raise ConfigError(
            "a V2 router sets both 'norm_topk_prob' and 'routed_scaling_factor', but V2's code applies only one of them",
            where=keys.where,
        )
    router = keys.build(
        GroupedTopKConfig,
        n_routed_experts=keys.take("n_routed_experts"),
        num_experts_per_tok=keys.take("num_experts_per_tok"),
        n_group=groups,
        topk_group=topk_group,
        scoring_func=keys.take("scoring_func", "sigmoid" if v3 else "softmax"),
        norm_topk_prob=norm,
        routed_scaling_factor=scale,
        group_score=group_score,
        score_bias=bias,
    )
    return keys.build(
        MoEConfig,
        router=router,
        moe_intermediate_size=keys.take("moe_intermediate_size"),
        n_shared_experts=keys.take("n_shared_experts", 0) or 0,
    )


def _exportable_configs(config: ModelConfig) -> tuple[MLAConfig, DenseConfig | None, MoEConfig, GroupedTopKConfig, int]:
    """Return the configs of attention, dense network, experts and router, and the number of leading dense layers.

    The config of the dense network is None if no layer is dense.
    """
    kinds = [stage.ffn for stage in config.layers]
    dense = sum(isinstance(ffn, DenseConfig) for ffn in kinds)
    attention, wide, moe = config.stages[0].attention, kinds[0], kinds[-1]
    if (
        not isinstance(attention, MLAConfig)
        or type(attention) not in LATENT
        or not isinstance(moe, MoEConfig)
        or not isinstance(router := moe.router, GroupedTopKConfig)
        or any(stage.attention != attention or stage.block != PreNormConfig() for stage in config.stages)
        or any(ffn != (wide if index < dense else moe) for index, ffn in enumerate(kinds))
    ):
        raise ConfigError(
            "the model does not have DeepSeek-V3's layout: dense layers, then layers with one kind of experts, all with the same MLA",
            where="config",
            remedy="Use the run directory, because this model cannot be exported.",
        )
    rope = attention.rope
    problems = {
        f"rms_norm_eps {config.rms_norm_eps} is not {EPSILON}": config.rms_norm_eps != EPSILON,
        "V2 has no multi-token prediction modules": config.num_nextn_predict_layers and not router.score_bias,
        "V2 has no indexer": isinstance(attention, DSAConfig) and not router.score_bias,
        "deepseek_v32 has no index_top_p": isinstance(attention, DSAConfig) and attention.index_top_p < 1,
        "RoPE scaling must be YaRN without attention_factor, or none": rope.llama3 is not None
        or rope.linear != 1.0
        or (rope.yarn is not None and rope.yarn.attention_factor),
    }
    if reasons := [text for text, holds in problems.items() if holds]:
        raise ConfigError(
            f"the model does not have DeepSeek's layout: {reasons[0]}",
            where="config",
            remedy="Use the run directory, because this model cannot be exported.",
        )
    return attention, wide if isinstance(wide, DenseConfig) else None, moe, router, dense


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Convert a ModelConfig to the `config.json` of DeepSeek's code and transformers.

    Raises ConfigError if the `config.json` cannot express the model.
    """
    attention, wide, moe, router, dense = _exportable_configs(config)
    v3 = router.score_bias
    method = "noaux_tc" if v3 else "group_limited_greedy" if router.n_group > 1 else "greedy"
    if (router.n_group > 1 and _METHODS[method][0] != router.group_score) or (v3 != (router.scoring_func == "sigmoid")):
        raise ConfigError(
            f"no published router combines scoring_func {router.scoring_func!r}, group_score {router.group_score!r} and score_bias {v3}",
            where="config",
            remedy="V3 uses sigmoid, top2 and a bias; V2 uses softmax, max and no bias.",
        )
    mtp = {"num_nextn_predict_layers": config.num_nextn_predict_layers} if v3 else {}
    sparse = isinstance(attention, DSAConfig)
    model_type = "deepseek_v32" if sparse else "deepseek_v3" if v3 else "deepseek_v2"
    return {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": len(config.layers),
        "first_k_dense_replace": dense,
        "intermediate_size": moe.moe_intermediate_size if wide is None else wide.intermediate_size,
        "num_attention_heads": attention.num_attention_heads,
        "num_key_value_heads": attention.num_attention_heads,
        "q_lora_rank": attention.q_lora_rank or None,
        **attention.model_dump(include={"kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}),
        **attention.model_dump(include={*_INDEX, "index_dtype"}, exclude_none=True),
        **moe.model_dump(exclude={"kind", "router"}),
        **router.model_dump(exclude={"kind", "group_score", "score_bias"}),
        "topk_method": method,
        "moe_layer_freq": 1,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        **mtp,
        **rope_to_hf(attention.rope),
    }


def name_map(config: ModelConfig) -> NameMap:
    """Map the name of every tensor of a model to its name in published DeepSeek checkpoints.

    Each expert has separate published tensors. In published checkpoints, MTP modules are extra layers after the last layer.
    """
    layers = len(config.layers)
    entries, copies = list(embedding_and_head_entries(config)), tied_head_copies(config)
    head = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    for index, stage in enumerate(config.layers):
        entries += _block_entries(stage, f"layers.{index}", f"model.layers.{index}")
    for index in range(config.num_nextn_predict_layers):
        prefix, hf_prefix = f"mtp.{index}", f"model.layers.{layers + index}"
        entries += _block_entries(config.stages[-1], f"{prefix}.block", hf_prefix)
        entries += [
            NameEntry(f"{prefix}.{n}.weight", (f"{hf_prefix}.{n}.weight",)) for n in ("enorm", "hnorm", "eh_proj")
        ]
        entries.append(NameEntry(f"{prefix}.norm.weight", (f"{hf_prefix}.shared_head.norm.weight",)))
        copies |= {
            f"{hf_prefix}.embed_tokens.weight": "embed_tokens.weight",
            f"{hf_prefix}.shared_head.head.weight": head,
        }
    return NameMap(tuple(entries), copies)


def _block_entries(stage: Stage, prefix: str, hf_prefix: str) -> Iterator[NameEntry]:
    attention, ffn = stage.attention, stage.ffn
    if (
        not isinstance(attention, MLAConfig)
        or type(attention) not in LATENT
        or not isinstance(ffn, DenseConfig | MoEConfig)
    ):
        raise ConfigError(
            f"{prefix} has attention '{attention.kind}' and network '{ffn.kind}', which DeepSeek's layout does not have",
            where="config",
        )
    if stage.block != PreNormConfig():
        raise ConfigError(
            f"{prefix} has block kind '{stage.block.kind}', which DeepSeek's layout does not have", where="config"
        )
    yield from norm_entries(prefix, hf_prefix)
    query = ["q_a_proj", "q_a_layernorm", "q_b_proj"] if attention.q_lora_rank else ["q_proj"]
    for name in [*query, "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"]:
        yield NameEntry(f"{prefix}.attention.{name}.weight", (f"{hf_prefix}.self_attn.{name}.weight",))
    if isinstance(attention, DSAConfig):
        for name in ("wq_b.weight", "wk.weight", "k_norm.weight", "k_norm.bias", "weights_proj.weight"):
            yield NameEntry(f"{prefix}.attention.indexer.{name}", (f"{hf_prefix}.self_attn.indexer.{name}",))
    if isinstance(ffn, DenseConfig):
        yield from swiglu_entries(f"{prefix}.ffn", f"{hf_prefix}.mlp")
        return
    if not isinstance(ffn.router, GroupedTopKConfig):
        raise ConfigError(
            f"{prefix} has router kind '{ffn.router.kind}', which DeepSeek's layout does not have", where="config"
        )
    if ffn.router.score_bias:
        name = "e_score_correction_bias"
        yield NameEntry(f"{prefix}.ffn.router.{name}", (f"{hf_prefix}.mlp.gate.{name}",))
    yield from routed_expert_entries(ffn, f"{prefix}.ffn", f"{hf_prefix}.mlp")
    if ffn.n_shared_experts:
        yield from swiglu_entries(f"{prefix}.ffn.shared_experts", f"{hf_prefix}.mlp.shared_experts")
