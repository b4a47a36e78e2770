"""Small random models for parity tests: configurations by seed, and weights under which a mistake is visible.

Fresh weights hide errors: logits near zero and nearly uniform attention look the same with a wrong rotary layout or
softmax scale. So matrices keep the variance of what passes through them, norms are random, the query projection is
scaled until attention is peaked, and the final norm until logits have a spread of 1.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.ops.registry import REFERENCE, Ops
from rorqual.ops.rope import Rope, Yarn

BATCH, SEQ = 2, 24
PEAK = 5.0
"""Standard deviation of attention scores before the softmax, roughly."""


def random_yarn(rng: random.Random) -> Yarn:
    scale = rng.choice([0.707, 1.0])
    return Yarn(
        factor=rng.choice([4.0, 40.0]),
        original_max_position_embeddings=16,
        beta_fast=rng.choice([8.0, 32.0]),
        mscale=rng.choice([scale, 1.0]),
        mscale_all_dim=scale,
    )


def deepseek_config(seed: int) -> ModelConfig:
    """Groups in two of three, no q_lora in one of three, YaRN in one of two, any of the rest."""
    rng = random.Random(seed)
    n_group = 1 if seed % 3 == 0 else rng.choice([2, 4])
    attention = MLAConfig(
        num_attention_heads=rng.choice([2, 4]),
        q_lora_rank=0 if seed % 3 == 1 else rng.choice([12, 24]),
        kv_lora_rank=rng.choice([12, 20]),
        qk_nope_head_dim=rng.choice([4, 8, 12]),
        qk_rope_head_dim=rng.choice([4, 8]),
        v_head_dim=rng.choice([6, 8, 16]),
        rope=Rope(theta=rng.choice([100.0, 10000.0]), yarn=random_yarn(rng) if seed % 2 else None),
    )
    k = rng.choice([1, 2, 3, 4])
    moe = MoEConfig(
        n_routed_experts=rng.choice([8, 12, 16]),
        num_experts_per_tok=k,
        moe_intermediate_size=rng.choice([8, 12]),
        n_shared_experts=rng.choice([1, 2]),
        n_group=n_group,
        topk_group=1 if n_group == 1 else n_group // 2,
        norm_topk_prob=k > 1 and rng.random() < 0.75,  # one normalised gate is 1: its router has no gradient to compare
        routed_scaling_factor=rng.choice([1.0, 2.5]),
    )
    dense = DenseConfig(intermediate_size=rng.choice([24, 48]))
    return ModelConfig(
        vocab_size=rng.choice([50, 97]),
        hidden_size=rng.choice([32, 48]),
        stages=(Stage(layers=1, attention=attention, ffn=dense), Stage(layers=2, attention=attention, ffn=moe)),
        max_position_embeddings=4096,
        tie_word_embeddings=seed % 4 == 0,
    )


def qwen3_config(seed: int) -> ModelConfig:
    """Every ratio of heads to key-value heads, tied or not, YaRN in one of three."""
    rng = random.Random(1000 + seed)
    yarn = Yarn(factor=4.0, original_max_position_embeddings=16) if seed % 3 == 0 else None
    attention = GQAConfig(
        num_attention_heads=4,
        num_key_value_heads=[1, 2, 4][seed % 3],
        head_dim=rng.choice([8, 16]),
        qk_norm=True,
        rope=Rope(theta=rng.choice([100.0, 10000.0]), yarn=yarn),
    )
    return ModelConfig(
        vocab_size=rng.choice([50, 97]),
        hidden_size=rng.choice([32, 48]),
        stages=(Stage(layers=3, attention=attention, ffn=DenseConfig(intermediate_size=rng.choice([24, 64]))),),
        tie_word_embeddings=seed % 2 == 0,
    )


def inputs(config: ModelConfig, seed: int) -> tuple[Tensor, Tensor]:
    """tokens and positions [batch, seq]; with YaRN (original length 16) rows start beyond it, far beyond in row 1."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(config.vocab_size, (BATCH, SEQ), generator=generator)
    start = torch.tensor([[0], [0]])
    if config.stages[0].attention.rope.yarn is not None:  # type: ignore[attr-defined]
        start = torch.tensor([[10], [150]])
    return tokens, start + torch.arange(SEQ)


@torch.no_grad()
def loud(config: ModelConfig, seed: int, *, ops: Ops = REFERENCE, biased_below_zero: bool = False) -> Decoder:
    """A model in fp32 whose attention is peaked, whose logits have a spread of 1 and whose router biases are random.

    `biased_below_zero`: biases around -1.5, so that nearly every biased score is negative.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator)

    model = Decoder(config, ops)
    for name, tensor in sorted(model.state_dict().items()):
        if name.endswith("e_score_correction_bias"):
            tensor.copy_(0.1 * normal(tensor.shape) - (1.5 if biased_below_zero else 0.0))
        elif tensor.dim() == 1:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif name == "embed_tokens.weight":
            tensor.copy_(normal(tensor.shape))
        else:
            gain = PEAK if "q_b_proj" in name or "attention.q_proj" in name else 2.0 if "ffn.gate" in name else 1.0
            tensor.copy_(normal(tensor.shape) * gain / math.sqrt(tensor.shape[-1]))
        if "attention.q_norm" in name:  # a norm behind q_proj would undo its gain
            tensor.mul_(PEAK)
    tokens, positions = inputs(config, seed)
    model.norm.weight.mul_(1.0 / model.logits(model(tokens, positions).hidden).std())
    return model
