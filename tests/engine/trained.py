"""Small models that were trained for some seconds, of each attention kind, with what makes rounding depend on a batch: widths that are no
multiple of a vector, biases, norms on queries and keys, experts with few rows. The indexers of sparse attention are not trained."""

from __future__ import annotations

import copy
import random

import torch
import torch.nn.functional as F

from rorqual.data.tokenizer import Tokenizer
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import (
    BlockSelectionConfig,
    DSAConfig,
    GQAConfig,
    MLAConfig,
    NSAConfig,
    SlidingWindowConfig,
)
from rorqual.model.ffn import DenseConfig, MoEConfig

CONTEXT = 512
KINDS = ("mla", "gqa", "dsa", "dsa-fp8", "nsa", "window", "block")
TESTED = [
    *((kind, dtype) for kind in ("mla", "gqa") for dtype in ("fp32", "bf16")),
    ("dsa", "fp32"),
    ("dsa-fp8", "bf16"),
]
FURTHER = [("nsa", "fp32"), ("window", "bf16"), ("block", "fp32")]
"""Kinds and types that the suite runs less. scripts/same_bits.py runs all kinds in both types."""
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MLA = MLAConfig(
    num_attention_heads=4, q_lora_rank=40, kv_lora_rank=48, qk_nope_head_dim=24, qk_rope_head_dim=16, v_head_dim=24
)
_DSA = DSAConfig(**dict(_MLA) | {"kind": "dsa", "index_n_heads": 5, "index_head_dim": 24, "index_topk": 40})
_WINDOW = SlidingWindowConfig(**dict(_MLA) | {"kind": "window", "window": 30, "sinks": 3})
_BLOCK = BlockSelectionConfig(**dict(_MLA) | {"kind": "block", "block_size": 8, "block_topk": 4})
_GQA = GQAConfig(
    num_attention_heads=6, num_key_value_heads=2, head_dim=24, qk_norm=True, attention_bias=True, output_bias=True
)
_NSA = NSAConfig(
    num_attention_heads=6, num_key_value_heads=2, head_dim=24, compress_block=8, select_block=16, num_selected_blocks=4,
    window_size=24,
)  # fmt: skip
_MOE = MoEConfig(n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=48, n_shared_experts=1)
STAGES = {
    "mla": (
        Stage(layers=1, attention=_MLA, ffn=DenseConfig(intermediate_size=192)),
        Stage(layers=2, attention=_MLA, ffn=_MOE),
    ),
    "dsa": (Stage(layers=2, attention=_DSA, ffn=DenseConfig(intermediate_size=192)),),
    "dsa-fp8": (
        Stage(
            layers=2,
            attention=_DSA.model_copy(update={"index_dtype": "float8_e4m3fn"}),
            ffn=DenseConfig(intermediate_size=192),
        ),
    ),
    "window": (Stage(layers=2, attention=_WINDOW, ffn=DenseConfig(intermediate_size=192)),),
    "block": (Stage(layers=2, attention=_BLOCK, ffn=DenseConfig(intermediate_size=192)),),
    "nsa": (Stage(layers=2, attention=_NSA, ffn=DenseConfig(intermediate_size=192)),),
    "gqa": (Stage(layers=3, attention=_GQA, ffn=DenseConfig(intermediate_size=200)),),
}
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")
THINGS = ("apples", "books", "coins", "plums", "stones")


def sentence(rng: random.Random) -> str:
    """Something to learn: sums in words and numbers."""
    a, b = rng.randrange(2, 60), rng.randrange(2, 60)
    one, other = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    return rng.choice(
        (
            f"{one} has {a} {thing} and {other} gives {b} more: {a} + {b} = {a + b}.\n",
            f"{a} + {b} = {a + b}; {b} + {a} = {a + b}.\n",
            f"{one} and {other} share {2 * a} {thing}, {a} each.\n",
        )
    )


def text(rng: random.Random, length: int) -> str:
    """At least `length` characters of sentences."""
    parts: list[str] = []
    while sum(map(len, parts)) < length:
        parts.append(sentence(rng))
    return "".join(parts)


def untrained(kind: str) -> Decoder:
    config = ModelConfig(vocab_size=264, hidden_size=96, stages=STAGES[kind], max_position_embeddings=CONTEXT)
    return build(config, seed=1)


def trained(kind: str, *, steps: int = 90, rows: int = 8) -> Decoder:
    """A model after `steps` updates of `rows` texts with one thread: the same every time on one machine."""
    model = untrained(kind)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # at 0 and 1 they would hide
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    tokenizer, rng = Tokenizer.byte_level(), random.Random(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 20, (steps - step) / 50)
        ids = torch.tensor([tokenizer.encode(text(rng, 130))[:97] for _ in range(rows)])
        loss = F.cross_entropy(model.logits(model(ids[:, :-1]).hidden).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    if loss > 2.4:
        raise RuntimeError(f"not trained: {float(loss)}")
    return model.requires_grad_(False)


def in_type(model: Decoder, dtype: str) -> Decoder:
    """A copy in another type."""
    return copy.deepcopy(model).to(TYPES[dtype])
