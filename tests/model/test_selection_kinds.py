"""Kinds that select positions by rule: each equals latent attention under a mask that a plain loop writes; and the adaptive budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rorqual.core.config import parse_config
from rorqual.core.errors import ConfigError
from rorqual.model import ModelConfig
from rorqual.model.attention import (
    MLA,
    AttentionContext,
    BlockSelectionConfig,
    DSAConfig,
    MLAConfig,
    SelectedRows,
    SlidingWindowConfig,
)
from rorqual.model.training_cache import PackedBatchCache
from rorqual.ops.backends import REFERENCE

HIDDEN, LENGTH = 16, 90
LATENT: dict[str, Any] = {
    "num_attention_heads": 3,
    "q_lora_rank": 10,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
}


def module_of(config: MLAConfig) -> MLA:
    """Attention whose weights are peaked. Kinds with the same tensors get the same weights."""
    module = config.build(HIDDEN, 1e-6)
    assert isinstance(module, MLA)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in sorted(module.state_dict().items()):
        noise = torch.randn(tensor.shape, generator=generator) * (4.0 if "q_b_proj" in name else 1.0)
        tensor.copy_(noise * tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 1 + 0.3 * noise)
    return module


X = torch.randn(LENGTH, HIDDEN, generator=torch.Generator().manual_seed(6))


def output(module: MLA, *, gradients: bool) -> tuple[Tensor, list[list[int]]]:
    """The output for `X` [positions, hidden], and the sorted positions that each query selected."""
    positions = torch.arange(LENGTH)[None]
    cache = PackedBatchCache(positions, None, [module.config.cache_layout()], REFERENCE.attention)
    context = AttentionContext(positions, None, REFERENCE, cache.rope_cos_sin, wanted=("selected",))
    with torch.set_grad_enabled(gradients):
        out = module(X[None], context, cache.layer(0))[0]
    (rows,) = context.recorded["selected"]
    return out.detach(), [sorted(row for row in line if row >= 0) for line in rows.tolist()]


def expected(module: MLA, seen: Tensor) -> Tensor:
    """Latent attention with keys and values of each head, in which query t sees the positions of seen[t]."""
    c, context = module.config, AttentionContext(torch.arange(LENGTH)[None], None, REFERENCE)
    _, q_nope, q_rope, latent, k_rope = (t[0] for t in module.project(X[None], context))
    heads = module.kv_b_proj(latent).unflatten(-1, (c.num_attention_heads, -1))
    k_nope, v = heads.split((c.qk_nope_head_dim, c.v_head_dim), dim=-1)
    scores = torch.einsum("thd,shd->hts", q_nope, k_nope) + torch.einsum("thd,sd->hts", q_rope, k_rope)
    weights = (scores * module.scale).masked_fill(~seen, -torch.inf).softmax(-1)
    return module.o_proj(torch.einsum("hts,shd->thd", weights, v).flatten(1)).detach()


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() < 3e-6 * other.abs().max())


GRADIENTS = pytest.mark.parametrize("gradients", [False, True], ids=["gathered", "masked"])
"""Inference gathers the selected rows; training masks all others."""


@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (7, 0), (7, 3), (64, 70), (200, 4)])
@GRADIENTS
def test_a_window_sees_the_last_and_the_first_positions(window: int, sinks: int, gradients: bool) -> None:
    module = module_of(SlidingWindowConfig(**LATENT, window=window, sinks=sinks))
    seen = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    for t in range(LENGTH):
        for s in range(t + 1):
            seen[t, s] = s < sinks or t - s < window
    out, selected = output(module, gradients=gradients)
    assert selected == [seen[t].nonzero().flatten().tolist() for t in range(LENGTH)]
    assert close(out, expected(module, seen))


@pytest.mark.parametrize(("size", "topk"), [(4, 1), (4, 3), (16, 2), (16, 50), (64, 1)])
@GRADIENTS
def test_blocks_are_chosen_by_the_attention_to_their_mean(size: int, topk: int, gradients: bool) -> None:
    module = module_of(BlockSelectionConfig(**LATENT, block_size=size, block_topk=topk))
    context = AttentionContext(torch.arange(LENGTH)[None], None, REFERENCE)
    _, q_nope, q_rope, latent, k_rope = module.project(X[None], context)
    rows, q = module.cache_rows(latent, k_rope)[:, 0], module.latent_queries(q_nope, q_rope, REFERENCE)[:, 0]
    seen = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    for t in range(LENGTH):
        own, complete = t // size, list(range((t + 1) // size))
        if complete:
            means = torch.stack([rows[b * size : (b + 1) * size].mean(0) for b in complete])
            weights = (q[t] @ means.T * module.scale).softmax(-1).mean(0)
            complete = sorted((b for b in complete if b != own), key=lambda b: (-weights[b].item(), b))[:topk]
        for b in (*complete, own):
            seen[t, b * size : min((b + 1) * size, t + 1)] = True
    out, selected = output(module, gradients=gradients)
    assert selected == [seen[t].nonzero().flatten().tolist() for t in range(LENGTH)]
    assert close(out, expected(module, seen))


def test_the_adaptive_budget_is_the_fewest_rows_that_reach_p() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = (3 * torch.randn(200, 12, generator=generator)).sort(descending=True).values
    rows = torch.rand(200, 12, generator=generator).argsort(1)
    rows[:50, 8:], scores[:50, 8:] = -1, -torch.inf
    for p in (0.05, 0.5, 0.9, 1.0):
        found = SelectedRows(rows, scores).keep_top_p(p)
        for t in range(200):
            wanted, total, reached = [], sum(s.exp().double() for s in scores[t]), 0.0
            for row, score in zip(rows[t].tolist(), scores[t]):
                if row >= 0 and (not wanted or reached < p * float(total) * (1 - 1e-12)):
                    wanted.append(row)
                    reached += float(score.exp().double())
            assert found.rows[t].tolist() == wanted + [-1] * (12 - len(wanted))
            assert torch.equal(found.scores[t] > -torch.inf, found.rows[t] >= 0)


def test_an_adaptive_budget_is_within_the_fixed_one() -> None:
    fields = LATENT | {"index_n_heads": 12, "index_head_dim": 10, "index_topk": 20}
    counts = dict[float, Tensor]()
    for p in (0.3, 0.8, 1.0):
        module = module_of(DSAConfig(**fields, index_top_p=p))
        out, selected = output(module, gradients=False)
        seen = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
        for t, line in enumerate(selected):
            seen[t, line] = True
        assert close(out, expected(module, seen))
        counts[p] = seen.sum(1)
    assert torch.equal(counts[1.0], torch.arange(1, LENGTH + 1).clamp(max=20))
    assert (counts[0.3] <= counts[0.8]).all() and (counts[0.8] <= counts[1.0]).all() and counts[0.3].min() >= 1
    assert 1 < float(counts[0.3].float().mean()) < float(counts[0.8].float().mean()) < 20


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("window", {"window": 0}, "window"),
        ("window", {"window": 4, "sinks": -1}, "sinks"),
        ("block", {"block_topk": 0}, "block_topk"),
        ("block", {"block_topk": 2, "block_size": 12}, "block_size 12 must be at least 2 and divide 64"),
        ("dsa", {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 4, "index_top_p": 0.0}, "index_top_p"),
        ("dsa", {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 4, "index_top_p": 1.01}, "index_top_p"),
        ("dsa", {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 0}, "index_topk"),
        ("dsa", {"index_n_heads": 2, "index_head_dim": 8, "index_topk": "many"}, "index_topk"),
    ],
)
def test_budgets_out_of_range_are_refused(kind: str, fields: dict[str, Any], words: str) -> None:
    valid = {"window": 4, "sinks": 0, "block_topk": 2, "block_size": 16, "index_topk": 4, "index_top_p": 0.5}

    def read(chosen: dict[str, Any]) -> ModelConfig:
        attention = {"kind": kind, **LATENT, **chosen}
        stage = {"layers": 1, "attention": attention, "ffn": {"kind": "dense", "intermediate_size": 8}}
        return parse_config(ModelConfig, {"vocab_size": 9, "hidden_size": 8, "stages": [stage]}, where="model.yaml")

    with pytest.raises(ConfigError, match=words):
        read(fields)
    assert read({name: valid.get(name, value) for name, value in fields.items()}).stages[0].attention.kind == kind
