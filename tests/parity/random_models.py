"""Small random models for parity tests: configurations by seed, and weights under which a mistake is visible.

Fresh weights hide errors: logits near zero and nearly uniform attention look the same with a wrong rotary layout or
softmax scale. So matrices keep the variance of what passes through them, norms are random, the query projection is
scaled until attention is peaked, and the final norm until logits have a spread of 1.
"""

from __future__ import annotations

import math
import random
from typing import Any, Literal

import torch
from torch import Tensor

from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.attention import DSAConfig, GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.ops.backends import REFERENCE, Backend
from rorqual.ops.rope import Llama3Scaling, Rope, Yarn

BATCH, SEQ, LONG = 2, 24, 80
PEAK = 5.0
"""Standard deviation of attention scores before the softmax, roughly."""


def random_yarn(rng: random.Random) -> Yarn:
    scale = rng.choice([0.707, 1.0])
    return Yarn(
        factor=rng.choice([4.0, 40.0]),
        original_max_position_embeddings=16,
        beta_fast=rng.choice([8.0, 32.0]),
        mscale=rng.choice([scale, 1.0, 0.0]),
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


def deepseek_v32_config(seed: int) -> ModelConfig:
    """V3's, with an indexer that keeps a sixth to two thirds of the positions; its heads are wider than what rotates, but for one."""
    config = deepseek_config(6000 + seed * 3 + 2)
    rng = random.Random(6000 + seed)
    attention = config.stages[0].attention
    assert isinstance(attention, MLAConfig)
    sparse = DSAConfig(
        **dict(attention) | {"kind": "dsa", "q_lora_rank": attention.q_lora_rank or 12},
        index_n_heads=rng.choice([12, 16, 24]),
        index_head_dim=attention.qk_rope_head_dim + (0 if seed == 0 else rng.choice([4, 10])),
        index_topk=rng.choice([4, 7, 16]),
    )
    return config.model_copy(
        update={"stages": tuple(s.model_copy(update={"attention": sparse}) for s in config.stages)}
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


def deepseek_v2_config(seed: int) -> ModelConfig:
    """In turns V2-Lite's shape (no q_lora, no groups) and V2's (groups by their best expert), YaRN in two of three."""
    lite = seed % 2 == 0
    config = deepseek_config(2000 + 6 * seed + (4 if lite else 5))
    rng = random.Random(2000 + seed)
    attention, moe = config.stages[1].attention, config.stages[1].ffn
    assert isinstance(attention, MLAConfig) and isinstance(moe, MoEConfig)
    rope = Rope(theta=10000.0, yarn=random_yarn(rng) if seed % 3 else None)
    attention = attention.model_copy(update={"rope": rope, "q_lora_rank": 0 if lite else 12})
    n_group = 1 if lite else 4
    router = {
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "score_bias": False,
        "group_score": "max",
        "n_group": n_group,
        "topk_group": 1 if lite else 2,
        "num_experts_per_tok": 2 if lite else 4,  # more than one group holds of the best, or groups would not show
        "routed_scaling_factor": 1.0 if lite else 16.0,
    }
    moe = moe.model_copy(update={"router": moe.router.model_copy(update=router)})
    if lite and seed % 4 == 0:
        stages = (Stage(layers=3, attention=attention, ffn=moe),)
    else:
        dense = config.stages[0].ffn
        stages = (Stage(layers=1, attention=attention, ffn=dense), Stage(layers=2, attention=attention, ffn=moe))
    return config.model_copy(update={"stages": stages})


def _grouped(rng: random.Random, seed: int, rope: Rope, **kind: bool) -> GQAConfig:
    return GQAConfig(
        num_attention_heads=4,
        num_key_value_heads=[1, 2, 4][seed % 3],
        head_dim=rng.choice([8, 16]),
        rope=rope,
        **kind,
    )


def _dense_model(rng: random.Random, seed: int, attention: GQAConfig) -> ModelConfig:
    ffn = DenseConfig(intermediate_size=rng.choice([24, 64]))
    return ModelConfig(
        vocab_size=rng.choice([50, 97]),
        hidden_size=4 * attention.head_dim if seed % 4 else 48,
        stages=(Stage(layers=3, attention=attention, ffn=ffn),),
        rms_norm_eps=rng.choice([1e-6, 1e-5]),
        tie_word_embeddings=seed % 2 == 0,
    )


def qwen2_config(seed: int) -> ModelConfig:
    """Biases; YaRN without mscale, with its own or a given attention factor, or none."""
    rng = random.Random(3000 + seed)
    given = 1.3 if seed % 3 == 1 else 0.0
    yarn = Yarn(factor=4.0, original_max_position_embeddings=16, attention_factor=given) if seed % 3 < 2 else None
    rope = Rope(theta=rng.choice([100.0, 10000.0]), yarn=yarn)
    return _dense_model(rng, seed, _grouped(rng, seed, rope, attention_bias=True))


def llama_config(seed: int) -> ModelConfig:
    """Llama 3's scaling in half, positions divided in some, biases on all four products in one of five."""
    rng = random.Random(4000 + seed)
    bias, theta = seed % 5 == 0, rng.choice([100.0, 10000.0])
    if seed % 2:
        scaling = Llama3Scaling(factor=rng.choice([8.0, 32.0]), original_max_position_embeddings=64)
        rope = Rope(theta=theta, llama3=scaling)
    else:
        rope = Rope(theta=theta, linear=4.0 if seed % 4 else 1.0)
    return _dense_model(rng, seed, _grouped(rng, seed, rope, attention_bias=bias, output_bias=bias))


def qwen3_moe_config(seed: int) -> ModelConfig:
    """Gates normalised or not; all layers with experts, or dense ones among them."""
    rng = random.Random(5000 + seed)
    yarn = Yarn(factor=4.0, original_max_position_embeddings=16) if seed % 3 == 0 else None
    attention = _grouped(rng, seed, Rope(theta=10000.0, yarn=yarn), qk_norm=True)
    moe = MoEConfig(
        n_routed_experts=rng.choice([8, 12]),
        num_experts_per_tok=rng.choice([2, 3]),
        moe_intermediate_size=rng.choice([8, 12]),
        scoring_func="softmax",
        norm_topk_prob=seed % 2 == 0,
        score_bias=False,
    )
    dense = DenseConfig(intermediate_size=24)
    stages = tuple(Stage(layers=n, attention=attention, ffn=f) for n, f in [(1, moe), (1, dense), (1, moe)])
    if seed % 2:
        stages = (Stage(layers=3, attention=attention, ffn=moe),)
    return ModelConfig(
        vocab_size=rng.choice([50, 97]), hidden_size=32, stages=stages, tie_word_embeddings=seed % 4 == 0
    )


def changed(config: ModelConfig, part: Literal["attention", "router"], **fields: Any) -> ModelConfig:
    """The config with other fields of every attention or of every router."""

    def one(stage: Stage) -> Stage:
        if part == "attention":
            return stage.model_copy(update={part: stage.attention.model_copy(update=fields)})
        if not isinstance(stage.ffn, MoEConfig):
            return stage
        router = stage.ffn.router.model_copy(update=fields)
        return stage.model_copy(update={"ffn": stage.ffn.model_copy(update={part: router})})

    return config.model_copy(update={"stages": tuple(map(one, config.stages))})


def inputs(config: ModelConfig, seed: int) -> tuple[Tensor, Tensor]:
    """tokens and positions [batch, seq]; where the context was extended (YaRN from 16, Llama 3 from 64) rows start beyond it,
    far beyond in row 1. Rows of sparse attention are whole, and longer than one block of its cache."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(config.stages[0].attention, DSAConfig):
        return torch.randint(config.vocab_size, (BATCH, LONG), generator=generator), torch.arange(LONG).expand(
            BATCH, LONG
        )
    tokens = torch.randint(config.vocab_size, (BATCH, SEQ), generator=generator)
    rope: Rope = config.stages[0].attention.rope  # type: ignore[attr-defined]
    start = [10, 150] if rope.yarn else [60, 600] if rope.llama3 else [10, 150] if rope.linear != 1.0 else [0, 0]
    return tokens, torch.tensor(start).unsqueeze(1) + torch.arange(SEQ)


@torch.no_grad()
def loud(config: ModelConfig, seed: int, *, ops: Backend = REFERENCE, biased_below_zero: bool = False) -> Decoder:
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
        elif name.endswith(".bias"):
            tensor.copy_(normal(tensor.shape))
        elif tensor.dim() == 1:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif name == "embed_tokens.weight":
            tensor.copy_(normal(tensor.shape))
        else:
            gain = (
                PEAK if "q_b_proj" in name or "attention.q_proj" in name else 2.0 if "ffn.router.gate" in name else 1.0
            )
            tensor.copy_(normal(tensor.shape) * gain / math.sqrt(tensor.shape[-1]))
        if "attention.q_norm" in name:  # a norm behind q_proj would undo its gain
            tensor.mul_(PEAK)
    tokens, positions = inputs(config, seed)
    model.norm.weight.mul_(1.0 / model.logits(model(tokens, positions).hidden).std())
    return model
