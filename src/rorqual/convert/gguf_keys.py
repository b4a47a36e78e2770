"""Conversion between the model keys of a GGUF header and a Hugging Face `config.json`.

The loaders of the model families (`model/load/`) interpret the `config.json`, so that only one place interprets each setting.
An unknown GGUF key of the architecture is an error, because an unknown key could change the outputs of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from rorqual.convert.gguf_rope import scaling_from_keys, scaling_keys
from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.model.load.config_keys import ConfigKeys

ARCHITECTURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "llama": ("llama",),
        "qwen2": ("qwen2",),
        "qwen3": ("qwen3",),
        "qwen3moe": ("qwen3_moe",),
        "deepseek2": ("deepseek_v3", "deepseek_v2"),
    }
)
"""The supported GGUF architectures, each mapped to the architecture's values of `model_type` in `config.json`."""

_LITE_LAYERS = (26, 27)
_IGNORED = ("vocab_size", "rope.scaling.finetuned", "attention.causal", "nextn_predict_layers")
_SOFTMAX, _SIGMOID = 1, 2  # values of `expert_gating_func` in llama.cpp


def header_architecture(keys: Mapping[str, Any], where: str) -> str:
    """Return the model architecture that a GGUF header names. Raises CheckpointError if the architecture is not supported."""
    name = keys.get("general.architecture")
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"unknown architecture {name!r}", where=where, remedy=f"Supported: {', '.join(ARCHITECTURES)}."
        )
    return str(name)


def architecture_keys(keys: Mapping[str, Any], architecture: str, where: str) -> ConfigKeys:
    """Return a reader of the GGUF keys that begin with the name of the architecture. The methods of the reader take each key
    without the architecture prefix."""
    prefix = f"{architecture}."
    own = {
        name.removeprefix(prefix): _gguf_to_config_value(value)
        for name, value in keys.items()
        if name.startswith(prefix)
    }
    return ConfigKeys(own, where, harmless=_IGNORED)


def _gguf_to_config_value(value: Any) -> Any:
    """Convert a value of a GGUF header to the form that `config.json` uses.

    A float becomes the shortest decimal number with the same fp32 value: a GGUF header stores 1e-5 as 9.99999974e-6, for
    example. Some GGUF writers store one value per layer. A header list of equal values becomes a single value in `config.json`.
    """
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    return float(str(np.float32(value))) if isinstance(value, float) else value


