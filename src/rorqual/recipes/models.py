"""Models of our own size, built as DeepSeek-V3 is: latent attention, one dense layer, then experts, a router bias, MTP."""

from __future__ import annotations

from typing import Literal

from rorqual.model.attention import MLAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig, MoEConfig

Size = Literal["tiny", "small", "medium"]
"""tiny: for tests, a second to train; small: the quickstart's, 0.7M parameters; medium: 57M."""

HIDDEN: dict[Size, int] = {"tiny": 32, "small": 96, "medium": 384}


def v3_like(size: Size, *, vocab_size: int, context: int) -> ModelConfig:
    """A DeepSeek-V3 in small: one routed expert in eight active, one shared expert, one MTP module."""
    d = HIDDEN[size]
    layers, experts, active = {"tiny": (1, 16, 2), "small": (2, 16, 2), "medium": (7, 32, 4)}[size]
    mla = MLAConfig(
        num_attention_heads=d // 32,
        q_lora_rank=d // 2,
        kv_lora_rank=3 * d // 8,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
    )
    moe = MoEConfig(
        n_routed_experts=experts,
        num_experts_per_tok=active,
        moe_intermediate_size=d // 2,
        n_shared_experts=1,
    )
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=d,
        stages=(
            Stage(layers=1, attention=mla, ffn=DenseConfig(intermediate_size=2 * d)),
            Stage(layers=layers, attention=mla, ffn=moe),
        ),
        max_position_embeddings=context,
        num_nextn_predict_layers=1,
        initializer_range=0.05,
    )
