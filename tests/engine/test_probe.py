"""Whether the promise of the same bits is said to hold where it does, and not where it does not."""

from __future__ import annotations

import pytest
import torch

from rorqual.engine.packed import packed
from rorqual.engine.probe import CHOICES, _alike, _products, rows_of
from rorqual.model import ModelConfig, Stage, build
from rorqual.model.adapter import LoRA
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.ops.rows import Rows


@pytest.mark.parametrize(("head_dim", "kept"), [(16, True), (20, True), (18, False), (22, False)])
def test_heads_of_odd_widths_are_promised_nothing(head_dim: int, kept: bool) -> None:
    attention = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=head_dim)
    stage = Stage(layers=1, attention=attention, ffn=DenseConfig(intermediate_size=48))
    model = build(ModelConfig(vocab_size=264, hidden_size=32, stages=(stage,), max_position_embeddings=128), seed=1)
    rows, found, _ = rows_of(model, 1)
    assert found is kept and rows in CHOICES


def test_a_router_as_wide_as_an_expert_hides_no_product() -> None:
    """Both are [64, 32] here; what is tried of each is in its own type."""
    attention = MLAConfig(
        num_attention_heads=3, q_lora_rank=20, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=12
    )
    counts = []
    for experts in (64, 66):
        ffn = MoEConfig(n_routed_experts=experts, num_experts_per_tok=2, moe_intermediate_size=32)
        stage = Stage(layers=1, attention=attention, ffn=ffn)
        model = build(ModelConfig(vocab_size=264, hidden_size=32, stages=(stage,)), seed=1).bfloat16()
        counts.append([len(set(_products(m))) for m in (model, packed(model))])
    assert counts[0] == counts[1]


def test_every_width_of_a_model_is_tried() -> None:
    """A map, the head and the embedding that is one, attention's two products, the router, experts, latents."""
    mla = MLAConfig(
        num_attention_heads=3, q_lora_rank=24, kv_lora_rank=36, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=28
    )
    ffn = MoEConfig(n_routed_experts=5, num_experts_per_tok=2, moe_intermediate_size=40, n_shared_experts=1)
    stage = Stage(layers=1, attention=mla, ffn=ffn)
    for tied in (False, True):
        config = ModelConfig(vocab_size=264, hidden_size=32, stages=(stage,), tie_word_embeddings=tied)
        model = build(config, seed=1).bfloat16()
        found = set(_products(model))
        fp32, bf16 = torch.float32, torch.bfloat16
        assert {
            ("map", 32, 264, bf16), ("map", 32, 24, bf16), ("map", 24, 60, bf16), ("map", 32, 5, fp32), ("map", 40, 32, bf16),
            ("map", 32, 80, bf16), ("straight", 12, 36, bf16), ("transposed", 36, 28, bf16), ("transposed", 44, 64, bf16),
            ("straight", 64, 44, bf16),
        } <= found  # fmt: skip


def test_one_row_at_a_time_is_seen_to_differ() -> None:
    """The poison of what the engine relies on: on no processor known does a product of one row equal that of twenty in every shape."""
    shapes = [(width, out) for width in (16, 32, 96, 576, 1536) for out in (48, 64, 96)]
    types = (torch.float32, torch.bfloat16)
    assert not all(_alike("map", *shape, dtype, Rows(1), 1) for dtype in types for shape in shapes)
    assert all(
        any(all(_alike("map", *shape, dtype, rows, 1) for shape in shapes) for rows in CHOICES) for dtype in types
    )


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "packed"])
def test_with_two_threads_it_is_said_of_two_or_steps_take_one(pack: bool) -> None:
    """On Intel's processors MKL cuts sums over 1,024 columns and more where two threads share them; oneDNN does not."""
    attention = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    stage = Stage(layers=1, attention=attention, ffn=DenseConfig(intermediate_size=1536))
    model = build(ModelConfig(vocab_size=264, hidden_size=64, stages=(stage,), max_position_embeddings=128), seed=1)
    made = packed(model) if pack else model
    rows, held, threads = rows_of(made, 2)
    assert held
    assert all(_alike(*product, rows, threads) for product in _products(made))
    assert threads in (1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapters_products_are_tried_and_never_said_to_be_cut(dtype: torch.dtype) -> None:
    """LoRA's maps run whole: where wide rows of bf16 must be cut into tiles, nothing is promised of them."""
    attention = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    stage = Stage(layers=1, attention=attention, ffn=DenseConfig(intermediate_size=96))
    model = build(ModelConfig(vocab_size=264, hidden_size=1024, stages=(stage,), max_position_embeddings=128), seed=1)
    LoRA(r=8).attach(model, seed=0)
    model = model.to(dtype)
    rows, held, _ = rows_of(model, 1)
    found = set(_products(model))
    assert {("map", 1024, 64, dtype), ("map", 1024, 8, dtype), ("map", 8, 64, dtype)} <= found
    assert not held or (rows.most == 0 and all(_alike(*product, rows, 1) for product in found))
