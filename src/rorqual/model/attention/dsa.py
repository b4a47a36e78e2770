"""DeepSeek Sparse Attention (DeepSeek-V3.2-Exp, section 2.1): MLA over the positions that a lightning indexer selects.

The index score of query t and position s is I_{t,s} = sum_j w_{t,j} ReLU(q_{t,j} . k_s), over the indexer's heads j (eq. 1).
Attention sees the `index_topk` positions with the highest index scores. Between positions with equal index scores, the earlier
position is selected. Attention is dense while a sequence has at most `index_topk` positions.

RoPE rotates the first `qk_rope_head_dim` values of index queries and keys in the half-split layout, while MLA's own RoPE
is interleaved.

With `index_dtype`, the KV cache holds index keys in FP8, with a power of two as the scale of each index key. DeepSeek's code
also rounds index queries to FP8. Before rounding, DeepSeek's code multiplies index queries and keys by a Hadamard matrix, which
preserves dot products. Rorqual neither rounds index queries nor applies the Hadamard matrix.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rorqual.core.config import Count, Part
from rorqual.model.attention.attention import Attention, AttentionContext
from rorqual.model.attention.cache import CachePart, LayerCache
from rorqual.model.attention.mla import MLA, MLAConfig
from rorqual.model.cost import Cost, linear_cost, vector_cost
from rorqual.ops.quant import row_scales

NORM_EPS = 1e-6
ATTENTION_ERROR_NAMES = frozenset({"attention_rows", "attention_mass", "output_difference"})
"""The names of the tensors that `DSA.record_attention_error` records."""


class DSAConfig(MLAConfig):
    """MLA with a lightning indexer of `index_n_heads` heads of width `index_head_dim`. All heads of the indexer share one index
    key per position.

    With `index_top_p` below 1, the softmax of the index scores gives each of a query's `index_topk` positions a weight. The
    query attends only to the fewest of these positions whose weights add up to at least `index_top_p`.

    `index_dtype` is the dtype of cached index keys. With "float8_e4m3fn", an index key takes `index_head_dim` + 4 bytes.
    """

    kind: Literal["dsa"] = "dsa"  # type: ignore[assignment]
    has_indexer: ClassVar[bool] = True
    q_lora_rank: Count  # type: ignore[assignment]
    index_n_heads: Count
    index_head_dim: Count
    index_topk: Count
    index_top_p: Part = 1.0
    index_dtype: Literal["float8_e4m3fn"] | None = None

    def build(self, hidden_size: int, eps: float) -> Attention:
        return DSA(self, hidden_size, eps)

    def cost(self, hidden_size: int, context: int) -> Cost:
        width = self.index_n_heads * self.index_head_dim
        index = linear_cost(self.q_lora_rank, width) + linear_cost(hidden_size, self.index_head_dim)
        index += vector_cost(2 * self.index_head_dim) + linear_cost(hidden_size, self.index_n_heads)
        attended = self.decode_flops(hidden_size, context)
        return super().cost(hidden_size, 0) + index + Cost(flops=round(attended))

    def decode_flops(self, hidden_size: int, context: float) -> float:
        scored = 2 * self.index_n_heads * self.index_head_dim * context
        return scored + super().decode_flops(hidden_size, min(context, self.index_topk))

    def saved_activations(self, hidden_size: int, *, without_recomputation: bool) -> int:
        queries, keys = self.index_n_heads * self.index_head_dim, self.index_head_dim
        index = queries + keys + self.index_n_heads if without_recomputation else 0
        return super().saved_activations(hidden_size, without_recomputation=without_recomputation) + index

    def cache_spec(self) -> tuple[CachePart, ...]:
        if self.index_dtype is None:
            return (*super().cache_spec(), CachePart("index_key", 1, self.index_head_dim))
        keys = CachePart("index_key", 1, self.index_head_dim, getattr(torch, self.index_dtype))
        return (*super().cache_spec(), keys, CachePart("index_scale", 1, 1, torch.float32))

    def check(self) -> None:
        super().check()
        if self.index_head_dim < self.qk_rope_head_dim:
            raise ValueError(
                f"index_head_dim {self.index_head_dim} is smaller than qk_rope_head_dim {self.qk_rope_head_dim}, the part "
                "of an index key that RoPE rotates"
            )


class Indexer(nn.Module):
    """The lightning indexer of an attention module. The indexer computes index queries, one index key per position, and the
    weights of the indexer's heads."""

    def __init__(self, config: DSAConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = c = config
        self.wq_b = nn.Linear(c.q_lora_rank, c.index_n_heads * c.index_head_dim, bias=False)
        self.wk = nn.Linear(hidden_size, c.index_head_dim, bias=False)
        self.k_norm = nn.LayerNorm(c.index_head_dim, eps=NORM_EPS)
        self.weights_proj = nn.Linear(hidden_size, c.index_n_heads, bias=False)

    def forward(self, x: Tensor, q_latent: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor, Tensor]:
        """Map x [batch, seq, hidden] and c^Q [batch, seq, q_lora_rank] to index queries, index keys and head weights.

        Returns index queries [tokens, 1, index_n_heads, d], index keys [tokens, 1, d] and head weights [tokens, 1,
        index_n_heads] in fp32. The head weights contain the factors index_n_heads^-0.5 and d^-0.5.
        """
        c, ops = self.config, context.ops
        q = self.wq_b(q_latent).unflatten(-1, (c.index_n_heads, c.index_head_dim))
        key = self.wk(x)
        key = F.layer_norm(
            key.float(), self.k_norm.normalized_shape, self.k_norm.weight.float(), self.k_norm.bias.float(), NORM_EPS
        )
        both = torch.cat((q, key.to(q.dtype).unsqueeze(2)), dim=2)  # [batch, seq, index_n_heads + 1, d]
        rope, rest = both.split((c.qk_rope_head_dim, c.index_head_dim - c.qk_rope_head_dim), dim=-1)
        cos, sin = context.rope(c.rope, c.qk_rope_head_dim, interleaved=False)
        both = torch.cat((ops.rope(rope, cos, sin, interleaved=False), rest), dim=-1).flatten(0, 1)
        weights = self.weights_proj(x).float() * (c.index_n_heads * c.index_head_dim) ** -0.5
        return both[:, :-1].unsqueeze(1), both[:, -1:], weights.flatten(0, 1).unsqueeze(1)


class DSA(MLA):
    """MLA over the positions that the indexer selects. `DSA` always runs on a KV cache, in the absorbed form.

    The indexer's inputs are detached, so the indexer's loss trains only the indexer. No loss except the indexer's own loss
    trains the indexer.

    `DSA` records `selected` [tokens, k]: the selected positions, or -1 for no position. `DSA` records `index_scores` [tokens,
    k], and the indexer's losses `index_kl` and `dense_index_kl` [tokens] (see `LayerCache.index_kl`). `index_kl` is the
    indexer's loss over the selected positions. `dense_index_kl` is the indexer's loss over all positions. Attention is dense
    while `dense_index_kl` is recorded.

    If a caller requests names in `ATTENTION_ERROR_NAMES`, `record_attention_error` compares sparse with dense attention.
    """

    config: DSAConfig
    needs_cache = True

    def __init__(self, config: DSAConfig, hidden_size: int, eps: float) -> None:
        super().__init__(config, hidden_size, eps)
        self.indexer = Indexer(config, hidden_size)

    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor:
        assert cache is not None
        q_latent, q_nope, q_rope, latent, k_rope = self.project(x, context)
        query, key, weights = self.indexer(x.detach(), q_latent.detach(), context)
        parts, scales = {"latent": self.cache_rows(latent, k_rope), "index_key": key}, None
        if self.config.index_dtype is not None:
            scale, scales = row_scales(key.detach()), "index_scale"
            parts |= {"index_key": key / scale.to(key.dtype), scales: scale}
        cache.write(parts)
        q = self.latent_queries(q_nope, q_rope, context.ops)
        index = (q.detach(), "latent", self.scale, query, weights, "index_key")
        if "dense_index_kl" in context.wanted:
            context.record("dense_index_kl", cache.index_kl(*index, scales=scales))
            return self.attend_absorbed(q, cache, context)
        selected = cache.select(query, weights, "index_key", self.config.index_topk, scales)
        if self.config.index_top_p < 1:
            selected = selected.keep_top_p(self.config.index_top_p)
        context.record("selected", selected.rows)
        context.record("index_scores", selected.scores)
        if "index_kl" in context.wanted:
            context.record("index_kl", cache.index_kl(*index, selected, scales))
        out = self.attend_absorbed(q, cache, context, selected)
        if ATTENTION_ERROR_NAMES & {*context.wanted}:
            self.record_attention_error(q, cache, context, out)
        return out

    def record_attention_error(self, q: Tensor, cache: LayerCache, context: AttentionContext, out: Tensor) -> None:
        """Record dense attention, and how the output `out` of attention to the selected positions differs from it.

        - `attention_mass` [tokens, length]: the dense attention weights of all visible positions, averaged over heads, in
          descending order. `attention_rows` [tokens, length] holds the positions in the order of `attention_mass`.
        - `output_difference` [tokens]: |sparse - dense| / |dense| of the module's output.
        """
        ranked = cache.select_by_attention(q, "latent", self.scale, int(context.positions.max()) + 1)
        context.record("attention_rows", ranked.rows)
        context.record("attention_mass", ranked.scores)
        dense = self.attend_absorbed(q, cache, context)
        difference = (out - dense).norm(dim=-1) / dense.norm(dim=-1)
        context.record("output_difference", difference.flatten())
