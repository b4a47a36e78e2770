"""Llama 2 to 3.3, SmolLM2 and R1-Distill-Llama."""

from __future__ import annotations

from rorqual.model.load.gqa_family import DenseFamily

FAMILY = DenseFamily(
    model_type="llama",
    architecture="LlamaForCausalLM",
    layout="Llama layout: every layer has grouped-query attention without norms on q and k, biases on all four projections"
    " or on none, and one dense network",
    # The trainer of SmolLM2 writes is_llama_config and rope_interleaved.
    expected={"hidden_act": "silu", "mlp_bias": False, "is_llama_config": True, "rope_interleaved": False},
    attention=lambda keys: dict.fromkeys(("attention_bias", "output_bias"), keys.take("attention_bias", False)),
    fits=lambda attention: not attention.qk_norm and attention.attention_bias == attention.output_bias,
    own=lambda attention: {"attention_bias": attention.attention_bias, "mlp_bias": False},
    windows=False,
)
"""Conversions of Llama's `config.json` and tensor names in both directions."""
