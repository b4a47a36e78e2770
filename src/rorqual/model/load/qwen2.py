"""Qwen2, Qwen2.5 and R1-Distill-Qwen, which have biases on q, k and v."""

from __future__ import annotations

from rorqual.model.load.gqa_family import DenseFamily

FAMILY = DenseFamily(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    layout="Qwen2 layout: every layer has grouped-query attention with biases but no norms on q, k and v, and one dense network",
    expected={"hidden_act": "silu", "use_mrope": False},
    attention=lambda keys: {"attention_bias": True},
    fits=lambda attention: attention.attention_bias and not attention.output_bias and not attention.qk_norm,
    own=lambda attention: {"use_sliding_window": False},
    writes_head_dim=False,
)
"""Conversions of Qwen2's `config.json` and tensor names in both directions."""