def config_from_keys(
    keys: Mapping[str, Any],
    architecture: str,
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    factors: Sequence[float] = (),
) -> dict[str, Any]:
    """Convert the keys of a GGUF header to the content of a Hugging Face `config.json`.

    `shapes` maps tensor names to shapes. Settings without a GGUF key, such as tied embeddings and a router bias, are derived
    from `shapes`. `factors` holds the values of the tensor `rope_freqs.weight`, if the GGUF file has this tensor.
    """
    k = architecture_keys(keys, architecture, where)
    heads, hidden = k.integer("attention.head_count"), k.integer("embedding_length")
    if "token_embd.weight" not in shapes or not heads:
        raise CheckpointError(
            "the model has no tensor 'token_embd.weight', or no attention heads",
            where=where,
            remedy="Use another file.",
        )
    data: dict[str, Any] = {
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": hidden,
        "num_hidden_layers": k.integer("block_count"),
        "num_attention_heads": heads,
        "max_position_embeddings": k.integer("context_length"),
        "rms_norm_eps": k.take("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in shapes,
        "hidden_act": "silu",
        "rope_theta": k.take("rope.freq_base", 10000.0),
    }
    if architecture == "deepseek2":
        data |= _latent_attention_config(k, shapes) | _deepseek_expert_config(k, shapes)
    else:
        data |= _grouped_attention_config(k, architecture, hidden // heads, heads)
    if architecture == "llama":
        data["attention_bias"] = "blk.0.attn_q.bias" in shapes
    if architecture == "qwen3moe":
        data |= _qwen_expert_config(k)
    # Qwen3 MoE has no dense layers, but some GGUF writers store a width for dense FFNs anyway.
    data["intermediate_size"] = k.integer("feed_forward_length", *(() if architecture != "qwen3moe" else (0,)))
    if architecture == "qwen3moe" and not data["intermediate_size"]:
        data["intermediate_size"] = data["moe_intermediate_size"]
    data["rope_scaling"] = scaling_from_keys(k, data["rope_theta"], factors, latent=architecture == "deepseek2")
    k.refuse_unknown_keys()
    return data


def _grouped_attention_config(k: ConfigKeys, architecture: str, even: int, heads: int) -> dict[str, Any]:
    head_dim = k.integer("attention.key_length", even)
    k.expect_value("attention.value_length", head_dim)
    k.expect_value("rope.dimension_count", head_dim)
    if architecture == "llama":
        k.expect_value("expert_count", 0)  # Mixtral has the architecture llama, too, but is not supported
        k.expect_value("expert_used_count", 0)
    data = {
        "model_type": ARCHITECTURES[architecture][0],
        "num_key_value_heads": k.integer("attention.head_count_kv", heads),
    }
    if architecture == "qwen2":  # the config.json of Qwen2 has no head_dim
        if head_dim != even:
            raise CheckpointError(
                f"head_dim is {head_dim}, but qwen2 requires {even}", where=k.where, remedy="Use another file."
            )
        return data
    return data | {"head_dim": head_dim}


def _qwen_expert_config(k: ConfigKeys) -> dict[str, Any]:
    return {
        "num_experts": k.integer("expert_count"),
        "num_experts_per_tok": k.integer("expert_used_count"),
        "moe_intermediate_size": k.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,  # llama.cpp always normalises the expert weights of this architecture
    }


def _latent_attention_config(k: ConfigKeys, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    rank, rope = k.integer("attention.kv_lora_rank"), k.integer("rope.dimension_count")
    split = "blk.0.attn_k_b.weight" in shapes
    key, value = k.integer("attention.key_length"), k.integer("attention.value_length")
    k.take("attention.head_count_kv", None)  # not needed; it is 1 in absorbed MLA, where all heads share one latent
    if split:
        key, value = k.integer("attention.key_length_mla"), k.integer("attention.value_length_mla")
    return {
        "q_lora_rank": k.integer("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": rank,
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key - rope,
        "v_head_dim": value,
    }


def _deepseek_expert_config(k: ConfigKeys, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    k.expect_value("expert_gating_func", _SOFTMAX, _SIGMOID)
    bias = any(name.endswith("exp_probs_b.bias") for name in shapes)
    groups = k.integer("expert_group_count", 1) or 1
    return {
        "model_type": "deepseek_v3" if bias else "deepseek_v2",
        "first_k_dense_replace": k.integer("leading_dense_block_count", 0),
        "n_routed_experts": k.integer("expert_count"),
        "num_experts_per_tok": k.integer("expert_used_count"),
        "moe_intermediate_size": k.integer("expert_feed_forward_length"),
        "n_shared_experts": k.integer("expert_shared_count", 0),
        "routed_scaling_factor": k.take("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": k.take("expert_weights_norm", False),
        "scoring_func": "sigmoid" if k.take("expert_gating_func", _SOFTMAX) == _SIGMOID else "softmax",
        "n_group": groups,
        "topk_group": k.integer("expert_group_used_count", 1) or 1,
        "topk_method": "noaux_tc" if bias else "group_limited_greedy" if groups > 1 else "greedy",
    }


def config_architecture(data: Mapping[str, Any]) -> str:
    """Return the GGUF architecture of a model, given its Hugging Face `config.json`.

    Raises ConfigError if llama.cpp cannot reproduce the model's outputs.
    """
    kind = data["model_type"]
    name = next((name for name, types in ARCHITECTURES.items() if kind in types), None)
    if name is None:
        raise ConfigError(
            f"GGUF export has no architecture for '{kind}'",
            where="config",
            remedy=f"Supported: {', '.join(t for types in ARCHITECTURES.values() for t in types)}.",
        )
    experts, latent = name == "qwen3moe", name == "deepseek2"
    problems = {
        "GGUF cannot express this router: llama.cpp scores a group by its two best experts, but DeepSeek-V2 uses only the best": (
            data.get("topk_method") == "group_limited_greedy"
        ),
        "norm_topk_prob is false, but llama.cpp always normalises the gates of qwen3moe": (
            experts and not data.get("norm_topk_prob", True)
        ),
        "this model has dense layers, but llama.cpp's qwen3moe has experts in every layer": (
            experts and data.get("mlp_only_layers")
        ),
        f"without q_lora_rank, llama.cpp requires {_LITE_LAYERS[0]} or {_LITE_LAYERS[1]} layers, as in DeepSeek-V2-Lite": (
            latent and not data.get("q_lora_rank") and data["num_hidden_layers"] not in _LITE_LAYERS
        ),
        "this model has no shared experts, but llama.cpp's deepseek2 requires shared experts": (
            latent and not data["n_shared_experts"]
        ),
    }
    for problem, holds in problems.items():
        if holds:
            raise ConfigError(problem, where="config", remedy="Export the run as a Hugging Face folder.")
    return name


def keys_from_config(data: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Convert a Hugging Face `config.json` to GGUF header keys without the architecture prefix.

    The values of the header keys must have the types that llama.cpp expects: int for uint32 keys, float for fp32 keys, and bool
    for flags.
    """
    keys: dict[str, Any] = {
        "vocab_size": data["vocab_size"],
        "block_count": data["num_hidden_layers"],
        "context_length": data["max_position_embeddings"],
        "embedding_length": data["hidden_size"],
        "feed_forward_length": data["intermediate_size"],
        "attention.head_count": data["num_attention_heads"],
        "attention.layer_norm_rms_epsilon": float(data["rms_norm_eps"]),
        "rope.freq_base": float(data["rope_theta"]),
    }
    if architecture == "deepseek2":
        keys |= _latent_keys(data) | _expert_keys(data)
    else:
        head_dim = data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"]
        if architecture == "qwen2" and head_dim * data["num_attention_heads"] != data["hidden_size"]:
            raise CheckpointError(
                f"{data['num_attention_heads']} heads of width {head_dim} differ from hidden_size {data['hidden_size']}, which "
                "llama.cpp refuses for qwen2",
                where="config",
                remedy="Export to Hugging Face instead.",
            )
        keys |= {
            "attention.head_count_kv": data["num_key_value_heads"],
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "rope.dimension_count": head_dim,
        }
    if architecture == "qwen3moe":
        keys |= {
            "expert_count": data["num_experts"],
            "expert_used_count": data["num_experts_per_tok"],
            "expert_feed_forward_length": data["moe_intermediate_size"],
        }
    return keys | scaling_keys(data.get("rope_scaling"), latent=architecture == "deepseek2")


def _latent_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    rank, rope = data["kv_lora_rank"], data["qk_rope_head_dim"]
    query = {"attention.q_lora_rank": data["q_lora_rank"]} if data.get("q_lora_rank") else {}
    return query | {
        # In the absorbed form, all heads share one key of size rank + rope. The value is the first `rank` entries of this key.
        "attention.head_count_kv": 1,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.kv_lora_rank": rank,
        "attention.key_length_mla": data["qk_nope_head_dim"] + rope,
        "attention.value_length_mla": data["v_head_dim"],
        "rope.dimension_count": rope,
    }


def _expert_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    groups = (data.get("n_group") or 1) > 1
    grouped = {"expert_group_count": data["n_group"], "expert_group_used_count": data["topk_group"]} if groups else {}
    return grouped | {
        "leading_dense_block_count": data["first_k_dense_replace"],
        "expert_count": data["n_routed_experts"],
        "expert_used_count": data["num_experts_per_tok"],
        "expert_feed_forward_length": data["moe_intermediate_size"],
        "expert_shared_count": data["n_shared_experts"],
        "expert_weights_scale": float(data["routed_scaling_factor"]),
        "expert_weights_norm": bool(data["norm_topk_prob"]),
        "expert_gating_func": _SIGMOID if data["scoring_func"] == "sigmoid" else _SOFTMAX,
    }
