"""The dense Qwen3 models."""

from __future__ import annotations

from rorqual.model.attention import GQAConfig
from rorqual.model.load.gqa_family import DenseFamily


def is_qwen3_attention(attention: GQAConfig) -> bool:
    """Return whether `attention` is the attention of Qwen3, dense or MoE: norms on q and k, and no biases."""
    return attention.qk_norm and not attention.attention_bias and not attention.output_bias


FAMILY = DenseFamily(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    layout="Qwen3 layout: every layer has grouped-query attention with norms on q and k, no biases, and one dense network",
    expected={"hidden_act": "silu", "attention_bias": False},
    attention=lambda keys: {"qk_norm": True},
    fits=is_qwen3_attention,
    own=lambda attention: {"attention_bias": False, "use_sliding_window": False},
    head_dim=128,
)
"""Conversions of Qwen3's `config.json` and tensor names in both directions."""
